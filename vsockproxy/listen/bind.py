"""Bind listeners: a socket for each address of an endpoint, and the files of Unix sockets.

Owns: `listen`, `ListeningSocket`, and the rule by which a stale socket file is replaced. Knows
no route, and accepts nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
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
    distinct_addresses,
    errno_of,
    literal_addresses,
    new_socket,
    peer_name,
    unix_address,
    unresolved,
)
from vsockproxy.config.settings import Policy
from vsockproxy.dial.sockopt import apply, listener_options
from vsockproxy.errors import ListenError, listen_error

_PORT_TRIES: Final = 16  # for one free port on two addresses; the second try nearly always has it


@dataclass(frozen=True, slots=True, eq=False)
class ListeningSocket:
    """A listening socket and its real endpoint.

    The endpoint has an address and a port where the configuration has a name, a bare port or port
    0. The owner closes it, once no task waits for it.
    """

    sock: socket.socket
    endpoint: ListenEndpoint
    _file: tuple[Path, int, int] | None = None  # path, device and inode of a file we made

    @classmethod
    def restored(cls, sock: socket.socket, endpoint: ListenEndpoint) -> ListeningSocket:
        """Return a listener that another process opened at ``endpoint`` and left to this one."""
        file = socket_file(endpoint)
        if file is not None:
            with suppress(OSError):  # the file was removed
                return cls(sock, endpoint, (file, *_identity(file)))
        return cls(sock, endpoint)

    def configure(self, policy: Policy) -> None:
        """Set a policy's socket options, and the owner, group and mode of the socket's file.

        They hold for clients that connect from now on. Raises `ListenError`.
        """
        try:
            apply(self.sock, self.sock.family, listener_options(policy))
            if self._file is not None:
                _give(self.endpoint, self._file[0], policy)
        except OSError as error:
            raise listen_error(self.endpoint, errno_of(error)) from error

    def close(self) -> None:
        """Close the socket, and remove its file unless another process has replaced it."""
        if self._file is not None and self.sock.fileno() >= 0:
            path, *identity = self._file
            # While the socket is open its inode's number cannot be another file's.
            with suppress(OSError):
                if _identity(path) == tuple(identity):
                    path.unlink()
        self.sock.close()


def socket_file(endpoint: ListenEndpoint) -> Path | None:
    """Return the file that clients of an endpoint connect to; None where it has none."""
    if isinstance(endpoint, MuxEndpoint):
        return Path(endpoint.listen_path)
    if isinstance(endpoint, UnixEndpoint) and not endpoint.path.startswith("@"):
        return Path(endpoint.path)
    return None


def listen(
    endpoint: ListenEndpoint,
    backlog: int,
    inherited: Mapping[str, Sequence[socket.socket]],
    policy: Policy = Policy(),  # noqa: B008 - it is frozen
    leaving: Sequence[socket.socket] = (),
) -> list[ListeningSocket]:
    """Listen at an endpoint: return a socket for each address of its host, owned by the caller.

    Args:
      backlog: listen(2)'s; the kernel caps it at net.core.somaxconn.
      inherited: systemd's sockets by name; ``fd:NAME`` gets duplicates, these stay the caller's.
      policy: the socket options, and a socket file's owner, group and mode, which are set before
        a client can connect.
      leaving: the caller's own listeners at a TCP endpoint's port. They may overlap the new
        addresses (Linux).

    A Unix socket's file is replaced if it belongs to this user and no process listens there.

    Raises:
      ListenError: nothing stays open.
    """
    try:
        match endpoint:
            case TcpEndpoint():
                return _configured(_listen_tcp(endpoint, backlog, leaving), policy)
            case VsockEndpoint():
                return _configured([_listen_vsock(endpoint, backlog)], policy)
            case UnixEndpoint():
                return [_listen_unix(endpoint, endpoint.path, backlog, policy)]
            case MuxEndpoint():
                return [_listen_unix(endpoint, endpoint.listen_path, backlog, policy)]
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


def _listen_tcp(
    endpoint: TcpEndpoint, backlog: int, leaving: Sequence[socket.socket]
) -> list[ListeningSocket]:
    addresses = literal_addresses(endpoint)
    if addresses is None:
        try:
            addresses = distinct_addresses(
                socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
            )
        except (socket.gaierror, UnicodeError) as error:
            raise ListenError(endpoint, "name", unresolved(endpoint, error)) from error
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
    leaving: Sequence[socket.socket],
) -> list[ListeningSocket]:
    port = endpoint.port
    with ExitStack() as undo:
        bound: list[ListeningSocket] = []
        for family, (host, _, *rest) in addresses:
            try:
                sock = _listening(family, (host, port, *rest), backlog, leaving)
            except OSError as error:
                if bound and host == "::1" and error.errno in NO_IPV6:
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
    family: int, address: Any, backlog: int, leaving: Sequence[socket.socket] = ()
) -> socket.socket:
    # Linux lets listeners of one user overlap if all have SO_REUSEPORT while the last one is bound
    # (socket(7)). It is reset afterwards, so that a second daemon of this user still gets
    # EADDRINUSE.
    with ExitStack() as undo:
        for sock in leaving:
            undo.callback(_share_port, sock, False)
            _share_port(sock, True)
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
    endpoint: UnixEndpoint | MuxEndpoint, path: str, backlog: int, policy: Policy
) -> ListeningSocket:
    listening = _bind_unix(endpoint, path)
    try:
        listening.configure(policy)  # no client can connect before listen(2)
        listening.sock.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


def _bind_unix(endpoint: UnixEndpoint | MuxEndpoint, path: str) -> ListeningSocket:
    address = unix_address(path)
    if path.startswith("@"):
        return ListeningSocket(_bound(socket.AF_UNIX, address), endpoint)
    file = Path(path)
    try:
        sock = _bound(socket.AF_UNIX, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        with suppress(FileNotFoundError):  # removed meanwhile
            _remove_stale(endpoint, file)
        sock = _bound(socket.AF_UNIX, address)
    try:
        return ListeningSocket(sock, endpoint, (file, *_identity(file)))
    except OSError:
        sock.close()
        raise


def _give(endpoint: ListenEndpoint, file: Path, policy: Policy) -> None:
    """Set the owner, group and mode of a socket's file, where the policy has them."""
    if policy.owner is not None or policy.group is not None:
        owner, group = (-1 if number is None else number for number in (policy.owner, policy.group))
        try:
            os.chown(file, owner, group)
        except PermissionError as error:
            sentence = "only root can give a file to another user, or to a group it is not in"
            raise ListenError(endpoint, "denied", sentence, error.errno) from error
    if policy.mode is not None:
        file.chmod(policy.mode)


