"""Amounts for people: sizes, durations and counts, in the same form in every command.

Owns: the three forms.  Programs get plain numbers instead: JSON, logs and metrics have bytes
and seconds.
"""

from __future__ import annotations

from typing import Final

_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BELOW_A_SECOND: Final = (("us", 1e-6), ("ms", 1e-3))
_ABOVE_A_MINUTE: Final = (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1))


def size(number: float) -> str:
    """Return a number of bytes with its unit: ``0 B``, ``1.5 MiB``."""
    unit = 0
    while number >= 1023.95 and unit < len(_SIZES) - 1:
        number /= 1024
        unit += 1
    return f"{number:.1f} {_SIZES[unit]}" if unit else f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Return a length of time in at most seven characters, up to 99 days.

    Below a minute it has one unit, and one decimal if the number is below ten: ``340us``,
    ``1.2ms``, ``5.0s``, ``43s``.  From a minute on it has the two largest units: ``3m 12s``,
    ``2d 4h``.  The units are those of the configuration; nothing, and less, is ``0s``.
    """
    if seconds <= 0:
        return "0s"
    for unit, length in _BELOW_A_SECOND:
        if seconds < 999.5 * length:
            return _short(seconds / length, unit)
    whole = round(seconds)
    for unit, length, below, step in _ABOVE_A_MINUTE:
        if whole >= length:
            return f"{whole // length}{unit} {whole % length // step}{below}"
    return _short(seconds, "s")


def _short(number: float, unit: str) -> str:
    return f"{number:.1f}{unit}" if number < 9.95 else f"{number:.0f}{unit}"


def count(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural unless it is one: ``2 connections``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
