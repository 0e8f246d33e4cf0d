"""Run the daemon for hours under adverse load, and look for leaks.

    python benchmarks/soak.py [--minutes 60] [--restart-every 60]

Runs a daemon as a service manager does and, on the loopback, what happens to one in
years: clients that finish, that are killed in mid-transfer, that half-close and wait;
targets that refuse and targets that close early; scrapes; a reload every second that changes, adds
and removes routes; and in the first half of the time a restart now and then, under load.
The last process lives through the second half, so that a slow leak has time to show.

Prints descriptors and memory as it goes. Exit status 1 when a client was refused or its stream
truncated, when bytes were lost, when a process failed or logged an unexpected event; and when a
process, idle before its end, has more descriptors than the first had at its start, stores more of
them, or has 10 % more memory than the first at its end.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from service import Service
from weather import Weather, active_connections, configuration

REPORT_SECONDS = 10.0
SETTLING_SECONDS = 10.0
EXPECTED_EVENTS = {"dial_failed not_found", "target_down not_found"}


@dataclass(frozen=True)
class Holding:
    """What one idle process holds."""

    descriptors: int
    stored: int
    kib: int

    def __str__(self) -> str:
        return f"{self.descriptors} descriptors, {self.stored} stored, {self.kib} KiB"


@dataclass
class Soak:
    """A daemon, its load, and the observations of both."""

    folder: Path
    file: Path
    service: Service
    weather: Weather
    reloads: int = 0
    pauses: list[float] = field(default_factory=list)
    ends: list[Holding] = field(default_factory=list)

    def run(self, seconds: float, restart_every: float) -> Holding:
        """Run everything; return what the first process held at its start."""
        began = self.settled(None)
        self.weather.start()
        started = reported = restarted = time.monotonic()
        while (now := time.monotonic()) - started < seconds:
            self.reload(self.reloads + 1)
            if now - restarted > restart_every and now - started < seconds / 2:
                restarted = now
                self.restart(began)
            if now - reported > REPORT_SECONDS:
                reported = now
                files, kib = self.service.holds()
                met = dict(sorted(self.weather.outcomes.items()))
                print(f"{now - started:6.0f} s {files:5} descriptors {kib:8} KiB {met}", flush=True)
        self.come_to_rest(began)
        return began

    def restart(self, began: Holding) -> None:
        """Examine the idle process, and replace it by the next one under load."""
        self.come_to_rest(began)
        self.weather.start()
        self.reload(0)  # with a second of load
        self.pauses.append(self.service.restart())

    def come_to_rest(self, began: Holding) -> None:
        """Record what the process holds without load."""
        self.weather.stop()
        self.reload(0)
        self.ends.append(self.settled(began))
        print(f"process {len(self.ends)} at rest: {self.ends[-1]}", flush=True)

    def reload(self, number: int) -> None:
        """Load another configuration, and wait a second."""
        self.reloads += 1
        self.file.write_text(configuration(self.folder, number))
        self.service.reload()
        time.sleep(1)
        active_connections(self.folder)

    def settled(self, wanted: Holding | None) -> Holding:
        """Return what it holds once its connections, those of scrapes too, have ended."""
        deadline = time.monotonic() + SETTLING_SECONDS
        while True:
            active = active_connections(self.folder)
            files, kib = self.service.holds()
            settled = not active and (wanted is None or files <= wanted.descriptors)
            if settled or time.monotonic() > deadline:
                return Holding(files, len(self.service.store), kib)
            time.sleep(0.1)


def main() -> int:
    """Run, print the report; return 1 on a fault or a leak."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--minutes", type=float, default=60.0)
    options.add_argument("--restart-every", type=float, default=60.0, metavar="SECONDS")
    chosen = options.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "routes.toml"
        file.write_text(configuration(folder, 0))
        weather = Weather(folder)
        with Service(folder, file) as service:
            soak = Soak(folder, file, service, weather)
            began = soak.run(chosen.minutes * 60, chosen.restart_every)
            service.stop()
    return report(soak, began)


def report(soak: Soak, began: Holding) -> int:
    """Print the figures; return 0 without a fault or a leak."""
    print(f"the first process began with {began}, and ended with {soak.ends[0]}")
    print(f"the last one, of {len(soak.ends)}, ended with {soak.ends[-1]}")
    print(f"the most of any: {most(soak.ends)}; {soak.reloads} reloads")
    if soak.pauses:
        pause = max(soak.pauses)
        print(f"{len(soak.pauses)} restarts; longest without a ready process: {pause:.2f} s")
    print(f"clients: {dict(sorted(soak.weather.outcomes.items()))}")
    for event, number in soak.service.events.most_common():
        print(f"{number:8} log lines: {event}")
    faults = [*soak.weather.faults, *soak.service.faults, *grown(soak.ends, began)]
    faults += [f"logged: {event}" for event in soak.service.events if event not in EXPECTED_EVENTS]
    for fault in faults[:20]:
        print(f"FAULT: {fault}")
    return int(bool(faults))


def most(ends: list[Holding]) -> Holding:
    """Return the maximum of each figure."""
    return Holding(
        max(end.descriptors for end in ends),
        max(end.stored for end in ends),
        max(end.kib for end in ends),
    )


def grown(ends: list[Holding], began: Holding) -> list[str]:
    """Return the figures that leaked, as sentences."""
    peak = most(ends)
    return [
        *(["descriptors leak"] if peak.descriptors > began.descriptors else []),
        *(["stored descriptors leak"] if peak.stored > began.stored else []),
        *(["memory grows"] if peak.kib > 1.1 * ends[0].kib else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
