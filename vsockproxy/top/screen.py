"""The screen of `top`: what it shows of the traffic, in as many rows and columns as there are.

Owns: the layout.  A pure function of `Traffic`, `Panel` and the size; nothing on it is told
by colour alone.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from vsockproxy.readable import count, duration, size
from vsockproxy.top.panel import Panel
from vsockproxy.top.traffic import HISTORY, Answer, Look, RouteRates, Traffic

SMALLEST: Final = (72, 16)
"""Columns and rows below which nothing can be shown."""

_BAR: Final = 8
_WITH_TARGET: Final = 110  # columns
_STYLES: Final = {
    "error": "red",
    "warning": "yellow",
    "paused": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "queued": "red",
    "dialling": "yellow",
}
_BRIEF: Final = {"half-closed": "half", "dialling": "dials"}
_KEYS: Final = "q quit  s sort  r reverse  / filter  p pause  k kill  ? help"
_HELP: Final = """\
up down, page up page down, home end   choose a connection
k       end the chosen connection, after a question
s       sort by the next column: rate, bytes, age, idle, id, route, client
r       turn the order round
/       show those whose id, route, client, target or state contains a text
escape  show all again
p       hold the numbers, or let them go on
q       quit

Rates are bytes a second. in is from clients to the target, out is from the
target to clients. The bar compares the routes, the line is the last minute.

