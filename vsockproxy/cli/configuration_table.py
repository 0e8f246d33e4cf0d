"""The table of `check`.

Owns: its columns.  It is apart from `tables`, which must not wait for the configuration's modules.
"""

from __future__ import annotations

from collections.abc import Callable

from vsockproxy.cli.tables import Part, Table, by_name, cell, not_direct
from vsockproxy.config.direct import why_not_direct
from vsockproxy.config.key import declared_keys
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.readable import count


def configuration(config: Config) -> list[Part]:
    """Return a table of a configuration's routes, and a summary."""
    reasons = not_direct((route.name, why_not_direct(route)) for route in config.routes)
    return [_routes(config), cell(_summary(config)), *reasons]


def _routes(config: Config) -> Table:
    settings = {route.name: _settings(route.policy) for route in config.routes}
    columns: dict[str, Callable[[Route], str]] = {
        "route": lambda route: route.name,
        "listen": lambda route: str(route.listen),
        "target": lambda route: by_name(route.by, route.to) or route.leads_to,
    }
    if any(settings.values()):
        columns["settings"] = lambda route: settings[route.name]
    table = Table(*columns)
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


def _summary(config: Config) -> str:
    metrics = ", ".join(map(str, config.metrics)) or "not served"
    return f"{count(len(config.routes), 'route')}; metrics: {metrics}"
