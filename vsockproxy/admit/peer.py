"""The peer of a socket: its address, or for a Unix socket its user.

Owns: the step from what the kernel knows to `access.Peer`.  Applies no rule.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any, Final

from vsockproxy.address.endpoint import AF_VSOCK
from vsockproxy.address.sockaddr import borrowed
from vsockproxy.config.access import Peer, ip_of

# unix(7) and asm-generic/socket.h; the second is not in the socket module.
_PEERCRED: Final[int] = getattr(socket, "SO_PEERCRED", 17)
_PEERGROUPS: Final = 59
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_GID: Final = struct.Struct("=I")
_MOST_GROUPS: Final = 1024 // _GID.size  # CPython's getsockopt reads no more


def peer_at(family: int, address: Any) -> Peer:
    """Return the peer for an address of accept or of a PROXY header."""
    if family in (socket.AF_INET, socket.AF_INET6):
        return Peer(ip=ip_of(address[0]))
    if family == AF_VSOCK:
        return Peer(cid=address[0])
    return Peer()


def peer_of(client: int, family: int, address: Any) -> Peer:
    """Return the peer of an accepted client; an empty one if the kernel does not tell.

    ``client`` is its socket's descriptor, which stays the caller's.

    A Unix client has the user that it had when it connected; of more than 256 supplementary
    groups only the primary one counts.
    """
    if family != getattr(socket, "AF_UNIX", None):
        return peer_at(family, address)
    with borrowed(client, family) as sock:
        return _user_of(sock)


def pid_of(client: socket.socket) -> int | None:
    """Return the process that connected a Unix client, which may have ended; None if unknown."""
    with suppress(OSError):
        return _credentials(client)[0]
    return None


def _user_of(sock: socket.socket) -> Peer:
    with suppress(OSError):
        _, uid, gid = _credentials(sock)
        return Peer(uid=uid, gids=frozenset({gid, *_groups(sock)}))
    return Peer()


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return the pid, uid and gid of a Unix client; raises `OSError`."""
    raw = sock.getsockopt(socket.SOL_SOCKET, _PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def _groups(sock: socket.socket) -> list[int]:
    with suppress(OSError):  # before Linux 4.13, or more of them than fit
        raw = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, _MOST_GROUPS * _GID.size)
        return [gid for (gid,) in _GID.iter_unpack(raw)]
    return []
