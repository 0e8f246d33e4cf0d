"""What a configuration changes in the one that runs.

Owns: the comparison, by the names of routes.  The values may be of any kind that `==` compares:
`Facts` are made from a `Config`, or from the API's answer about one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

from vsockproxy.config.settings import Config, PumpSettings

TABLES: Final = (
    *("guests", "metrics", "metrics_tls", "metrics_page"),
    *("admin", "limits", "reload", "log"),
)
"""The settings beside the routes that a reload changes; `pump` needs a restart."""


class RouteFacts(NamedTuple):
    """What can change of a route that keeps its name."""

    listen: Any
    targets: Any
    policy: Any


class Facts(NamedTuple):
    """A configuration, as it is compared.

    Attributes:
      routes: by their names.
      tables: the settings of `TABLES`, by their names; a daemon of an older version lacks some.
      pump: the settings of ``[pump]``.
    """

    routes: Mapping[str, RouteFacts]
    tables: Mapping[str, Any]
    pump: Any


@dataclass(frozen=True, slots=True)
class Changes:
    """The names of the routes and settings that differ, in the order of the configurations.

    A route that has moved has another listener; one that is retargeted may have another policy
    too; one that is changed has only another policy.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    retargeted: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self))


def facts_of(config: Config, pump: PumpSettings | None = None) -> Facts:
    """Return a configuration as it is compared; ``pump`` is the one that runs, if not its own."""
    return Facts(
        {
            one.name: RouteFacts(one.listen, (one.target, one.others), one.policy)
            for one in config.routes
        },
        {name: getattr(config, name) for name in TABLES},
        config.pump if pump is None else pump,
    )


def compare(before: Facts, after: Facts) -> Changes:
    """Return what ``after`` changes in ``before``."""
    kept = [
        (name, before.routes[name], facts)
        for name, facts in after.routes.items()
        if name in before.routes
    ]
    stays = [(name, old, new) for name, old, new in kept if old.listen == new.listen]
    aimed = [(name, old, new) for name, old, new in stays if old.targets == new.targets]
    return Changes(
        added=tuple(name for name in after.routes if name not in before.routes),
        removed=tuple(name for name in before.routes if name not in after.routes),
        moved=tuple(name for name, old, new in kept if old.listen != new.listen),
        retargeted=tuple(name for name, old, new in stays if old.targets != new.targets),
        changed=tuple(name for name, old, new in aimed if old.policy != new.policy),
        settings=tuple(name for name, one in before.tables.items() if one != after.tables[name]),
        needs_restart=() if before.pump == after.pump else ("pump",),
    )


_SHOWN: Final = 10  # names of one kind; a range of ports may have thousands


def describe(changes: Mapping[str, Any]) -> list[str]:
    """Return a line for each kind of change, of fields of `Changes` as a mapping."""
    lines = []
    for one in fields(Changes):
        if names := changes.get(one.name):
            lines.append(f"{_WORDS.get(one.name, one.name)}: {listed(names)}")
    return lines or ["no change"]


def listed(names: Sequence[str]) -> str:
    """Return the first names in one line, and how many more there are."""
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])


_WORDS: Final = {"needs_restart": "needs a restart"}
