"""The tables of `status` and `connections`, as values: text, styles and columns.

Owns: their columns.  Sends no requests: the caller passes the API's answers.  Draws nothing and
imports no library for it: that is `drawing`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vsockproxy.cli.output import printable
from vsockproxy.readable import STATE_STYLES, count, duration, size

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A line, or a cell of a table; `cell` makes it of foreign text."""

    text: str = ""
    style: str = ""


@dataclass(init=False)
class Table:
    """A table; ``>`` after a column's name aligns a column of numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[Text, ...]]

    def __init__(self, *columns: str) -> None:
        self.columns = columns
        self.rows = []

    def add_row(self, *cells: Text | str) -> None:
        """Add a row; a plain text is one that needs no escape."""
        self.rows.append(tuple(Text(one) if isinstance(one, str) else one for one in cells))


Part = Text | Table


def cell(text: str, style: str = "") -> Text:
    """Return a text that may be a client's, a VMM's or a file's, as the terminal can show it."""
    return Text(printable(text), style)


def status(daemon: Answer, routes: Answer) -> list[Part]:
    """Return a line about the daemon, a table of its routes, and the last error of each."""
    parts: list[Part] = [cell(_summary(daemon))]
    if daemon["log_level"] != daemon["log_level_configured"]:
        configured = daemon["log_level_configured"]
        parts.append(cell(f"log level: {daemon['log_level']} (configured: {configured})", "yellow"))
    parts += [cell(f"not ready: {line}", "red") for line in daemon["not_ready"]]
    parts += [cell(line, "yellow") for line in daemon["closed_routes"]]
    parts += _failed_reload(daemon["failed_reload"])
    parts += [Text(), _routes(routes["routes"])]
    parts += not_direct((route["name"], route["not_direct"]) for route in routes["routes"])
    errors = [route for route in routes["routes"] if route["last_error"]]
    if errors:
        parts += [Text(), *map(_last_error, errors)]
    return parts


def _failed_reload(failure: Answer | None) -> list[Text]:
    if failure is None:
        return []
    ago = duration(max(0.0, time.time() - failure["time"]))
    return [
        cell(f"the last reload failed {ago} ago, the old configuration runs: {line}", "red")
        for line in failure["problems"]
    ]


def not_direct(routes: Iterable[tuple[str, str | None]]) -> list[Part]:
    """Return the routes that are not direct, a line for each reason."""
    names: dict[str, list[str]] = {}
    for name, why_not in routes:
        if why_not is not None:
            names.setdefault(why_not, []).append(name)
    return [cell(f"not direct: {', '.join(some)}: {why_not}") for why_not, some in names.items()]


def _summary(daemon: Answer) -> str:
    uptime = duration(daemon["uptime_seconds"])
    return (
        f"vsockproxy {daemon['version']}, process {daemon['pid']}, {uptime} up,"
        f" {daemon['pump']} pump, {count(daemon['live'], 'connection')}; {daemon['source']}"
    )


def _routes(routes: list[Answer]) -> Table:
    numbers = ("live>", "accepted>", "failed>", "rejected>", "in>", "out>")
    table = Table("route", "listen", "target", "state", *numbers)
    for route in routes:
        table.add_row(
            cell(f"{route['name']} (added)" if route["is_added"] else route["name"]),
            cell(route["listen"]),
            cell(by_name(route["by"], route["to"]) or " ".join(map(_target, route["targets"]))),
            _state(route["state"], route["queued_by"]),
            str(route["live"]),
            str(route["accepted"]),
            str(sum(route["dial_failures"].values())),
            str(sum(route["rejected"].values())),
            size(route["upstream_bytes"]),
            size(route["downstream_bytes"]),
        )
    return table


def by_name(by: str | None, to: Sequence[str]) -> str:
    """Return how clients name their targets, and where the names lead; empty if they do not."""
    rules = f": {', '.join(to)}" if to else ""
    return f"by {by}{rules}" if by else ""


def _target(target: Answer) -> str:
    """Return a target's address, with its state if it is down or refused."""
    trouble = f" ({target['state']})" if target["state"] in ("refused", "down") else ""
    return f"{target['address']}{trouble}"


def _last_error(route: Answer) -> Text:
    error = route["last_error"]
    ago = duration(max(0.0, time.time() - error["time"]))
    remedy = f"; {error['remedy']}" if error["remedy"] else ""
    text = f"{route['name']}, {ago} ago: {error['reason']}: {error['message']}{remedy}"
    return cell(text, "red")


def connections(page: Answer) -> list[Part]:
    """Return a table of one page of live connections, and their number on all pages."""
    shown = page["connections"]
    table = Table(
        "id>", "route", "client", "target", "state", "in>", "out>", "rate>", "idle>", "age>"
    )
    for live in shown:
        table.add_row(
            str(live["id"]),
            cell(live["route"]),
            cell(live["client"]),
            cell(_named(live)),
            _state(live["state"]),
            size(live["upstream_bytes"]),
            size(live["downstream_bytes"]),
            f"{size(live['upstream_rate'] + live['downstream_rate'])}/s",
            duration(live["idle_seconds"]),
            duration(live["age_seconds"]),
        )
    more = f", {len(shown)} shown" if len(shown) < page["total"] else ""
    return [table, cell(f"{count(page['total'], 'connection')}{more}")]


def _named(live: Answer) -> str:
    """Return a connection's target, behind the name that the client asked for, if it did."""
    asked = live["asked"]
    return f"{asked} -> {live['target']}" if asked else str(live["target"])


def _state(state: str, reason: str | None = None) -> Text:
    return cell(f"{state} ({reason})" if reason else state, STATE_STYLES.get(state, ""))
