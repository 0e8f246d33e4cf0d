"""One sample of one row through one proxy, and the rounds A B A B of many.

Owns: `Sample`, what is put into relation to what, and the order of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import traffic
from peers import Peer, Proxy, running
from rows import HALF_CLOSE, Row
from usage import SystemCalls, Usage, memory_of, perf_counts, usage_of

Sample = dict[str, float]
"""What was measured, by name; a unit is a request, or a GB (10^9 bytes) in bulk."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured: an empty folder, the address behind, and who has which processors."""

    folder: Path
    target: str
    client_cpus: tuple[int, ...]
    server_cpus: tuple[int, ...]
    proxy_cpus: tuple[int, ...]


def sample(place: Place, proxy: Proxy, row: Row, seconds: float) -> Sample:
    """Run a row once; raises `traffic.LostError`."""
    used: list[Usage] = []

    def note() -> None:
        used.append(usage_of(proxy.pid))

    result = traffic.run(
        proxy.address, row.groups, seconds, place.client_cpus, started=note, ended=note
    )
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
    if units and after.pids == before.pids:  # what an ended process has switched, nobody knows
        taken["switches_per_unit"] = (after.switches - before.switches) / units
    return taken


def system_calls(place: Place, proxy: Proxy, row: Row, seconds: float) -> Sample:
    """System calls a unit, in a run that serves nothing else."""
    if not perf_counts():
        return {}
    calls = SystemCalls(proxy.pid)
    numbers: list[int] = []
    result = traffic.run(
        proxy.address,
        row.groups,
        seconds,
        place.client_cpus,
        started=calls.start,
        ended=lambda: numbers.append(calls.stop()),
    )
    first = result.groups[0]
    return {"calls_per_unit": numbers[0] / (first.bytes / 1e9 if row.bulk else first.requests)}


def idle(place: Place, proxy: Proxy, row: Row, seconds: float) -> Sample:
    """What idle connections cost: memory each, processor time and wake-ups a second."""
    traffic.run(proxy.address, ["connections=100"], 0, place.client_cpus)  # warm
    empty = memory_of(proxy.pid)
    used: list[Usage] = []
    full = [empty]

    def note() -> None:
        used.append(usage_of(proxy.pid))
        full.append(memory_of(proxy.pid))

    traffic.run(proxy.address, row.groups, seconds, place.client_cpus, started=note, ended=note)
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


Measurement = Callable[[Place, Proxy, Row, float], Sample]


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the results: what is taken of whom, how often, and for how long at a time.

    ``fresh``: a proxy of its own for every sample, because one leaves traces.
    """

    row: Row
    take: Measurement
    peers: tuple[Peer, ...]
    rounds: int
    seconds: float
    fresh: bool = False

    @property
    def cost(self) -> float:
        """Seconds of one sample, about, with all that is not timed."""
        return self.seconds + 0.5 + self.row.connections / 5000


Outcome = tuple[str, Sample | traffic.LostError]
"""A peer's name, and what was taken of it."""


def samples(place: Place, step: Step) -> Iterator[Outcome]:
    """Each peer in turn, so many rounds; what lost bytes has no sample."""
    if step.fresh:
        for _ in range(step.rounds):
            for peer in step.peers:
                with running(peer, place.folder, place.target, place.proxy_cpus) as proxy:
                    yield _outcome(place, step, peer, proxy)
        return
    with ExitStack() as stack:
        proxies = [
            stack.enter_context(running(peer, place.folder, place.target, place.proxy_cpus))
            for peer in step.peers
        ]
        for _ in range(step.rounds):
            for peer, proxy in zip(step.peers, proxies, strict=True):
                yield _outcome(place, step, peer, proxy)


def _outcome(place: Place, step: Step, peer: Peer, proxy: Proxy) -> Outcome:
    try:
        return peer.name, step.take(place, proxy, step.row, step.seconds)
    except traffic.LostError as lost:
        return peer.name, lost


def keeps_half_close(place: Place, peer: Peer) -> str:
    """Nothing when an answer still comes after the client's half-close; else what came."""
    with running(peer, place.folder, place.target, place.proxy_cpus) as proxy:
        try:
            for _ in range(5):  # a race, for some
                traffic.run(proxy.address, [HALF_CLOSE], 0.1, place.client_cpus)
        except traffic.LostError as lost:
            return str(lost)
    return ""
