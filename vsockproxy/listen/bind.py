"""Bind listeners: a socket for each address of an endpoint.

Owns: `listen` and `ListeningSocket`. Knows no route, and accepts nothing. The files of Unix
sockets are `socket_file`'s.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import (
    AF_VSOCK,
    CID_ANY,
    FdEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.address.sockaddr import (
    NO_IPV6,
    Address,
    errno_of,
    literal_addresses,
    new_socket,
    peer_name,
    socket_file,
    unix_address,
)
from vsockproxy.config.settings import Policy
from vsockproxy.dial.sockopt import apply, listener_options
from vsockproxy.errors import ListenError, listen_error
from vsockproxy.listen.intake import stop_intake
from vsockproxy.listen.socket_file import SocketFile, bind_file

_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with
_PORT_TRIES: Final = 16  # for one free port on two addresses; the second try nearly always has it


@dataclass(frozen=True, slots=True, eq=False)
class ListeningSocket:
    """A listening socket and its real endpoint.

    The endpoint has an address and a port where the configuration has a name, a bare port or port
    0. The owner closes it, once no task waits for it.
    """

    sock: socket.socket
    endpoint: ListenEndpoint
    _file: SocketFile | None = None

    @classmethod
    def restored(cls, sock: socket.socket, endpoint: ListenEndpoint) -> ListeningSocket:
        """Return a listener that another process opened at ``endpoint`` and left to this one."""
        path = socket_file(endpoint)
        if path is not None:
            with suppress(OSError):  # the file was removed
                return cls(sock, endpoint, SocketFile.found(path))
        if isinstance(endpoint, TcpEndpoint):
            return cls(sock, TcpEndpoint(*sock.getsockname()[:2]))
        return cls(sock, endpoint)

    def is_at(self, endpoint: ListenEndpoint) -> bool:
        """Return whether the socket has an endpoint's file, or its vsock or TCP port."""
        match self.endpoint, endpoint:
            case TcpEndpoint(port=port), TcpEndpoint():
                return port == endpoint.port
            case VsockEndpoint(cid=cid, port=port), VsockEndpoint():
                return (cid, port) == (endpoint.cid, endpoint.port)
            case ((UnixEndpoint() | MuxEndpoint()), (UnixEndpoint() | MuxEndpoint())):
                return socket_file(self.endpoint) == socket_file(endpoint) is not None
        return False

    def configure(self, policy: Policy) -> None:
        """Set a policy's socket options, and the owner, group and mode of the socket's file.

        They hold for clients that connect from now on. Raises `ListenError`.
        """
        try:
            apply(self.sock, self.sock.family, listener_options(policy))
        except OSError as error:
            raise listen_error(self.endpoint, errno_of(error)) from error
        if self._file is not None:
            self._file.give(self.endpoint, policy)

    def close(self) -> None:
        """Close the socket, and remove its file unless another process has replaced it."""
        if self._file is not None and self.sock.fileno() >= 0:
            self._file.remove()
        self.leave()

    def end(self, accept: Callable[[socket.socket], object]) -> None:
        """Close the socket once ``accept``, called twice, has accepted the clients in its backlog.

        The file is removed first, and no client can come after the last accept, except on vsock.
        """
        if self._file is not None:
            self._file.remove()
        accept(self.sock)
        stop_intake(self.sock)
        accept(self.sock)
        self.close()

    def leave(self) -> None:
        """Close the socket and keep its file, at which the next process goes on to listen."""
        if self._file is not None and self.sock.fileno() >= 0:
            self._file.close()
        self.sock.close()


