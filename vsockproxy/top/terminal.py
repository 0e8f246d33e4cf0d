"""A terminal whose keys come at once, and what their bytes mean.

Owns: the terminal's mode while `top` runs, and `keys`.  Draws nothing.
"""

from __future__ import annotations

import re
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# ECMA-48, and what xterm sends in its normal and application modes.
KEYS: Final = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b[H": "home",
    b"\x1bOH": "home",
    b"\x1b[1~": "home",
    b"\x1b[F": "end",
    b"\x1bOF": "end",
    b"\x1b[4~": "end",
    b"\x1b[3~": "delete",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
    b"\x03": "interrupt",
}
"""The names of the keys that are no characters."""

_PIECE: Final = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|[\xc0-\xff][\x80-\xbf]*|.", re.DOTALL)


def keys(data: bytes) -> Iterator[str]:
    """The keys in what one read gave: characters, and names; what nobody knows is left out."""
    for piece in _PIECE.findall(data):
        if piece in KEYS:
            yield KEYS[piece]
        elif (character := piece.decode(errors="replace")).isprintable() and len(character) == 1:
            yield character


@contextmanager
def key_by_key(descriptor: int) -> Iterator[None]:
    """Have a terminal give each key at once and show none, as long as the block runs.

    Ctrl-C stays a signal; Ctrl-Z, which would leave the screen to the shell, is none.
    """
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    mode = termios.tcgetattr(descriptor)
    mode[6][termios.VSUSP] = b"\0"  # _POSIX_VDISABLE
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)
    try:
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
