"""Endpoints for the socket module: a family, an address, a new socket.

Owns: how a host or a path is written there, and a peer's address for people.
Connects and binds nothing: `dial.dial` and `listen.bind` do.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vsockproxy.address.endpoint import (
    AF_VSOCK,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)

Address = tuple[int, tuple[Any, ...]]
"""A family, and the address as the socket module has it for that family."""

NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""The errno of the kernel for ::1 on a machine without IPv6."""

_NONBLOCK: Final[int] = getattr(socket, "SOCK_NONBLOCK", 0)  # Linux's; saves a system call
# Behind the family, which is the host's order; what follows is the network's.
_SOCKADDR_IN: Final = struct.Struct("!H4s")
_SOCKADDR_IN6: Final = struct.Struct("!HI16s")
_SCOPE: Final = struct.Struct("=I")
_IPV4: Final = re.compile(r"[0-9.]+")


def new_socket(family: int) -> socket.socket:
    """Return a new non-blocking stream socket of a family; the caller closes it.

    Raises:
      OSError: of socket(2), such as EMFILE, or EAFNOSUPPORT for a family that the kernel lacks.
    """
    sock = socket.socket(family, socket.SOCK_STREAM | _NONBLOCK)
    if not _NONBLOCK:
        sock.setblocking(False)
    return sock


@contextmanager
def borrowed(descriptor: int, family: int = -1) -> Iterator[socket.socket]:
    """Lend a stream socket's descriptor to a socket object while the block runs.

    The descriptor stays its owner's, open, also if the block raises. Without ``family`` the kernel
    is asked for it.

    Raises:
      OSError: the descriptor is not a socket's.
    """
    if family == -1:
        sock = socket.socket(fileno=descriptor)
    else:
        sock = socket.socket(family, socket.SOCK_STREAM, 0, descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def literal_addresses(endpoint: TcpEndpoint) -> list[Address] | None:
    """Return the addresses of an endpoint; None if its name must be resolved."""
    host, port = endpoint.host, endpoint.port
    if host is None:
        return [(socket.AF_INET, ("127.0.0.1", port)), (socket.AF_INET6, ("::1", port))]
    if _IPV4.fullmatch(host):
        return [(socket.AF_INET, (host, port))]
    # The socket module drops a scope (fe80::1%eth0) that getaddrinfo turns into a number.
    if ":" in host and "%" not in host:
        return [(socket.AF_INET6, (host, port))]
    return None


def distinct_addresses(found: Sequence[tuple[Any, ...]]) -> list[Address]:
    """Return the results of getaddrinfo, in its order, each address once."""
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def unresolved(endpoint: TcpEndpoint, error: Exception) -> str:
    """Return the sentence for a name that getaddrinfo, or IDNA before it, has rejected."""
    cause = error.strerror if isinstance(error, OSError) else error
    return f"the host name {endpoint.host!r} does not resolve: {cause}"


def socket_file(endpoint: ListenEndpoint) -> Path | None:
    """Return the file that clients of an endpoint connect to; None where it has none."""
    if isinstance(endpoint, MuxEndpoint):
        return Path(endpoint.listen_path)
    if isinstance(endpoint, UnixEndpoint) and not endpoint.path.startswith("@"):
        return Path(endpoint.path)
    return None


def unix_address(path: str) -> str:
    """Return a Unix endpoint's path for bind and connect: ``@`` is the abstract namespace's NUL."""
    return "\0" + path[1:] if path.startswith("@") else path


def errno_of(error: OSError) -> int:
    """Return the errno of an OSError; EIO if Python raised it without one."""
    return error.errno or errno.EIO


def address_of(family: int, raw: bytes) -> Any:
    """Return the address in a ``struct sockaddr``, as the socket module has it."""
    if family == socket.AF_INET:
        port, host = _SOCKADDR_IN.unpack_from(raw, 2)
        return socket.inet_ntop(family, host), port
    if family == socket.AF_INET6:
        port, flow, host = _SOCKADDR_IN6.unpack_from(raw, 2)
        [scope] = _SCOPE.unpack_from(raw, 2 + _SOCKADDR_IN6.size)
        return socket.inet_ntop(family, host), port, flow, scope
    if family == AF_VSOCK:
        peer = VsockEndpoint.from_sockaddr(raw)
        return peer.cid, peer.port
    return ""


def packed(family: int, address: Any) -> bytes:
    """Return the ``struct sockaddr`` of a Unix path or a TCP address, as the kernel reads it."""
    head = family.to_bytes(2, sys.byteorder)
    if family == socket.AF_UNIX:
        path = os.fsencode(address)
        return head + path if path.startswith(b"\0") else head + path + b"\0"
    raw = socket.inet_pton(family, address[0])
    if family == socket.AF_INET:
        return head + _SOCKADDR_IN.pack(address[1], raw) + bytes(8)
    return head + _SOCKADDR_IN6.pack(address[1], 0, raw) + _SCOPE.pack(0)


def peer_name(family: int, address: Any) -> str:
    """Return the peer's address from accept, for people: ``[::1]:5000``, ``vsock:3:1025``."""
    if family == socket.AF_INET:
        return f"{address[0]}:{address[1]}"
    if family == socket.AF_INET6:
        return f"[{address[0]}]:{address[1]}"
    if family == AF_VSOCK:
        return f"vsock:{address[0]}:{address[1]}"
    return "unix"
