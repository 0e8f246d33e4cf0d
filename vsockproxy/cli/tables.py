"""A running daemon as people read it: the tables of `status` and `connections`.

Owns: the tables.  Asks nobody: it is given the API's answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vsockproxy.readable import count, duration, size

Answer = dict[str, Any]

_ONE_LINE: Final = 10_000  # columns: for a program that reads it, a row is one line
_STYLES: Final = {
    "paused": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "queued": "red",
    "dialling": "yellow",
}


def show(stream: TextIO, what: RenderableType) -> None:
    """Write it once."""
    _console(stream).print(what)


def watch(stream: TextIO, look: Callable[[], RenderableType], every: float) -> None:
    """Write it anew every so many seconds, until interrupted; in place on a terminal."""
    console = _console(stream)
    try:
        if not console.is_terminal:
            while True:
                console.print(look())
                time.sleep(every)
        with Live(look(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _ONE_LINE
    return Console(file=stream, markup=False, highlight=False, width=width)


def status(daemon: Answer, routes: Answer) -> RenderableType:
    """The daemon in a line, its routes, and what went wrong last at each."""
    parts: list[RenderableType] = [Text(_summary(daemon))]
    parts += [Text(f"not ready: {line}", "red") for line in daemon["not_ready"]]
    parts += [Text(""), _routes(routes["routes"])]
    errors = [route for route in routes["routes"] if route["last_error"]]
    if errors:
        parts += [Text(""), *map(_last_error, errors)]
    return Group(*parts)


def _summary(daemon: Answer) -> str:
    uptime = duration(daemon["uptime_seconds"])
    return (
        f"vsockproxy {daemon['version']}, process {daemon['pid']}, {uptime} up,"
        f" {daemon['pump']} pump, {count(daemon['live'], 'connection')}; {daemon['source']}"
    )


def _routes(routes: list[Answer]) -> Table:
    table = _table("route", "listen", "target", "state", "live>", "all>", "failed>", "in>", "out>")
    for route in routes:
        table.add_row(
            Text(route["name"]),
            Text(route["listen"]),
            Text(" ".join(map(_target, route["targets"]))),
            _state(route["state"], route["queued_by"]),
            str(route["live"]),
            str(route["accepted"]),
            str(sum(route["dial_failures"].values())),
            size(route["upstream_bytes"]),
            size(route["downstream_bytes"]),
        )
    return table


def _target(target: Answer) -> str:
    """Its address, and what is wrong with it if something is."""
    trouble = f" ({target['state']})" if target["state"] in ("refused", "down") else ""
    return f"{target['address']}{trouble}"


def _last_error(route: Answer) -> Text:
    error = route["last_error"]
    ago = duration(max(0.0, time.time() - error["time"]))
    return Text(f"{route['name']}, {ago} ago: {error['reason']}: {error['message']}", "red")


def connections(page: Answer) -> RenderableType:
    """A page of the live connections, and how many there are beside."""
    shown = page["connections"]
    table = _table(
        "id>", "route", "client", "target", "state", "in>", "out>", "rate>", "idle>", "age>"
    )
    for live in shown:
        table.add_row(
            str(live["id"]),
            Text(live["route"]),
            Text(live["client"]),
            Text(live["target"]),
            _state(live["state"]),
            size(live["upstream_bytes"]),
            size(live["downstream_bytes"]),
            f"{size(live['upstream_rate'] + live['downstream_rate'])}/s",
            duration(live["idle_seconds"]),
            duration(live["age_seconds"]),
        )
    more = f", {len(shown)} of them here" if len(shown) < page["total"] else ""
    return Group(table, Text(f"{count(page['total'], 'connection')}{more}"))


def _table(*names: str) -> Table:
    """Columns; ``>`` behind a name is for numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        right = name.endswith(">")
        table.add_column(
            name.removesuffix(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right,
        )
    return table


def _state(state: str, reason: str | None = None) -> Text:
    return Text(f"{state} ({reason})" if reason else state, _STYLES.get(state, ""))
