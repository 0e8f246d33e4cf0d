"""The targets for the daemon's figures, and whether a run reached them.

Owns: `Table`, how figures of two proxies are compared, and the list of targets.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from plan import OURS, REFERENCE
from rows import rows

PORTABLE = "vsockproxy-portable"
SPLICING = "systemd-socket-proxyd"


class Table:
    """The rows of a file of results."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.rows = rows

    def samples(self, row: str, name: str, figure: str) -> list[float]:
        """Return all samples of a figure; none if it was not measured."""
        values = self.rows.get(row, {}).get("samples", {}).get(name, {}).get(figure, [])
        return [float(value) for value in values]

    def median(self, row: str, name: str, figure: str) -> float | None:
        """Return the median of all rounds."""
        values = self.samples(row, name, figure)
        return statistics.median(values) if values else None

    def spread(self, row: str, name: str, figure: str) -> float | None:
        """Return how far the middle half of the rounds is from the median, as a fraction of it."""
        values = self.samples(row, name, figure)
        if len(values) < 2 or not statistics.median(values):
            return None
        lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
        return (upper - lower) / 2 / statistics.median(values)

    def ratio(self, row: str, one: str, other: str, figure: str) -> float | None:
        """Return the median of the ratios within each round.

        Other load on the machine in a round affects both proxies.
        """
        ones, others = self.samples(row, one, figure), self.samples(row, other, figure)
        if not ones or not others or not all(others):
            return None
        if len(ones) != len(others):
            return statistics.median(ones) / statistics.median(others)
        return statistics.median(a / b for a, b in zip(ones, others, strict=True))

    def peers(self, row: str) -> list[str]:
        """Return the names of the other proxies in a row."""
        measured = self.rows.get(row, {}).get("samples", {})
        return [name for name in measured if name not in (OURS, PORTABLE)]

    def best(self, row: str, figure: str, *, highest: bool) -> str | None:
        """Return the peer with the best median."""
        medians = {peer: self.median(row, peer, figure) for peer in self.peers(row)}
        known = {peer: median for peer, median in medians.items() if median is not None}
        if not known:
            return None
        return (max if highest else min)(known, key=lambda peer: known[peer])


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target and the measured figure; ``reached`` is None when it was not measured."""

    work: str
    aim: str
    bound: float
    at_least: bool
    reached: float | None
    unit: str = " x"

    @property
    def short(self) -> float:
        """The fraction by which the bound is missed; met at 0 and below."""
        if not self.reached:
            return 0.0
        part = self.reached / self.bound
        return 1 - part if self.at_least else part - 1


def verdicts(table: Table, vsock: Table) -> Iterator[Verdict]:
    """Return every target, in the order of the table."""
    yield from _bulk(table)
    yield from _trips(table)
    yield _Compare(table, "churn-8", "connections per second, 8 at a time").least("rate", 1.0)
    yield from _rest(table)
    yield from _vsock(vsock)


@dataclass(frozen=True, slots=True)
class _Compare:
    """Makes verdicts on a row: the daemon against a peer."""

    table: Table
    row: str
    work: str

    def least(self, figure: str, bound: float, what: str = "") -> Verdict:
        """Return the verdict: at least ``bound`` times HAProxy's figure."""
        reached = self.table.ratio(self.row, OURS, REFERENCE, figure)
        return Verdict(self.work + what, f"{bound} x HAProxy", bound, True, reached)

    def most(self, figure: str, bound: float, what: str = "", peer: str = REFERENCE) -> Verdict:
        """Return the verdict: at most ``bound`` times a peer's figure."""
        name = "HAProxy" if peer == REFERENCE else peer
        reached = self.table.ratio(self.row, OURS, peer, figure)
        return Verdict(self.work + what, f"at most {bound} x {name}", bound, False, reached)

    def ahead(self, figure: str, *, highest: bool, what: str = "") -> Verdict:
        """Return the verdict: no worse than the best peer's figure."""
        best = self.table.best(self.row, figure, highest=highest)
        if best is None:
            return Verdict(self.work + what, "no worse than any peer", 1.0, highest, None)
        reached = self.table.ratio(self.row, OURS, best, figure)
        return Verdict(
            self.work + what, f"no worse than the best peer ({best})", 1.0, highest, reached
        )


def _bulk(table: Table) -> Iterator[Verdict]:
    compared = [
        _Compare(table, f"{way}-{streams}", f"bulk {way}, {streams} stream{'s'[: streams - 1]}")
        for way in ("up", "down")
        for streams in (1, 8)
    ]
    for row in compared:
        yield row.least("rate", 2.0)
        yield row.ahead("rate", highest=True)
    for row in compared:
        yield row.most("cpu_per_unit", 0.5, ": processor time per GB")
        yield row.most("cpu_per_unit", 1.0, ": processor time per GB", SPLICING)


def _trips(table: Table) -> Iterator[Verdict]:
    one = _Compare(table, "trips-64-1", "64 B round trips, 1 connection")
    yield one.ahead("p50_us", highest=False, what=": p50")
    yield one.most("cpu_per_unit", 0.8, ": processor time")
    for number in (64, 1000):
        row = _Compare(table, f"trips-64-{number}", f"64 B round trips, {number} connections")
        yield row.least("rate", 1.2, ": round trips per second")
        yield row.most("p99_us", 1.0, ": p99")


def _rest(table: Table) -> Iterator[Verdict]:
    def under(work: str, aim: str, bound: float, reached: float | None, unit: str) -> Verdict:
        return Verdict(work, aim, bound, False, reached, unit)

    each = table.median("idle", OURS, "pss_per_connection")
    yield under("memory of an idle connection", "under 2048 B", 2048, each, " B")
    resident = table.median("start", "10 routes", "rss")
    resident = resident and resident / 1e6
    yield under("resident with ten routes", "under 60 MB", 60, resident, " MB")
    for routes, seconds in ((10, 0.5), (1000, 2.0)):
        ready = table.median("start", f"{routes} routes", "ready_seconds")
        yield under(f"ready with {routes} routes", f"within {seconds} s", seconds, ready, " s")
    many = table.median("growth-8000", OURS, "cpu_per_unit")
    few = table.median("growth-10", OURS, "cpu_per_unit")
    growth = many / few if many and few else None
    work = "processor time of a round trip at 8000 connections"
    yield under(work, "within 1.3 x that at 10", 1.3, growth, " x")
    cpu = table.median("idle", OURS, "cpu")
    percent = None if cpu is None else cpu * 100
    yield under("idle with 8000 connections", "under 0.1 % of a processor", 0.1, percent, " %")


def _vsock(table: Table) -> Iterator[Verdict]:
    aims = {"up-1": 10, "down-1": 10, "up-8": 10, "down-8": 10, "trips-64-1": 3, "trips-64-64": 3}
    titles = {row.name: row.title for row in rows()}
    for row, bound in {**aims, "churn-8": 5}.items():
        reached = table.ratio(row, OURS, "socat", "rate")
        yield Verdict(f"AF_VSOCK target: {titles[row]}", f"{bound} x socat", bound, True, reached)
