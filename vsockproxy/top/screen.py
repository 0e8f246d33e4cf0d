"""The screen of `top`, laid out for the size of the terminal.

Owns: the layout.  A pure function of `Traffic`, `Panel` and the size.  Colour only repeats
what the text says.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from vsockproxy.readable import count, duration, escape, size
from vsockproxy.top.panel import Panel
from vsockproxy.top.traffic import HISTORY, Answer, RouteRates, Snapshot, Traffic

SMALLEST: Final = (72, 16)
"""The smallest terminal that `top` supports, in columns and rows."""

_BAR: Final = 8
_WITH_TARGET: Final = 110  # columns
_STYLES: Final = {
    "error": "red",
    "warning": "yellow",
    "paused": "yellow",
    "retrying": "yellow",
    "off": "red",
    "draining": "yellow",
    "drained": "yellow",
    "queued": "red",
    "silent": "yellow",
    "held": "yellow",
    "dialling": "yellow",
}
_BRIEF: Final = {"half-closed": "half", "dialling": "dials"}
_KEYS: Final = "q quit  s sort  r reverse  / filter  p freeze  k kill  ? help"
_HELP: Final = """\
up, down   select a connection; also page up, page down, home, end
k, delete  end the selected connection, after confirmation
s          next sort key: rate, bytes, age, idle, id, route, client
r          reverse the order
/          filter by id, route, client, target or state
escape     clear the filter
p, space   freeze the screen, or refresh it again; routes go on
?, h       show this help
q          quit

Rates are in bytes per second. "in" is client to target, "out" is
target to client. The bar compares the routes; the sparkline covers
the last minute.

Press any key to return."""


class Glyphs(NamedTuple):
    """The characters of bars and sparklines: `UNICODE`, or `ASCII` for an ASCII-only terminal."""

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
    """Return the screen: exactly ``rows`` rows of ``columns`` columns."""
    if columns < SMALLEST[0] or rows < SMALLEST[1]:
        lines = [
            Text("terminal too small: top needs at least {} columns and {} rows".format(*SMALLEST))
        ]
    elif panel.prompt == "help":
        lines = [Text(line) for line in _HELP.splitlines()]
    else:
        lines = _Layout(columns, rows, glyphs).lines(traffic, panel)
    lines = lines[:rows] + [Text()] * (rows - len(lines))
    for line in lines:
        line.truncate(columns, overflow="crop", pad=True)
    return Text("\n", no_wrap=True).join(lines)


class _Layout:
    """The layout of a screen of one size."""

    def __init__(self, columns: int, rows: int, glyphs: Glyphs) -> None:
        self._columns = columns
        self._rows = rows
        self._glyphs = glyphs

    def lines(self, traffic: Traffic, panel: Panel) -> list[Text]:
        """Return every line, from the daemon's summary to the key list."""
        head = [_summary(traffic.snapshot), _state(traffic, panel)]
        foot = _foot(panel)
        if traffic.snapshot is None:
            return [*head, *[Text()] * (self._rows - 3), foot]
        most = max(1, (self._rows - 10) // 3)
        above = [*head, *self._routes(traffic.routes, most)]
        below = self._events(traffic.events, max(1, (self._rows - 12) // 3))
        room = self._rows - len(above) - len(below) - 2
        middle = self._connections(traffic.snapshot, panel, room)
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

    def _connections(self, snapshot: Snapshot, panel: Panel, room: int) -> list[Text]:
        rows = panel.arrange(snapshot.connections)
        wide = self._columns >= _WITH_TARGET
        route = _width((c["route"] for c in rows), 5, 9 + (self._columns - 80) // 5)
        left = self._columns - route - 53
        client = left // 2 if wide else left
        count = (
            f"{len(rows)} of {snapshot.total}"
            if len(rows) < snapshot.total
            else str(snapshot.total)
        )
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
        selected = panel.row  # looked for among all connections
        first = max(0, min((selected or 0) - room // 2, len(rows) - room))
        lines = [self._heading(columns)]
        for index, connection in enumerate(rows[first : first + room], first):
            line = self._line(columns, _connection(connection, wide=wide))
            if index == selected:
                line = Text(">").append_text(line[1:])
                line.stylize("reverse")
            lines.append(line)
        return lines + [Text()] * (room + 1 - len(lines))

    # ---- events ----

    def _events(self, events: Sequence[Answer], room: int) -> list[Text]:
        lines: list[Text] = []
        for event in reversed(events):  # the newest events get the room first
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
            text = Text(escape(cell)) if isinstance(cell, str) else cell
            text.truncate(column.width, overflow=self._overflow)
            text.align("right" if column.is_right else "left", column.width)
            line.append_text(text).append(" ")
        return line


def _summary(snapshot: Snapshot | None) -> Text:
    if snapshot is None:
        return Text("vsockproxy", "bold")
    status = snapshot.status
    live = status["live"]
    return Text.assemble(
        (f"vsockproxy {status['version']}", "bold"),
        f"  process {status['pid']}  up {duration(status['uptime_seconds'])}"
        f"  {count(live, 'connection')}"
        f"  {status['descriptors_free']} fds free",
    )


def _state(traffic: Traffic, panel: Panel) -> Text:
    """Return the second line: the most serious condition, else the sort order and the filter."""
    if traffic.trouble is not None:
        return Text(f"no answer from the daemon, retrying: {traffic.trouble}", "bold red")
    if panel.is_paused:
        return Text("screen frozen; press p to refresh it again", "bold yellow")
    if traffic.snapshot is not None and traffic.snapshot.status["not_ready"]:
        reasons = "; ".join(traffic.snapshot.status["not_ready"])
        return Text(escape(f"not ready: {reasons}"), "bold red")
    only = f", filter {panel.filter!r} (escape clears it)" if panel.filter else ""
    return Text(f"connections by {panel.sort}, {panel.direction}ending{only}")


def _foot(panel: Panel) -> Text:
    match panel.prompt:
        case "filter":
            return Text(f"filter: {panel.typed}_   (enter applies, escape cancels)", "bold")
        case "kill":
            return Text(
                f"end connection {panel.selected}? press y to confirm, any other key to cancel",
                "bold",
            )
    return Text(panel.message or _KEYS, "bold" if panel.message else "")


def _event(event: Answer) -> str:
    """Return an event as one line; ``I``, ``W`` and ``E`` are info, warning and error."""
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    about = f"{event['route']}: " if event["route"] else ""
    line = f"{when} {event['level'][0].upper()} {about}{event['event']}: {event['message']}"
    return escape(line)


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
    """Return a number of bytes in at most six columns: ``0``, ``1.5K``, ``1023M``."""
    return size(number).replace(" ", "").removesuffix("iB").removesuffix("B")


def _rate(number: float) -> str:
    return f"{number:.1f}" if 0 < number < 10 else f"{number:.0f}"
