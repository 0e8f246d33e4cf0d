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

from vsockproxy.readable import STATE_STYLES, count, duration, escape, size
from vsockproxy.top.panel import Panel
from vsockproxy.top.traffic import HISTORY, Answer, RouteRates, Snapshot, Traffic

SMALLEST: Final = (60, 16)
"""The smallest terminal that `top` supports, in columns and rows."""

_BAR: Final = 8
_WITH_PAST: Final = 72  # columns; below, routes have no history and connections no totals
_WITH_BAR: Final = 90
_WITH_TARGET: Final = 110
_LEVEL_STYLES: Final = {"error": "red", "warning": "yellow"}
_BRIEF: Final = {"half-closed": "half", "dialling": "dials"}
_KEYS: Final = "q quit  s sort  / filter  tab routes  k kill  ? help"
_HELP: Final = """\
up, down   select a connection; also page up, page down,
           home, end
tab        the same keys scroll all routes, or select again
k, delete  end the selected connection, after confirmation
s, r       next sort key; reverse the order
/, escape  filter connections by a text; clear the filter
p, space   freeze the screen, or refresh it again
q          quit

Rates are in bytes per second. "in" is client to target.
"target" is the state of a route's target, or how many of
them are down. The bar compares the routes; the sparkline
covers the last minute.

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
        lines = [Text("terminal too small: top needs {} columns and {} rows".format(*SMALLEST))]
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
        most = max(1, (self._rows - 10) * (2 if panel.scrolls_routes else 1) // 3)
        routes = self._routes(traffic.routes, panel, most)
        head = [_summary(traffic.snapshot, self._columns), _state(traffic, panel, most)]
        foot = _foot(panel)
        if traffic.snapshot is None:
            return [*head, *[Text()] * (self._rows - 3), foot]
        above = [*head, *routes]
        below = self._events(traffic.events, max(1, (self._rows - 12) // 3))
        room = self._rows - len(above) - len(below) - 2
        middle = self._connections(traffic.snapshot, panel, room)
        return [*above, *middle, *below, foot]

    # ---- routes ----

    def _routes(self, routes: Sequence[RouteRates], panel: Panel, most: int) -> list[Text]:
        has_past, bar = self._columns >= _WITH_PAST, _BAR + 1 if self._columns >= _WITH_BAR else 0
        widest = self._columns - (68 + bar if has_past else 46)
        name = _width((r.route["name"] for r in routes), 12, widest)
        past = min(HISTORY, self._columns - name - bar - 54)
        busiest = max((r.bytes for r in routes), default=0.0)
        shown, numbers = _select_routes(routes, panel, most)
        columns = [
            _Column(f"routes{numbers}", name),
            _Column("state", 9),
            _Column("target", 8),
            _Column("live", 5, is_right=True),
            *([_Column("new/s", 6, is_right=True)] if has_past else []),
            _Column("fail/s", 6, is_right=True),
            _Column("in/s", 6, is_right=True),
            _Column("out/s", 6, is_right=True),
            *([_Column("", _BAR)] if bar else []),
            *([_Column("last minute", past)] if has_past else []),
        ]
        return [
            self._heading(columns),
            *(self._line(columns, self._route(r, busiest, past)) for r in shown),
        ]

    def _route(self, rates: RouteRates, busiest: float, past: int) -> list[Text | str]:
        route = rates.route
        return [
            route["name"],
            Text(route["state"], STATE_STYLES.get(route["state"], "")),
            _targets(route["targets"]),
            str(route["live"]),
            *([_rate(rates.connections)] if self._columns >= _WITH_PAST else []),
            Text(_rate(rates.failures), "red" if rates.failures else ""),
            _short(rates.upstream),
            _short(rates.downstream),
            *([self._bar(rates.bytes, busiest)] if self._columns >= _WITH_BAR else []),
            *([self._past(rates.history, past)] if self._columns >= _WITH_PAST else []),
        ]

    def _bar(self, rate: float, busiest: float) -> Text:
        return Text(self._glyphs.bar * round(_BAR * rate / busiest) if busiest else "", "cyan")

    def _past(self, history: Sequence[float], most: int) -> Text:
        return Text(self._sparkline(list(history)[-most:]), "cyan")

    def _sparkline(self, values: Sequence[float]) -> str:
        levels = self._glyphs.levels
        most = max(values, default=0.0) or 1.0
        return "".join(levels[round(value / most * (len(levels) - 1))] for value in values)

    # ---- connections ----

    def _connections(self, snapshot: Snapshot, panel: Panel, room: int) -> list[Text]:
        rows = panel.arrange(snapshot.connections)
        wide, has_totals = self._columns >= _WITH_TARGET, self._columns >= _WITH_PAST
        route = _width((c["route"] for c in rows), 5, 9 + (self._columns - 80) // 5)
        left = self._columns - route - (53 if has_totals else 31)
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
            *(_Column(each, 6, is_right=True) for each in ("in", "out") if has_totals),
            _Column("rate", 6, is_right=True),
            *([_Column("idle", 7, is_right=True)] if has_totals else []),
            _Column("age", 7, is_right=True),
        ]
        selected = panel.row  # looked for among all connections
        first = max(0, min((selected or 0) - room // 2, len(rows) - room))
        lines = [self._heading(columns)]
        for index, connection in enumerate(rows[first : first + room], first):
            line = self._line(columns, _connection(connection, wide=wide, has_totals=has_totals))
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
            style = _LEVEL_STYLES.get(event["level"], "")
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


def _select_routes(
    routes: Sequence[RouteRates], panel: Panel, most: int
) -> tuple[Sequence[RouteRates], str]:
    """Return the routes to show, scrolled or by urgency, and how many of all, for the heading."""
    if panel.scrolls_routes:
        first = panel.window(len(routes), most)
        return routes[first : first + most], ""
    if len(routes) <= most:
        return routes, ""

    def urgency(rates: RouteRates) -> tuple[bool, bool, float]:
        return rates.failures > 0, _down(rates.route["targets"]) > 0, rates.bytes

    return sorted(routes, key=urgency, reverse=True)[:most], f" {most}/{len(routes)}"


def _down(targets: Sequence[Answer]) -> int:
    return sum(target["state"] in ("down", "refused") for target in targets)


def _targets(targets: Sequence[Answer]) -> Text:
    """Return the state of a route's only target, or how many of several are down or refuse."""
    down = _down(targets)
    style = "red" if down else ""
    if len(targets) == 1:
        return Text(targets[0]["state"], style)
    if down:
        return Text(f"down {down}/{len(targets)}", style)
    return Text("up" if any(target["state"] == "up" for target in targets) else "")


