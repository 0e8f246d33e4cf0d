"""One sample of one row through one proxy.

Owns: `Place`, `Sample`, and what is put into relation to what.  Knows nothing of rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import traffic
from peers import Peer, Proxy, running
from rows import HALF_CLOSE, Row
from usage import SystemCalls, Usage, memory_of, usage_of

Sample = dict[str, float]
"""What was measured, by name; a unit is a request, or a GB (10^9 bytes) in bulk."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured: an empty folder, the address behind, and who has which processors.

    No processors: whichever there are.
    """

    folder: Path
    target: str
    client_cpus: tuple[int, ...] = ()
    server_cpus: tuple[int, ...] = ()
    proxy_cpus: tuple[int, ...] = ()

    def anywhere(self) -> Place:
        """The same place with nobody bound to a processor."""
        return replace(self, client_cpus=(), server_cpus=(), proxy_cpus=())


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


def keeps_half_close(place: Place, peer: Peer) -> str:
    """Nothing when an answer still comes after the client's half-close; else what came."""
    with running(peer, place.folder, place.target, place.proxy_cpus) as proxy:
        try:
            for _ in range(5):  # a race, for some
                traffic.run(proxy.address, [HALF_CLOSE], 0.1, place.client_cpus)
        except traffic.LostError as lost:
            return str(lost)
    return ""
