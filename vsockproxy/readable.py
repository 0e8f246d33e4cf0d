"""Amounts as people read them."""

from __future__ import annotations

from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(number: float) -> str:
    """Bytes as people read them: ``0 B``, ``1.5 MiB``."""
    unit = 0
    while number >= 1023.95 and unit < len(_UNITS) - 1:
        number /= 1024
        unit += 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{number:.0f} B"


def span(seconds: float) -> str:
    """A time as people read it, in its two largest units: ``0.2s``, ``3m 12s``, ``2d 4h``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for unit, length, below, step in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= length:
            return f"{whole // length}{unit} {whole % length // step}{below}"
    return f"{whole // 60}m {whole % 60}s" if whole >= 60 else f"{whole}s"
