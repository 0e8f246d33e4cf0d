"""``[admin] may``: what users and groups may do at the control socket, as values.

Owns: the levels, and the grammar of a grant.  Reads no socket: `admin.permission` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from vsockproxy.config.access import GroupRule, Peer, UserRule, parse_rule
from vsockproxy.config.value import parse_list, shown

Level = Literal["read", "steer", "change"]
"""What an operation does; each level includes those before it.

``read`` shows; ``steer`` ends connections, stops and resumes routes, and reloads the files;
``change`` adds, replaces and removes routes and guests, and so reaches any address.
"""

LEVELS: Final[tuple[Level, ...]] = get_args(Level)

_EXAMPLE: Final = '["read gid:monitoring", "change uid:orchestrator"]'


@dataclass(frozen=True, slots=True)
class Grant:
    """A level for a user or a group."""

    level: Level
    rule: UserRule | GroupRule

    def allows(self, peer: Peer, level: Level) -> bool:
        """Return whether it allows a client an operation of this level."""
        return LEVELS.index(level) <= LEVELS.index(self.level) and self.rule.matches(peer)

    def __str__(self) -> str:
        return f"{self.level} {self.rule}"


def parse_may(value: object) -> tuple[Grant, ...]:
    """Return the grants in a list of texts; an empty list grants nothing.

    Raises:
      ValueError: the value is not a list, or items of it are not grants.
    """
    return parse_list(value, _parse_grant, _EXAMPLE)


def _parse_grant(item: object) -> Grant:
    words = item.split() if isinstance(item, str) else []
    level = next((one for one in LEVELS if words[:1] == [one]), None)
    rule = parse_rule(words[1]) if level and len(words) == 2 else None
    if level is None or not isinstance(rule, UserRule | GroupRule):
        raise ValueError(
            f"{shown(item)} is not a permission: expected read, steer or change, and uid:USER or"
            f" gid:GROUP, as in {_EXAMPLE}"
        )
    return Grant(level, rule)
