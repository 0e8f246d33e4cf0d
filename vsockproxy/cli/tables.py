"""The tables of `status`, `connections` and `check`.

Owns: their columns and their width.  Sends no requests: the caller passes the API's answers
or a configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vsockproxy.cli.output import is_colored, printable
from vsockproxy.config.direct import why_not_direct
from vsockproxy.config.key import declared_keys
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.readable import count, duration, size

Answer = dict[str, Any]

_UNWRAPPED: Final = 10_000  # columns; a row is one line unless the output is a terminal
_STYLES: Final = {
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


def show(stream: TextIO, table: RenderableType) -> None:
    """Print a table."""
    _console(stream).print(table)


def watch(stream: TextIO, make: Callable[[], RenderableType], every: float) -> None:
    """Print a new table every ``every`` seconds until Ctrl-C; a terminal is redrawn in place."""
    console = _console(stream)
    try:
        if not console.is_terminal:
            while True:
                console.print(make())
                time.sleep(every)
        with Live(make(), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(make(), refresh=True)
    except KeyboardInterrupt:
        return


def _console(stream: TextIO) -> Console:
    width = None if stream.isatty() else _UNWRAPPED
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        width=width,
        color_system="standard" if is_colored(stream) else None,
    )


def cell(text: str, style: str = "") -> Text:
    """Return a text that may be a client's, a VMM's or a file's, as the terminal can show it."""
    return Text(printable(text), style)


def status(daemon: Answer, routes: Answer) -> RenderableType:
    """Return a line about the daemon, a table of its routes, and the last error of each."""
    parts: list[RenderableType] = [cell(_summary(daemon))]
    if daemon["log_level"] != daemon["log_level_configured"]:
        configured = daemon["log_level_configured"]
        parts.append(cell(f"log level: {daemon['log_level']} (configured: {configured})", "yellow"))
    parts += [cell(f"not ready: {line}", "red") for line in daemon["not_ready"]]
    parts += [cell(line, "yellow") for line in daemon["closed_routes"]]
    parts += _failed_reload(daemon["failed_reload"])
    parts += [Text(""), _routes(routes["routes"])]
    parts += _not_direct((route["name"], route["not_direct"]) for route in routes["routes"])
    errors = [route for route in routes["routes"] if route["last_error"]]
    if errors:
        parts += [Text(""), *map(_last_error, errors)]
    return Group(*parts)


def _failed_reload(failure: Answer | None) -> list[Text]:
    if failure is None:
        return []
    ago = duration(max(0.0, time.time() - failure["time"]))
    return [
        cell(f"the last reload failed {ago} ago, the old configuration runs: {line}", "red")
        for line in failure["problems"]
    ]


def _not_direct(routes: Iterable[tuple[str, str | None]]) -> list[RenderableType]:
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
    table = _table("route", "listen", "target", "state", *numbers)
    for route in routes:
        table.add_row(
            cell(f"{route['name']} (added)" if route["is_added"] else route["name"]),
            cell(route["listen"]),
            cell(_by_name(route["by"], route["to"]) or " ".join(map(_target, route["targets"]))),
            _state(route["state"], route["queued_by"]),
            str(route["live"]),
            str(route["accepted"]),
            str(sum(route["dial_failures"].values())),
            str(sum(route["rejected"].values())),
            size(route["upstream_bytes"]),
            size(route["downstream_bytes"]),
        )
    return table


def _by_name(by: str | None, to: Sequence[str]) -> str:
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


def connections(page: Answer) -> RenderableType:
    """Return a table of one page of live connections, and their number on all pages."""
    shown = page["connections"]
    table = _table(
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
    return Group(table, cell(f"{count(page['total'], 'connection')}{more}"))


def _named(live: Answer) -> str:
    """Return a connection's target, behind the name that the client asked for, if it did."""
    asked = live["asked"]
    return f"{asked} -> {live['target']}" if asked else str(live["target"])


# ---- a configuration ----


def configuration(config: Config) -> RenderableType:
    """Return a table of a configuration's routes, and a summary."""
    not_direct = _not_direct((route.name, why_not_direct(route)) for route in config.routes)
    return Group(_configured_routes(config), cell(_configuration_summary(config)), *not_direct)


def _configured_routes(config: Config) -> Table:
    settings = {route.name: _settings(route.policy) for route in config.routes}
    columns: dict[str, Callable[[Route], str]] = {
        "route": lambda route: route.name,
        "listen": lambda route: str(route.listen),
        "target": lambda route: _by_name(route.by, route.to) or route.leads_to,
    }
    if any(settings.values()):
        columns["settings"] = lambda route: settings[route.name]
    table = _table(*columns)
    for route in config.routes:
        table.add_row(*(cell(text(route)) for text in columns.values()))
    return table


def _settings(policy: Policy) -> str:
    """Return the settings that differ from the defaults, as in a file."""
    default = Policy()
    return " ".join(
        f"{name}={key.written(getattr(policy, name))}"
        for name, key in declared_keys(Policy).items()
        if getattr(policy, name) != getattr(default, name)
    )


def _configuration_summary(config: Config) -> str:
    metrics = ", ".join(map(str, config.metrics)) or "not served"
    return f"{count(len(config.routes), 'route')}; metrics: {metrics}"


# ---- tables ----


def _table(*names: str) -> Table:
    """Return an empty table; ``>`` after a name aligns a column of numbers."""
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
    return cell(f"{state} ({reason})" if reason else state, _STYLES.get(state, ""))