Any key goes back."""


class Glyphs(NamedTuple):
    """The signs of bars and sparklines: `UNICODE`, or `ASCII` where that is all there is."""

    bar: str
    levels: str


UNICODE: Final = Glyphs("█", "▁▂▃▄▅▆▇█")
ASCII: Final = Glyphs("#", "_.-=+*%#")


class _Column(NamedTuple):
    heading: str
    width: int
    is_right: bool = False


def screen(
    traffic: Traffic, panel: Panel, columns: int, rows: int, glyphs: Glyphs = UNICODE
) -> Text:
    """Exactly ``rows`` rows of ``columns`` columns."""
    if columns < SMALLEST[0] or rows < SMALLEST[1]:
        lines = [Text("top needs {} columns and {} rows".format(*SMALLEST))]
    elif panel.asking == "help":
        lines = [Text(line) for line in _HELP.splitlines()]
    else:
        lines = _Layout(columns, rows, glyphs).lines(traffic, panel)
    lines = lines[:rows] + [Text()] * (rows - len(lines))
    for line in lines:
        line.truncate(columns, overflow="crop", pad=True)
    return Text("\n", no_wrap=True).join(lines)


class _Layout:
    """The lines of a screen of one size."""

    def __init__(self, columns: int, rows: int, glyphs: Glyphs) -> None:
        self._columns = columns
        self._rows = rows
        self._glyphs = glyphs

    def lines(self, traffic: Traffic, panel: Panel) -> list[Text]:
        """All of them, from the daemon's name to the keys."""
        head = [_summary(traffic.look), _state(traffic, panel)]
        foot = _foot(panel)
        if traffic.look is None:
            return [*head, *[Text()] * (self._rows - 3), foot]
        most = max(1, (self._rows - 10) // 3)
        above = [*head, *self._routes(traffic.routes, most)]
        below = self._events(traffic.events, max(1, (self._rows - 12) // 3))
        room = self._rows - len(above) - len(below) - 2
        middle = self._connections(traffic.look, panel, room)
        return [*above, *middle, *below, foot]

    # ---- routes ----

    def _routes(self, routes: Sequence[RouteRates], most: int) -> list[Text]:
        name = _width((r.route["name"] for r in routes), 12, self._columns - 68)
        past = min(HISTORY, self._columns - name - _BAR - 46)
        columns = [
            _Column(_shown("route", len(routes), most), name),
            _Column("state", 9),
            _Column("live", 5, is_right=True),
            _Column("new/s", 6, is_right=True),
            _Column("fail/s", 6, is_right=True),
            _Column("in/s", 6, is_right=True),
            _Column("out/s", 6, is_right=True),
            _Column("", _BAR),
            _Column("last minute", past),
        ]
        busiest = max((r.bytes for r in routes), default=0.0)
        if len(routes) > most:
            routes = sorted(routes, key=lambda r: (r.failures > 0, r.bytes), reverse=True)[:most]
        return [
            self._heading(columns),
            *(self._line(columns, self._route(r, busiest, past)) for r in routes),
        ]

    def _route(self, rates: RouteRates, busiest: float, past: int) -> list[Text | str]:
        route = rates.route
        return [
            route["name"],
            Text(route["state"], _STYLES.get(route["state"], "")),
            str(route["live"]),
            _rate(rates.connections),
            Text(_rate(rates.failures), "red" if rates.failures else ""),
            _short(rates.upstream),
            _short(rates.downstream),
            Text(self._glyphs.bar * round(_BAR * rates.bytes / busiest) if busiest else "", "cyan"),
            Text(self._sparkline(list(rates.history)[-past:]), "cyan"),
        ]

    def _sparkline(self, values: Sequence[float]) -> str:
        levels = self._glyphs.levels
        most = max(values, default=0.0) or 1.0
        return "".join(levels[round(value / most * (len(levels) - 1))] for value in values)

    # ---- connections ----

    def _connections(self, look: Look, panel: Panel, room: int) -> list[Text]:
        rows = panel.arrange(look.connections)
        wide = self._columns >= _WITH_TARGET
        route = _width((c["route"] for c in rows), 5, 9 + (self._columns - 80) // 5)
        left = self._columns - route - 53
        client = left // 2 if wide else left
        count = f"{len(rows)} of {look.total}" if len(rows) < look.total else str(look.total)
        columns = [
            _Column("id", 7, is_right=True),
            _Column("route", route),
            _Column(f"client ({count})", client),
            *([_Column("target", left - client - 1)] if wide else []),
            _Column("state", 6),
            _Column("in", 6, is_right=True),
            _Column("out", 6, is_right=True),
            _Column("rate", 6, is_right=True),
            _Column("idle", 7, is_right=True),
            _Column("age", 7, is_right=True),
        ]
        selected = panel.row or 0
        first = max(0, min(selected - room // 2, len(rows) - room))
        lines = [self._heading(columns)]
        for index, connection in enumerate(rows[first : first + room], first):
            line = self._line(columns, _connection(connection, wide=wide))
            if index == panel.row:
                line = Text(">").append_text(line[1:])
                line.stylize("reverse")
            lines.append(line)
        return lines + [Text()] * (room + 1 - len(lines))

    # ---- events ----

    def _events(self, events: Sequence[Answer], room: int) -> list[Text]:
        lines: list[Text] = []
        for event in reversed(events):  # the newest whole, and what there is room for
            wrapped = textwrap.wrap(
                _event(event), self._columns, subsequent_indent="    ", break_on_hyphens=False
            )
            style = _STYLES.get(event["level"], "")
            lines = [*(Text(line, style) for line in wrapped[: room - len(lines)]), *lines]
        heading = Text("events".ljust(self._columns), "bold underline")
        return [heading, *lines, *[Text()] * (room - len(lines))]

    # ---- rows of columns ----

    @property
    def _overflow(self) -> Literal["ellipsis", "crop"]:
        return "ellipsis" if self._glyphs is UNICODE else "crop"

    def _heading(self, columns: Sequence[_Column]) -> Text:
        line = self._line(columns, [column.heading for column in columns])
        line.truncate(self._columns, pad=True)
        line.stylize("bold underline")
        return line

    def _line(self, columns: Sequence[_Column], cells: Sequence[Text | str]) -> Text:
        line = Text()
        for column, cell in zip(columns, cells, strict=True):
            text = Text(cell) if isinstance(cell, str) else cell
            text.truncate(column.width, overflow=self._overflow)
            text.align("right" if column.is_right else "left", column.width)
            line.append_text(text).append(" ")
        return line


def _summary(look: Look | None) -> Text:
    if look is None:
        return Text("vsockproxy", "bold")
    status = look.status
    live = status["live"]
    return Text.assemble(
        (f"vsockproxy {status['version']}", "bold"),
        f"  process {status['pid']}  up {duration(status['uptime_seconds'])}"
        f"  {count(live, 'connection')}"
        f"  {status['descriptors_free']} fds free",
    )


def _state(traffic: Traffic, panel: Panel) -> Text:
    """What is out of the ordinary, the worst alone; nothing on a good day."""
    if traffic.trouble is not None:
        return Text(f"waiting for the daemon: {traffic.trouble}", "bold red")
    if panel.is_paused:
        return Text("paused: p goes on", "bold yellow")
    if traffic.look is not None and traffic.look.status["not_ready"]:
        return Text(f"not ready: {'; '.join(traffic.look.status['not_ready'])}", "bold red")
    only = f", those with {panel.filter!r} (escape shows all)" if panel.filter else ""
    return Text(f"connections by {panel.sort}, {panel.direction}ending{only}")


def _foot(panel: Panel) -> Text:
    match panel.asking:
        case "filter":
            return Text(f"show only: {panel.typed}_   (enter, escape)", "bold")
        case "kill":
            return Text(
                f"end connection {panel.selected}? y ends it, any other key does not", "bold"
            )
    return Text(panel.said or _KEYS, "bold" if panel.said else "")


def _event(event: Answer) -> str:
    """One event; ``W`` is a warning, ``E`` an error, ``I`` for information."""
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    about = f"{event['route']}: " if event["route"] else ""
    return f"{when} {event['level'][0].upper()} {about}{event['event']}: {event['message']}"


def _connection(connection: Answer, *, wide: bool) -> list[Text | str]:
    state: str = connection["state"]
    return [
        str(connection["id"]),
        connection["route"],
        connection["client"],
        *([connection["target"]] if wide else []),
        Text(_BRIEF.get(state, state), _STYLES.get(state, "")),
        _short(connection["upstream_bytes"]),
        _short(connection["downstream_bytes"]),
        _short(connection["upstream_rate"] + connection["downstream_rate"]),
        duration(connection["idle_seconds"]),
        duration(connection["age_seconds"]),
    ]


def _width(texts: Iterable[str], least: int, most: int) -> int:
    return max(least, min(max(map(cell_len, texts), default=0), most))


def _shown(noun: str, number: int, most: int) -> str:
    return f"{noun}s" if number <= most else f"{noun}s {most}/{number}"


def _short(number: float) -> str:
    """Bytes in six columns: ``0``, ``1.5K``, ``1023M``."""
    return size(number).replace(" ", "").removesuffix("iB").removesuffix("B")


def _rate(number: float) -> str:
    return f"{number:.1f}" if 0 < number < 10 else f"{number:.0f}"
