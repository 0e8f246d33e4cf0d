"""Sizes, durations and counts as text, in the same form in every command; foreign text in one line.

Owns: these forms, and the colours of states.  JSON, logs and metrics do not use the first three:
they hold plain numbers of bytes and seconds.
"""

from __future__ import annotations

import codecs
from typing import Final

STATE_STYLES: Final = {
    "paused": "yellow",
    "retrying": "yellow",
    "off": "red",
    "draining": "yellow",
    "drained": "yellow",
    "queued": "red",
    "silent": "yellow",
    "held": "yellow",
    "dialling": "yellow",
}
"""The colours of the states of routes and connections that an operator may have to look at."""

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
    """Return a duration as text: at most seven characters up to 99 days.

    Below a minute it has one unit, and one decimal if the number is below ten: ``340us``,
    ``1.2ms``, ``5.0s``, ``43s``.  From a minute on it has the two largest units: ``3m 12s``,
    ``2d 4h``.  The units are those of the configuration.  Zero and negative values are ``0s``.
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
    """Return a number and its noun, in the plural unless the number is 1: ``2 connections``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


# Looked up at import: the first look-up opens a file, and later no descriptor may be left.
_escape_character: Final = codecs.lookup("unicode_escape").encode


def escape(text: str) -> str:
    r"""Return ``text`` with non-printable characters as Python's escapes: ``\n``, ``\x1b``.

    Names, addresses and answers that a client, a VMM or a file chose can then neither forge a
    line, nor control a terminal, nor turn the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else _escape_character(char)[0].decode() for char in text
    )