def listen(
    endpoint: ListenEndpoint,
    backlog: int,
    inherited: Mapping[str, Sequence[socket.socket]],
    policy: Policy = Policy(),  # noqa: B008 - it is frozen
    *,
    spare: Sequence[ListeningSocket] = (),
    resolved: Sequence[Address] = (),
) -> list[ListeningSocket]:
    """Listen at an endpoint: return a socket for each address of its host, owned by the caller.

    Args:
      backlog: listen(2)'s; the kernel caps it at net.core.somaxconn.
      inherited: systemd's sockets by name; ``fd:NAME`` gets duplicates, these stay the caller's.
      policy: the socket options, and a socket file's owner, group and mode, which are set before
        a client can connect.
      spare: the caller's own sockets at the endpoint's port or file (`ListeningSocket.is_at`) that
        no other endpoint needs. Those at the endpoint's addresses are among the returned ones,
        with the clients in their backlogs, and unchanged. TCP addresses may overlap the others
        (Linux).
      resolved: the addresses of a TCP endpoint's host name: `names` looks them up.

    A Unix socket's file is replaced if it belongs to this user, or to the policy's owner, and no
    process listens there.

    Raises:
      ListenError: nothing stays open, but ``spare`` as it was.
    """
    if spare and not isinstance(endpoint, TcpEndpoint):
        return [replace(one, endpoint=endpoint) for one in spare]
    try:
        match endpoint:
            case TcpEndpoint():
                addresses = literal_addresses(endpoint) or resolved
                if not addresses:
                    raise ListenError(endpoint, "name", f"{endpoint.host!r} has no address")
                kept = _within(addresses, spare)
                bound = _listen_tcp(endpoint, _without(addresses, kept), backlog, spare)
                return [*_configured(bound, policy), *kept]
            case VsockEndpoint():
                return _configured([_listen_vsock(endpoint, backlog)], policy)
            case UnixEndpoint() | MuxEndpoint():
                return [_listen_unix(endpoint, backlog, policy)]
            case FdEndpoint():
                return _configured(_listen_inherited(endpoint, inherited), policy)
    except OSError as error:
        raise listen_error(endpoint, errno_of(error)) from error


def _configured(listeners: list[ListeningSocket], policy: Policy) -> list[ListeningSocket]:
    with ExitStack() as undo:
        for listening in listeners:
            undo.callback(listening.close)
        for listening in listeners:
            listening.configure(policy)
        undo.pop_all()
    return listeners


def _within(
    addresses: Sequence[Address], spare: Sequence[ListeningSocket]
) -> list[ListeningSocket]:
    """Return the sockets that are bound to one of the addresses, or to a part of a wildcard."""
    hosts = {(family, address[0]) for family, address in addresses}
    wild = {family for family, host in hosts if host in _WILDCARDS}
    return [one for one in spare if one.sock.family in wild or _host(one) in hosts]


def _without(addresses: Sequence[Address], kept: Sequence[ListeningSocket]) -> list[Address]:
    """Return the addresses to which none of the sockets is bound."""
    taken = {_host(one) for one in kept}
    return [(family, address) for family, address in addresses if (family, address[0]) not in taken]


def _host(listening: ListeningSocket) -> tuple[int, str]:
    return listening.sock.family, listening.sock.getsockname()[0]


def _listen_tcp(
    endpoint: TcpEndpoint,
    addresses: Sequence[Address],
    backlog: int,
    leaving: Sequence[ListeningSocket],
) -> list[ListeningSocket]:
    for _ in range(_PORT_TRIES - 1):
        with suppress(_PortTakenError):
            return _bind_all(endpoint, addresses, backlog, leaving)
    return _bind_all(endpoint, addresses, backlog, leaving)


class _PortTakenError(OSError):
    """Another process has the port that the kernel chose, on another of the addresses."""


def _bind_all(
    endpoint: TcpEndpoint,
    addresses: Sequence[Address],
    backlog: int,
    leaving: Sequence[ListeningSocket],
) -> list[ListeningSocket]:
    port = endpoint.port
    with ExitStack() as undo:
        bound: list[ListeningSocket] = []
        for family, (host, _, *rest) in addresses:
            try:
                sock = _listening(family, (host, port, *rest), backlog, leaving)
            except OSError as error:
                if endpoint.host != host == "::1" and error.errno in NO_IPV6:
                    continue
                if error.errno == errno.EADDRINUSE and endpoint.port == 0:
                    raise _PortTakenError(error.errno, error.strerror) from error
                if len(addresses) > 1:
                    raise _listen_error_at(endpoint, (family, (host, port)), error) from error
                raise
            undo.callback(sock.close)
            name, port = sock.getsockname()[:2]
            bound.append(ListeningSocket(sock, TcpEndpoint(name, port)))
        undo.pop_all()
    return bound


