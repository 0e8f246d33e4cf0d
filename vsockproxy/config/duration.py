"""A length of time as an operator writes it, in seconds.

Owns: the units and the bounds.  Knows nothing of which key a duration belongs to.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from vsockproxy.errors import VsockproxyError

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
OFF: Final = "off"
AUTO: Final = "auto"

_SHORTEST: Final = 0.001  # what poll(2) and epoll(7) can tell from nothing
_LONGEST: Final = 366 * 86400.0
_TEXT: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)")


class DurationError(VsockproxyError, ValueError):
    """What is written is no duration, or none that can stand in that place."""


def parse_duration(value: object) -> float:
    """The seconds of a number, or of a text such as ``"250ms"``, ``"30s"`` or ``"1.5h"``.

    Zero is allowed.  Raises `DurationError` with what was read and what is wanted.
    """
    seconds = _seconds(value)
    if seconds is None or math.isnan(seconds) or seconds < 0:
        raise DurationError(
            f'{shown(value)} is no duration: write seconds, or a text such as "250ms", "30s", "5m"'
        )
    if 0 < seconds < _SHORTEST or seconds > _LONGEST:
        raise DurationError(f"{shown(value)} is no usable duration: 1 ms to 366 days")
    return seconds


def parse_bound(value: object) -> float | None:
    """A duration that may be none at all: ``0`` and ``"off"`` are None."""
    if value == OFF:
        return None
    return parse_duration(value) or None


def parse_timeout(value: object) -> float:
    """A duration that cannot be nothing."""
    seconds = 0.0 if value == OFF else parse_duration(value)
    if not seconds:
        raise DurationError(f"{shown(value)} cannot stand here: this time must have an end")
    return seconds


def parse_keepalive(value: object) -> float | Literal["auto"] | None:
    """`parse_bound` within what TCP_KEEPIDLE takes (tcp(7)), or ``"auto"``."""
    return AUTO if value == AUTO else _bounded(value, 1.0, 32767.0, "1 s to 9 h")


def parse_user_timeout(value: object) -> float | None:
    """`parse_bound` within what TCP_USER_TIMEOUT takes, in milliseconds of 31 bits."""
    return _bounded(value, _SHORTEST, 24 * 86400.0, "1 ms to 24 days")


def _bounded(value: object, least: float, most: float, words: str) -> float | None:
    seconds = parse_bound(value)
    if seconds is not None and not least <= seconds <= most:
        raise DurationError(f"{shown(value)} cannot stand here: the kernel takes {words}")
    return seconds


def shown(value: object) -> str:
    """A value as a file has it, cut short: what an error says was read."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > _WIDEST:
        return "a huge number"  # Python refuses to print some of them
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


_WIDEST: Final = 80


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if value <= _LONGEST else math.inf  # an int may be too big to convert
    match = _TEXT.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * UNITS[match[2]] if match else None
