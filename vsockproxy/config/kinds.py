"""The kinds of values that keys of the configuration take.

Owns: for each kind, its parser, the reverse, and the words that name it in the docs.  A boolean
or one of several words needs no kind: the type of its field says it all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from vsockproxy.config.access import parse_allow, parse_rules
from vsockproxy.config.amount import (
    parse_bandwidth,
    parse_count,
    parse_number,
    parse_rate,
    parse_size,
    parse_threads,
)
from vsockproxy.config.destination import parse_patterns, parse_target_allow
from vsockproxy.config.duration import (
    parse_bound,
    parse_duration,
    parse_keepalive,
    parse_timeout,
    parse_user_timeout,
    write_duration,
)
from vsockproxy.config.permission import parse_may
from vsockproxy.config.unix_users import parse_group, parse_mode, parse_owner, write_mode
from vsockproxy.config.value import AUTO, OFF


def _write_number(value: float) -> str:
    return f"{value:g}"


def _write_list(items: Iterable[object]) -> str:
    return ",".join(map(str, items))


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key's value may be: in the docs' words, and as a parser of the written value.

    Attributes:
      parse: returns the value, or raises ValueError with a sentence for the operator.
      none: how an operator writes the value None.
      write: returns a parsed value as `parse` reads it; the items of a list with commas.
    """

    words: str
    parse: Callable[[object], object]
    none: str = OFF
    write: Callable[[Any], str] = str

    def written(self, value: object) -> str:
        """Return a parsed value as an operator writes it, without quotes."""
        if value is None:
            return self.none
        return value if isinstance(value, str) else self.write(value)


TIME: Final = Kind("time", parse_duration, write=write_duration)
TIMEOUT: Final = Kind("time", parse_timeout, write=write_duration)
BOUND: Final = Kind('time or "off"', parse_bound, write=write_duration)
KEEPALIVE: Final = Kind('time, "auto" or "off"', parse_keepalive, write=write_duration)
USER_TIMEOUT: Final = Kind('time or "off"', parse_user_timeout, write=write_duration)
NUMBER: Final = Kind("whole number", parse_number)
THREADS: Final = Kind("whole number", parse_threads)
COUNT: Final = Kind('whole number or "off"', parse_count)
RATE: Final = Kind('number or "off"', parse_rate, write=_write_number)
SIZE: Final = Kind('size or "auto"', parse_size, none=AUTO)
BANDWIDTH: Final = Kind('size or "off"', parse_bandwidth)
RULES: Final = Kind("rules", parse_rules, write=_write_list)
ALLOW: Final = Kind('rules or "off"', parse_allow, write=_write_list)
PATTERNS: Final = Kind("patterns", parse_patterns, write=_write_list)
TARGET_ALLOW: Final = Kind('patterns or "off"', parse_target_allow, write=_write_list)
PERMISSIONS: Final = Kind("permissions", parse_may, write=_write_list)
MODE: Final = Kind('text or "auto"', parse_mode, none=AUTO, write=write_mode)
OWNER: Final = Kind('user or "auto"', parse_owner, none=AUTO)
GROUP: Final = Kind('group or "auto"', parse_group, none=AUTO)
