"""What stands in the file system: a file with a CID, a VMM's socket by a pattern.

Blocks: a network's file system can hang, so this is for a thread.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Final

from vsockproxy.guests.answer import GuestError, checked_cid

_LARGEST: Final = 64  # bytes; a CID has ten digits
_SHOWN: Final = 3  # of too many matches


def read_cid(path: str) -> int:
    """The CID in a file, in decimal digits; raises `GuestError`."""
    try:
        # Not to wait for the writer of a FIFO: it has nothing to say now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            data = os.read(descriptor, _LARGEST)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise GuestError(f"the file {path} does not exist: is the VM running?") from error
    except OSError as error:
        raise GuestError(f"the file {path} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise GuestError(f"the file {path} is empty: is the VM running?")
    return checked_cid(data.decode(errors="replace"), f"the file {path}")


def find_socket(pattern: str) -> str:
    """The one socket whose path matches a pattern (glob(7)); raises `GuestError`."""
    names = glob.glob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern
    matches = sorted(filter(_is_socket, names))
    if not matches:
        raise GuestError(f"no socket matches {pattern}: is the VM running?")
    if len(matches) > 1:
        shown = ", ".join(matches[:_SHOWN]) + (", ..." if len(matches) > _SHOWN else "")
        raise GuestError(f"{len(matches)} sockets match {pattern}, one is wanted: {shown}")
    return matches[0]


def _is_socket(name: str) -> bool:
    """Whether a match is a socket; raises `GuestError` where that cannot be found out."""
    try:
        return Path(name).is_socket()
    except OSError as error:  # its folder may be read and not searched
        raise GuestError(f"{name} cannot be looked at: {error.strerror}") from error


def is_there(path: str) -> bool:
    """Whether there is something at a path that this user can see; never raises."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for another user's folder