def _listen_error_at(endpoint: TcpEndpoint, address: Address, error: OSError) -> ListenError:
    """Return the error of an endpoint with several addresses, which names the address."""
    found = listen_error(endpoint, errno_of(error))
    sentence = f"{peer_name(*address)}: {found.explanation}"
    return ListenError(endpoint, found.reason, sentence, error.errno, remedy=found.remedy)


def _listening(
    family: int, address: Any, backlog: int, leaving: Sequence[ListeningSocket] = ()
) -> socket.socket:
    # Linux lets listeners of one user overlap if all have SO_REUSEPORT while the last one is bound
    # (socket(7)). It is reset afterwards, so that a second daemon of this user still gets
    # EADDRINUSE.
    with ExitStack() as undo:
        for one in leaving:
            undo.callback(_share_port, one.sock, False)
            _share_port(one.sock, True)
        sock = _bound(family, address, share=bool(leaving))
        try:
            sock.listen(backlog)
            if leaving:
                _share_port(sock, False)
        except BaseException:
            sock.close()
            raise
    return sock


def _share_port(sock: socket.socket, share: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)


def _bound(family: int, address: Any, *, share: bool = False) -> socket.socket:
    sock = new_socket(family)
    try:
        if family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            _share_port(sock, True)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _listen_vsock(endpoint: VsockEndpoint, backlog: int) -> ListeningSocket:
    if not hasattr(socket, "AF_VSOCK"):
        raise listen_error(endpoint, "no_vsock")
    sock = _listening(AF_VSOCK, (endpoint.cid, endpoint.port), backlog)
    return ListeningSocket(sock, replace(endpoint, port=sock.getsockname()[1]))


def _listen_unix(
    endpoint: UnixEndpoint | MuxEndpoint, backlog: int, policy: Policy
) -> ListeningSocket:
    path = socket_file(endpoint)
    sock = new_socket(socket.AF_UNIX)
    try:
        apply(sock, sock.family, listener_options(policy))
        if path is not None:
            return ListeningSocket(sock, endpoint, bind_file(sock, endpoint, path, backlog, policy))
        assert isinstance(endpoint, UnixEndpoint)
        sock.bind(unix_address(endpoint.path))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return ListeningSocket(sock, endpoint)


def _listen_inherited(
    endpoint: FdEndpoint, inherited: Mapping[str, Sequence[socket.socket]]
) -> list[ListeningSocket]:
    given = inherited.get(endpoint.name)
    if not given:
        names = ", ".join(sorted(inherited)) or "none"
        sentence = f"systemd passed no socket of this name: it passed {names}"
        raise ListenError(endpoint, "not_found", sentence)
    for sock in given:
        if not _is_listener(sock):
            sentence = (
                "the passed socket is not a listening stream socket: set Accept=no in its unit"
            )
            raise ListenError(endpoint, "invalid", sentence)
    with ExitStack() as undo:
        copies = [undo.enter_context(sock.dup()) for sock in given]
        for copy in copies:
            copy.setblocking(False)
        undo.pop_all()
    return [ListeningSocket(copy, endpoint) for copy in copies]


def _is_listener(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and bool(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )


async def open_vsock_listeners(
    port: int, *, cid: int = CID_ANY, backlog: int = 4096
) -> list[trio.SocketListener]:
    """Return a trio listener on a vsock port, in a list as `trio.serve_listeners` takes it.

    Raises `ListenError`, and `AddressError` for numbers beyond 32 bits.
    """
    await trio.lowlevel.checkpoint()
    listeners = listen(VsockEndpoint(cid, port), backlog, {})
    return [trio.SocketListener(trio.socket.from_stdlib_socket(one.sock)) for one in listeners]