def _summary(snapshot: Snapshot | None, columns: int) -> Text:
    if snapshot is None:
        return Text("vsockproxy", "bold")
    status = snapshot.status
    live = status["live"]
    return Text.assemble(
        (f"vsockproxy {status['version']}", "bold"),
        f"  process {status['pid']}  up {duration(status['uptime_seconds'])}"
        f"  {count(live, 'connection')}"
        f"  {status['descriptors_free']} fds free"
        if columns >= _WITH_PAST
        else "",
    )


def _state(traffic: Traffic, panel: Panel, most: int) -> Text:
    """Return the second line: the most serious condition, else the sort order and the filter."""
    if traffic.trouble is not None:
        trouble = escape(traffic.trouble)
        return Text(f"no answer from the daemon, retrying: {trouble}", "bold red")
    if panel.is_paused:
        return Text("screen frozen; press p to refresh it again", "bold yellow")
    if traffic.snapshot is not None and traffic.snapshot.status["not_ready"]:
        reasons = "; ".join(traffic.snapshot.status["not_ready"])
        return Text(escape(f"not ready: {reasons}"), "bold red")
    if panel.scrolls_routes:
        last = min(panel.first_route + most, len(traffic.routes))
        scrolled = f"routes {panel.first_route + 1} to {last} of {len(traffic.routes)}"
        return Text(f"{scrolled}; tab goes back to connections")
    only = f", filter {panel.filter!r} (escape clears it)" if panel.filter else ""
    return Text(f"connections by {panel.sort}, {panel.direction}ending{only}")


def _foot(panel: Panel) -> Text:
    match panel.prompt:
        case "filter":
            return Text(f"filter: {escape(panel.typed)}_   (enter applies, escape cancels)", "bold")
        case "kill":
            return Text(f"end connection {panel.selected}? press y to confirm, n to cancel", "bold")
    return Text(escape(panel.message) or _KEYS, "bold" if panel.message else "")


def _event(event: Answer) -> str:
    """Return an event as one line; ``I``, ``W`` and ``E`` are info, warning and error."""
    when = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    about = f"{event['route']}: " if event["route"] else ""
    message = f": {event['message']}" if event["message"] else ""
    line = f"{when} {event['level'][0].upper()} {about}{event['event']}{message}"
    return escape(line)


def _connection(connection: Answer, *, wide: bool, has_totals: bool) -> list[Text | str]:
    state: str = connection["state"]
    return [
        str(connection["id"]),
        connection["route"],
        connection["client"],
        *([connection["target"]] if wide else []),
        Text(_BRIEF.get(state, state), STATE_STYLES.get(state, "")),
        *(_short(connection[f"{each}_bytes"]) for each in ("upstream", "downstream") if has_totals),
        _short(connection["upstream_rate"] + connection["downstream_rate"]),
        *([duration(connection["idle_seconds"])] if has_totals else []),
        duration(connection["age_seconds"]),
    ]


def _width(texts: Iterable[str], least: int, most: int) -> int:
    return max(least, min(max(map(cell_len, texts), default=0), most))


def _short(number: float) -> str:
    """Return a number of bytes in at most six columns: ``0``, ``1.5K``, ``1023M``."""
    return size(number).replace(" ", "").removesuffix("iB").removesuffix("B")


def _rate(number: float) -> str:
    return f"{number:.1f}" if 0 < number < 10 else f"{number:.0f}"
