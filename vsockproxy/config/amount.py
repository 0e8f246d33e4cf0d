"""Counts, sizes and rates as an operator writes them, as plain numbers.

Owns: the units and the bounds.  Must not know which key an amount belongs to.
"""

from __future__ import annotations

import re
from typing import Final

from vsockproxy.config.value import AUTO, OFF, shown
from vsockproxy.errors import VsockproxyError

MOST: Final = 0x7FFFFFFF  # connections, or bytes of a buffer: more than a kernel gives
_MOST_THREADS: Final = 64
_SIZE: Final = re.compile(r"([0-9]{1,12}) ?(B|KiB|MiB|GiB)")
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class AmountError(VsockproxyError, ValueError):
    """The written value is not an amount, or is outside the bounds of its key."""


def parse_number(value: object) -> int:
    """Return a whole number from 1.

    Raises:
      AmountError: the value is not a whole number, or is out of range.
    """
    return _whole(value, f"{shown(value)} is not a whole number")


def parse_threads(value: object) -> int:
    """Return a number of threads, 1 to 64.

    Raises:
      AmountError: as `parse_number`.
    """
    return _whole(value, f"{shown(value)} is not a whole number", most=_MOST_THREADS)


def parse_count(value: object) -> int | None:
    """Return a whole number from 1, or None for ``"off"``.

    Raises:
      AmountError: as `parse_number`.
    """
    if value == OFF:
        return None
    return _whole(value, f'{shown(value)} is not a number: expected a whole number or "off"')


def parse_rate(value: object) -> float | None:
    """Return events per second, fractions allowed, or None for ``"off"``.

    Raises:
      AmountError: the value is not a number, or is out of range.
    """
    if value == OFF:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AmountError(f'{shown(value)} is not a rate: expected a number per second or "off"')
    if not 0.001 <= value <= MOST:  # which no NaN passes
        raise AmountError(f"{shown(value)} is out of range: expected 0.001 to {MOST} per second")
    return float(value)


def parse_size(value: object) -> int | None:
    """Return the bytes of a number or of a text such as ``"256KiB"``; None for ``"auto"``.

    Raises:
      AmountError: the value is not a size, or is out of range.
    """
    return None if value == AUTO else _bytes(value)


def parse_bandwidth(value: object) -> int | None:
    """Return bytes per second, written like a size, or None for ``"off"``.

    Raises:
      AmountError: as `parse_size`.
    """
    return None if value == OFF else _bytes(value)


def _bytes(value: object) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(match[1]) * _UNITS[match[2]] if match else value
    sentence = (
        f'{shown(value)} is not a size: expected a number of bytes or a text such as "256KiB"'
    )
    return _whole(size, sentence, read=value)


def _whole(value: object, sentence: str, *, most: int = MOST, read: object = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise AmountError(sentence)
    if not 1 <= value <= most:
        quoted = shown(value if read is None else read)
        raise AmountError(f"{quoted} is out of range: expected 1 to {most}")
    return value
