"""Keys of a terminal: its mode while `top` runs, and the bytes that each key sends.

Owns: the terminal's mode, and `keys`.  Draws nothing.
"""

from __future__ import annotations

import re
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

# ECMA-48, and the sequences of xterm in normal and application mode.
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
    b"\t": "tab",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
    b"\x03": "interrupt",
}
"""The names of the keys that do not produce a character."""

_PIECE: Final = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|[\xc0-\xff][\x80-\xbf]*|.", re.DOTALL)


def keys(data: bytes) -> Iterator[str]:
    """Yield the keys in the bytes of one read(2): characters and names; skip unknown sequences."""
    for piece in _PIECE.findall(data):
        if piece in KEYS:
            yield KEYS[piece]
        elif (character := piece.decode(errors="replace")).isprintable() and len(character) == 1:
            yield character


@contextmanager
def key_by_key(descriptor: int) -> Iterator[None]:
    """Put a terminal into cbreak mode without echo, and restore its mode afterwards.

    Ctrl-C still sends SIGINT.  Ctrl-Z is disabled: the shell would get a terminal in cbreak mode.
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
