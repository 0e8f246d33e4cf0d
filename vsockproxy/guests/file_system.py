"""Sources in the file system: a file with a CID, a VMM's socket by a pattern.

Blocks, since a network file system can hang: call it in a thread.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Final

from vsockproxy.bounded_read import read_start
from vsockproxy.guests.answer import GuestError, checked_cid

_LARGEST: Final = 64  # bytes; a CID has ten digits
_SHOWN: Final = 3  # sockets in an error


def read_cid(path: str) -> int:
    """Return the CID in a file, in decimal digits; raise `GuestError`.

    The error quotes nothing of the file: a guest that is added at run time may name any file that
    the daemon can read.
    """
    try:
        data = read_start(path, _LARGEST)
    except FileNotFoundError as error:
        raise GuestError(f"the file {path} does not exist: is the VM running?") from error
    except OSError as error:
        raise GuestError(f"the file {path} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise GuestError(f"the file {path} is empty: is the VM running?")
    if not data.strip().isdigit() or len(data) == _LARGEST:
        raise GuestError(f"the file {path} has no CID, which is a decimal number")
    return checked_cid(data.decode(), f"the file {path}")


def find_socket(pattern: str) -> str:
    """Return the one socket whose path matches a pattern (glob(7)); raise `GuestError`."""
    names = glob.glob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern
    matches = sorted(filter(_is_socket, names))
    if not matches:
        raise GuestError(f"no socket matches {pattern}: is the VM running?")
    if len(matches) > 1:
        shown = ", ".join(matches[:_SHOWN]) + (", ..." if len(matches) > _SHOWN else "")
        raise GuestError(f"{len(matches)} sockets match {pattern}, expected one: {shown}")
    return matches[0]


def _is_socket(name: str) -> bool:
    """Return whether a match is a socket; raise `GuestError` if stat(2) fails."""
    try:
        return Path(name).is_socket()
    except OSError as error:  # its folder may be readable but not searchable
        raise GuestError(f"{name} cannot be examined: {error.strerror}") from error


def is_there(path: str) -> bool:
    """Return whether a path exists and this user can see it; never raise."""
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises for another user's folder