def _remove_stale(endpoint: UnixEndpoint | MuxEndpoint, file: Path) -> None:
    """Remove a socket's file whose process has ended; raise `ListenError` for another file."""
    found = file.lstat()
    if not stat.S_ISSOCK(found.st_mode):
        sentence = "a file that is not a socket exists there: remove it, or choose another path"
        raise ListenError(endpoint, "in_use", sentence, errno.EADDRINUSE)
    if found.st_uid != os.geteuid():
        sentence = f"a socket of another user (uid {found.st_uid}) exists there"
        raise ListenError(endpoint, "in_use", sentence, errno.EADDRINUSE)
    with new_socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(file)) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise listen_error(endpoint, errno.EADDRINUSE)
    # Another daemon may have replaced the file meanwhile: its new socket must stay.
    if _identity(file) == (found.st_dev, found.st_ino):
        file.unlink()


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


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


async def open_vsock_listeners(
    port: int, *, cid: int = CID_ANY, backlog: int = 4096
) -> list[trio.SocketListener]:
    """Return a trio listener on a vsock port, in a list as `trio.serve_listeners` takes it.

    Raises `ListenError`, and `AddressError` for numbers beyond 32 bits.
    """
    await trio.lowlevel.checkpoint()
    listeners = listen(VsockEndpoint(cid, port), backlog, {})
    return [trio.SocketListener(trio.socket.from_stdlib_socket(one.sock)) for one in listeners]
