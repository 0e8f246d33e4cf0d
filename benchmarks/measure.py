"""Take one sample of one row through one proxy.

Owns: `Place`, `Sample`, and the ratios in a sample.  Knows nothing of rounds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import traffic
from peers import Peer, Proxy, running
from rows import HALF_CLOSE, Row
from usage import SystemCalls, Usage, memory_of, usage_of

Sample = dict[str, float]
"""Figures by name; a unit is a request, or a GB (10^9 bytes) in bulk."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place to measure: an empty folder, the target's address, processors for each program.

    Without processors, a program runs on any of them.
    """

    folder: Path
    target: str
    client_cpus: tuple[int, ...] = ()
    server_cpus: tuple[int, ...] = ()
    proxy_cpus: tuple[int, ...] = ()

    def anywhere(self) -> Place:
        """Return the same place without processors assigned."""
        return replace(self, client_cpus=(), server_cpus=(), proxy_cpus=())


def sample(place: Place, proxy: Proxy, row: Row, seconds: float) -> Sample:
    """Run a row once and return its sample; raises `traffic.LostError`."""
    used: list[Usage] = []

    def note() -> None:
        used.append(usage_of(proxy.pid))

    result = traffic.run(
        proxy.address, row.groups, seconds, place.client_cpus, started=note, ended=note
    )
    _await_rest(proxy.pid)  # a thousand processes that end would slow the next proxy
    before, after = used
    first = result.groups[0]
    units = first.bytes / 1e9 if row.bulk else first.requests
    taken = {
        "rate": units / result.seconds,
        "cpu": (after.cpu - before.cpu) / result.seconds,
        "megabytes": sum(group.bytes for group in result.groups) / result.seconds / 1e6,
        "p50_us": first.p50_us,
        "p99_us": first.p99_us,
        "p999_us": first.p999_us,
    }
    if units:
        taken["cpu_per_unit"] = (after.cpu - before.cpu) / units
    if units and after.pids == before.pids:  # the switches of an ended process are unknown
        taken["switches_per_unit"] = (after.switches - before.switches) / units
    return taken


def system_calls(place: Place, proxy: Proxy, row: Row, seconds: float) -> Sample:
    """Count the system calls a unit, in a separate run."""
    counting: list[SystemCalls] = []
    numbers: list[int] = []
    result = traffic.run(
        proxy.address,
        row.groups,
        seconds,
        place.client_cpus,
        started=lambda: counting.append(SystemCalls(proxy.pid)),
        ended=lambda: numbers.append(counting[0].stop()),
    )
    first = result.groups[0]
    return {"calls_per_unit": numbers[0] / (first.bytes / 1e9 if row.bulk else first.requests)}


def idle(place: Place, proxy: Proxy, row: Row, seconds: float) -> Sample:
    """Measure idle connections: memory of each, processor time and wake-ups a second."""
    traffic.run(proxy.address, ["connections=100"], 0, place.client_cpus)  # warm
    empty = memory_of(proxy.pid)
    used: list[Usage] = []
    full = [empty]

    def note() -> None:
        used.append(usage_of(proxy.pid))
        full.append(memory_of(proxy.pid))

    def note_at_rest() -> None:
        _await_rest(proxy.pid)
        note()

    traffic.run(
        proxy.address, row.groups, seconds, place.client_cpus, started=note_at_rest, ended=note
    )
    before, after = used
    return {
        "connections": row.connections,
        "pss_per_connection": (full[-1].pss - empty.pss) / row.connections,
        "rss_per_connection": (full[-1].rss - empty.rss) / row.connections,
        "empty_rss": empty.rss,
        "empty_pss": empty.pss,
        "cpu": (after.cpu - before.cpu) / seconds,
        "switches_per_second": (after.switches - before.switches) / seconds,
    }


def _await_rest(pid: int) -> None:
    """Return once a tree has used less than a millisecond in a tenth of a second, or after 3 s.

    A proxy has work with connections that have just been opened or closed, and those that fork
    have processes that end.
    """
    now = usage_of(pid)
    for _ in range(30):
        time.sleep(0.1)
        before, now = now, usage_of(pid)
        if now.pids == before.pids and now.cpu - before.cpu < 0.001:
            break


def keeps_half_close(place: Place, peer: Peer) -> str:
    """Return "" if an answer arrives after the client's half-close, else the error."""
    with running(peer, place.folder, place.target, place.proxy_cpus) as proxy:
        try:
            for _ in range(5):  # some proxies have a race here
                traffic.run(proxy.address, [HALF_CLOSE], 0.1, place.client_cpus)
        except traffic.LostError as lost:
            return str(lost)
    return ""
