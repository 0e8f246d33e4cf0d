"""What a table of ``[guests]`` means: the one way to the guest that is written there.

Owns: which keys of a guest go together, and the ways that they make.  `load` says where the
table stands.
"""

from __future__ import annotations

from typing import Final

from vsockproxy.config.schema import GuestTable
from vsockproxy.endpoint import check_absolute
from vsockproxy.errors import AddressError
from vsockproxy.guest import PORT_MARK, Cid, Guest, Mux, UnixSockets

_WAYS: Final = ("cid", "mux", "unix")
_WANTED: Final = f'write one of cid = 3, mux = "PATH", unix = "PATH_{PORT_MARK}"'


class WrongKeyError(AddressError):
    """A key of a guest's table cannot be meant; ``key`` is empty for the table as a whole."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


def read_guest(name: str, table: GuestTable) -> Guest:
    """The guest that a table describes; raises `WrongKeyError`."""
    ways = [key for key in _WAYS if key in table.model_fields_set]
    if len(ways) != 1:
        read = f"has {' and '.join(ways)}" if ways else "has no way to be reached"
        raise WrongKeyError("", f"{read}: {_WANTED}")
    if table.unix is not None and PORT_MARK not in table.unix:
        raise WrongKeyError("unix", f"{table.unix!r} has no {PORT_MARK}: each port is a socket")
    if table.to_host and table.cid is None:
        raise WrongKeyError("to_host", "is for a guest with a cid")
    if "handshake" in table.model_fields_set and table.mux is None:
        raise WrongKeyError("handshake", "is for a guest with a mux")
    for key in ("mux", "unix"):
        _check_absolute(key, getattr(table, key))
    return Guest(name, _way(table))


def _check_absolute(key: str, path: str | None) -> None:
    try:
        check_absolute(path or "/")
    except AddressError as error:
        raise WrongKeyError(key, str(error)) from error


def _way(table: GuestTable) -> Cid | Mux | UnixSockets:
    if table.cid is not None:
        return Cid(table.cid, table.to_host)
    if table.mux is not None:
        return Mux(table.mux, table.handshake)
    assert table.unix is not None
    return UnixSockets(table.unix)
