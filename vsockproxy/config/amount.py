"""Counts, sizes and rates as an operator writes them, as plain numbers.

Owns: the units and the bounds.  Knows nothing of which key an amount belongs to.
"""

from __future__ import annotations

import re
from typing import Final

from vsockproxy.config.duration import AUTO, OFF, shown
from vsockproxy.errors import VsockproxyError

_MOST: Final = 0x7FFFFFFF  # connections, or bytes of a buffer: more than a kernel gives
_SIZE: Final = re.compile(r"([0-9]{1,12}) ?(B|KiB|MiB|GiB)")
_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class AmountError(VsockproxyError, ValueError):
    """What is written is no amount, or none that can stand in that place."""


def parse_count(value: object) -> int | None:
    """A whole number from 1, or None for ``"off"``; raises `AmountError`."""
    if value == OFF:
        return None
    return _whole(value, f'{shown(value)} is no number: write a whole number, or "off"')


def parse_rate(value: object) -> float | None:
    """How often in a second, fractions allowed, or None for ``"off"``; raises `AmountError`."""
    if value == OFF:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise AmountError(f'{shown(value)} is no rate: write how many in a second, or "off"')
    if not 0.001 <= value <= _MOST:  # which no NaN passes
        raise AmountError(f"{shown(value)} is no usable rate: 0.001 to {_MOST} in a second")
    return float(value)


def parse_size(value: object) -> int | None:
    """The bytes of a number or of a text such as ``"256KiB"``, or None for ``"auto"``.

    Raises `AmountError` with what was read and what is wanted.
    """
    return None if value == AUTO else _bytes(value)


def parse_bandwidth(value: object) -> int | None:
    """Bytes in a second, written like a size, or None for ``"off"``; raises `AmountError`."""
    return None if value == OFF else _bytes(value)


def _bytes(value: object) -> int:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(match[1]) * _UNITS[match[2]] if match else value
    return _whole(
        size, f'{shown(value)} is no size: write bytes, or a text such as "256KiB"', value
    )


def _whole(value: object, sentence: str, read: object = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise AmountError(sentence)
    if not 1 <= value <= _MOST:
        raise AmountError(f"{shown(value if read is None else read)} is not between 1 and {_MOST}")
    return value
