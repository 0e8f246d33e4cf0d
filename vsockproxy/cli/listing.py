"""A configuration as people read it: the table of `vsockproxy check`.

Owns: the table.  Opens nothing, and decides nothing about routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.readable import count

_ONE_LINE = 10_000  # columns: for a program that reads it, a route is one line however long


def print_routes(config: Config, stream: TextIO) -> None:
    """Write the routes, a row each, and what else the configuration says."""
    width = None if stream.isatty() else _ONE_LINE
    console = Console(file=stream, markup=False, highlight=False, width=width)
    console.print(_table(config))
    console.print(_summary(config))


def _table(config: Config) -> Table:
    settings = {route.name: _settings(route.policy) for route in config.routes}
    columns: dict[str, Callable[[Route], str]] = {
        "route": lambda route: route.name,
        "listen": lambda route: str(route.listen),
        "target": lambda route: ", ".join(map(str, route.targets)),
    }
    if any(settings.values()):
        columns["settings"] = lambda route: settings[route.name]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for route in config.routes:
        table.add_row(*(Text(cell(route)) for cell in columns.values()))
    return table


def _settings(policy: Policy) -> str:
    """Those settings that are not the default's, as a file spells them; times in seconds."""
    default = Policy()
    return " ".join(
        f"{name}={_spell(name, getattr(policy, name))}"
        for name in policy.__slots__
        if getattr(policy, name) != getattr(default, name)
    )


def _spell(name: str, value: object) -> str:
    match value:
        case None:
            return "off"
        case bool():
            return str(value).lower()
        case int() if name == "mode":
            return f"{value:04o}"
        case float():
            return f"{value:g}"
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)


def _summary(config: Config) -> str:
    return f"{count(len(config.routes), 'route')}; metrics: {config.metrics or 'not served'}"
