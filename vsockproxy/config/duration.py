"""Durations as an operator writes them, in seconds.

Owns: the units and the bounds.  Must not know which key a duration belongs to.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from vsockproxy.config.value import AUTO, OFF, shown
from vsockproxy.errors import VsockproxyError

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_SHORTEST: Final = 0.001  # the resolution of poll(2) and epoll(7)
_LONGEST: Final = 366 * 86400.0
_TEXT: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?(ms|s|m|h|d)")


class DurationError(VsockproxyError, ValueError):
    """The written value is not a duration, or is outside the bounds of its key."""


def parse_duration(value: object) -> float:
    """Return the seconds of a number, or of a text such as ``"250ms"``, ``"30s"``, ``"1.5h"``.

    Zero is allowed.

    Raises:
      DurationError: the value is not a duration, or is not 1 ms to 366 days.
    """
    seconds = _seconds(value)
    if seconds is None or math.isnan(seconds) or seconds < 0:
        raise DurationError(
            f"{shown(value)} is not a duration:"
            ' use a number of seconds or a unit, as in "250ms", "30s" or "5m"'
        )
    if 0 < seconds < _SHORTEST or seconds > _LONGEST:
        raise DurationError(f"{shown(value)} is out of range: expected 1 ms to 366 days")
    return seconds


def parse_bound(value: object) -> float | None:
    """Return the seconds of a duration; None for ``0`` and ``"off"``, which set no bound.

    Raises:
      DurationError: as `parse_duration`.
    """
    if value == OFF:
        return None
    return parse_duration(value) or None


def parse_timeout(value: object) -> float:
    """Return the seconds of a duration that must have an end: not ``0`` and not ``"off"``.

    Raises:
      DurationError: as `parse_duration`, and for these two.
    """
    seconds = 0.0 if value == OFF else parse_duration(value)
    if not seconds:
        raise DurationError(f"{shown(value)} is not allowed here: this timeout cannot be off")
    return seconds


def parse_keepalive(value: object) -> float | Literal["auto"] | None:
    """Return `parse_bound` within the range of TCP_KEEPIDLE (tcp(7)), or ``"auto"``.

    Raises:
      DurationError: as `parse_duration`, and outside 1 s to 9 h.
    """
    return AUTO if value == AUTO else _bounded(value, 1.0, 32767.0, "1 s to 9 h")


def parse_user_timeout(value: object) -> float | None:
    """Return `parse_bound` within the range of TCP_USER_TIMEOUT: milliseconds in 31 bits.

    Raises:
      DurationError: as `parse_duration`, and outside 1 ms to 24 days.
    """
    return _bounded(value, _SHORTEST, 24 * 86400.0, "1 ms to 24 days")


def write_duration(seconds: float) -> str:
    """Return a duration in the largest unit that divides it: ``5m``; `parse_duration` reads it."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / UNITS[unit]
        if count and count.is_integer():
            return f"{count:.0f}{unit}"
    return f"{seconds:g}s"


def _bounded(value: object, least: float, most: float, words: str) -> float | None:
    seconds = parse_bound(value)
    if seconds is not None and not least <= seconds <= most:
        raise DurationError(f"{shown(value)} is out of range: the kernel accepts {words}")
    return seconds


def _seconds(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if value <= _LONGEST else math.inf  # an int may be too big to convert
    match = _TEXT.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * UNITS[match[2]] if match else None
