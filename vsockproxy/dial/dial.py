"""Dial a target: connect to each kind of address within a time limit.

Owns: connecting, and the translation of the kernel's errors into `DialError`.  Knows nothing
of routes, bytes or counters.

The sockets are the standard library's, non-blocking and close-on-exec, and belong to the
caller once returned.  A dial that succeeds at once makes no trip through trio's loop, and
is then no checkpoint either.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import (
    AF_VSOCK,
    CID_ANY,
    Dialable,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.address.sockaddr import (
    NO_IPV6,
    NO_VSOCK,
    Address,
    distinct_addresses,
    errno_of,
    literal_addresses,
    new_socket,
    unix_address,
    unresolved,
)
from vsockproxy.config.destination import Destinations
from vsockproxy.config.settings import Policy
from vsockproxy.dial import mux, vsock
from vsockproxy.dial.sockopt import Options, apply, target_options
from vsockproxy.errors import AddressError, DialError, dial_error, explain

PLAIN: Final = target_options(Policy())
"""The options of a dial for which nothing is configured."""

ANYWHERE: Final = Destinations()
"""No bound for where a target is."""

_FIRST_RETRY: Final = 0.001  # seconds, doubled each time
_LONGEST_RETRY: Final = 0.05

Connect = Callable[[socket.socket], Awaitable[None]]
"""Connects a new socket; raises OSError or `DialError`."""


async def dial(
    endpoint: Dialable,
    timeout: float,
    *,
    options: Options = PLAIN,
    handshake_timeout: float | None = None,
    destinations: Destinations = ANYWHERE,
    assigned: Callable[[int], object] | None = None,
    passed: Callable[[], object] | None = None,
) -> socket.socket:
    """A socket connected to ``endpoint``, within ``timeout`` seconds, handshake included.

    ``options`` are set before it connects.  ``handshake_timeout`` bounds the time between
    CONNECT and OK where that is less.  ``destinations`` bounds the addresses of a TCP
    endpoint, those that its name resolves to included.  ``assigned`` is told the number of a
    vsock-mux's OK, which is for people: its meaning differs between VMMs.  ``passed`` is
    called where one step is over and another begins: a name is resolved, a VMM's socket is
    connected.  When cancelled, nothing stays open.

    Raises `DialError`.
    """
    deadline = trio.current_time() + timeout
    try:
        match endpoint:
            case TcpEndpoint():
                addresses = await _addresses(endpoint, deadline, destinations, passed)
                return await _dial_tcp(endpoint, addresses, deadline, options)
            case VsockEndpoint():
                return await _dial_vsock(endpoint, timeout, deadline, options)
            case UnixEndpoint():
                connect = partial(_connect_unix, path=endpoint.path, deadline=deadline)
                return await _open(socket.AF_UNIX, connect)
            case MuxEndpoint():
                patience = math.inf if handshake_timeout is None else handshake_timeout
                connect = partial(
                    _connect_mux,
                    endpoint=endpoint,
                    deadline=deadline,
                    patience=patience,
                    assigned=assigned,
                    passed=passed,
                )
                return await _open(socket.AF_UNIX, connect)
    except OSError as error:
        raise _failed(endpoint, error) from error


def dial_at_once(endpoint: Target) -> socket.socket | None:
    """A socket connected to ``endpoint`` where that takes no waiting; else None: see `dial`.

    Only a Unix socket can have it so, for which there are no options.  Raises `DialError`.
    """
    if not isinstance(endpoint, UnixEndpoint):
        return None
    sock = None
    try:
        sock = new_socket(socket.AF_UNIX)
        sock.connect(unix_address(endpoint.path))
    except BlockingIOError:  # its backlog is full
        assert sock is not None
        sock.close()
        return None
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _failed(endpoint, error) from error
    return sock


def _failed(endpoint: Target, error: OSError) -> DialError:
    # connect(2) says of every file but a socket what it says of one that nobody listens at.
    if isinstance(endpoint, UnixEndpoint | MuxEndpoint) and error.errno == errno.ECONNREFUSED:
        path = Path(endpoint.path)
        if path.exists() and not path.is_socket():
            sentence = "something that is not a socket is there: is the path right?"
            return DialError(endpoint, "refused", sentence, error.errno)
    return dial_error(endpoint, errno_of(error))


async def open_vsock_stream(
    cid: int, port: int, *, to_host: bool = False, timeout: float = 5.0
) -> trio.SocketStream:
    """A trio stream to a vsock port; ``timeout`` is in seconds.

    ``to_host`` as in `VsockEndpoint`.  Raises `DialError`, and `AddressError` for numbers
    beyond 32 bits and for ANY.
    """
    await trio.lowlevel.checkpoint()
    endpoint = VsockEndpoint(cid, port, to_host)
    if CID_ANY in (endpoint.cid, endpoint.port):
        raise AddressError(f"{endpoint} cannot be dialled: name one CID and one port, not any")
    sock = await dial(endpoint, timeout)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def _open(family: int, connect: Connect, options: Options = PLAIN) -> socket.socket:
    """A new socket that ``connect`` has connected; closed if that fails or is cancelled."""
    sock = new_socket(family)
    try:
        apply(sock, family, options)
        await connect(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _dial_tcp(
    endpoint: TcpEndpoint, addresses: Sequence[Address], deadline: float, options: Options
) -> socket.socket:
    failure: OSError | None = None
    for position, (family, address) in enumerate(addresses):
        # An address that swallows packets must leave time for the ones behind it.
        now = trio.current_time()
        share = now + (deadline - now) / (len(addresses) - position)
        try:
            connect = partial(_connect_tcp, address=address, deadline=share)
            return await _open(family, connect, options)
        except OSError as error:
            # That there is no IPv6 here says less than what IPv4 has answered.
            if failure is None or not (family == socket.AF_INET6 and error.errno in NO_IPV6):
                failure = error
    assert failure is not None  # getaddrinfo gives an address or an error
    if len(addresses) == 1:
        raise failure
    reason, sentence = explain("dial", endpoint, errno_of(failure))
    sentence += f" ({len(addresses)} addresses tried)"
    raise DialError(endpoint, reason, sentence, failure.errno) from failure


def _admitted(
    endpoint: TcpEndpoint, addresses: list[Address], destinations: Destinations
) -> list[Address]:
    admitted = [one for one in addresses if destinations.admits(endpoint, one[1][0])]
    if not admitted:
        first, *others = (address[0] for _, address in addresses)
        more = f" and {len(others)} more" if others else ""
        sentence = f"target_allow and target_deny do not let it go to {first}{more}"
        raise DialError(endpoint, "forbidden", sentence)
    return admitted


async def _addresses(
    endpoint: TcpEndpoint,
    deadline: float,
    destinations: Destinations,
    passed: Callable[[], object] | None,
) -> list[Address]:
    """Where to connect to; raises `DialError`."""
    addresses = literal_addresses(endpoint)
    if addresses is None:
        addresses = await _resolve(endpoint, deadline)
        if passed is not None:
            passed()
    return _admitted(endpoint, addresses, destinations) if destinations else addresses


async def _resolve(endpoint: TcpEndpoint, deadline: float) -> list[Address]:
    with trio.CancelScope(deadline=deadline):
        try:
            found = await trio.socket.getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_STREAM
            )
        except (socket.gaierror, UnicodeError) as error:
            raise DialError(endpoint, "name", unresolved(endpoint, error)) from error
        return distinct_addresses(found)
    sentence = f"no answer in time about the name {endpoint.host!r}"
    raise DialError(endpoint, "timeout", sentence, errno.ETIMEDOUT)


async def _connect_tcp(sock: socket.socket, address: tuple[Any, ...], deadline: float) -> None:
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        # On the loopback the answer is here by now; asking costs less than waiting for it.
        code = sock.connect_ex(address)
        if code in (errno.EALREADY, errno.EISCONN):
            code = errno.EINPROGRESS
    await _connected(sock, code, deadline)
    own = sock.getsockname()
    if own[1] == address[1] and own == sock.getpeername():
        # Our own port was picked, and TCP's simultaneous open met itself: nobody is there.
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def _dial_vsock(
    endpoint: VsockEndpoint, timeout: float, deadline: float, options: Options
) -> socket.socket:
    known = hasattr(socket, "AF_VSOCK")
    if not known and sys.platform != "darwin":
        raise DialError(endpoint, "unsupported", NO_VSOCK)

    async def connect(sock: socket.socket) -> None:
        if timeout > vsock.KERNEL_CONNECT_TIMEOUT:
            with suppress(OSError):  # then the kernel's own 2 s hold, which is an answer too
                vsock.set_connect_timeout(sock, timeout)
        if endpoint.to_host or not known:
            code = vsock.connect(sock, endpoint)
        else:
            code = sock.connect_ex((endpoint.cid, endpoint.port))
        await _connected(sock, code, deadline)

    return await _open(AF_VSOCK, connect, options)


async def _connect_unix(sock: socket.socket, path: str, deadline: float) -> None:
    address = unix_address(path)
    pause = _FIRST_RETRY
    # EAGAIN is a full backlog, not a connection in progress: nothing would ever come of it.
    while (code := sock.connect_ex(address)) == errno.EAGAIN:
        left = deadline - trio.current_time()
        if left <= 0:
            break
        await trio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_RETRY)
    await _connected(sock, code, deadline)


async def _connect_mux(
    sock: socket.socket,
    *,
    endpoint: MuxEndpoint,
    deadline: float,
    patience: float,
    assigned: Callable[[int], object] | None,
    passed: Callable[[], object] | None,
) -> None:
    await _connect_unix(sock, endpoint.path, deadline)
    if passed is not None:
        passed()
    try:
        sock.send(mux.connect_request(endpoint.port))  # whole: the buffer is empty
        if endpoint.handshake == "none":
            return
        number = await _read_ok(sock, endpoint, min(deadline, trio.current_time() + patience))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise _mux_refused(endpoint, error.errno) from error
    except mux.MalformedLineError as error:
        sentence = f"the VMM answered {error.line!r} in place of OK: is this its vsock socket?"
        raise DialError(endpoint, "protocol", sentence) from error
    if assigned is not None:
        assigned(number)


async def _read_ok(sock: socket.socket, endpoint: MuxEndpoint, deadline: float) -> int:
    reply = mux.LineReader()
    while not reply.done:
        await _wait(trio.lowlevel.wait_readable, sock, deadline)
        with suppress(BlockingIOError):
            data = sock.recv(reply.room, socket.MSG_PEEK)
            if not data and not reply.line:
                raise _mux_refused(endpoint, None)
            if not data:
                raise mux.MalformedLineError(reply.line)
            sock.recv(reply.feed(data))
    return mux.parse_reply(reply.line)


def _mux_refused(endpoint: MuxEndpoint, code: int | None) -> DialError:
    sentence = (
        f"nothing listens on the guest's port {endpoint.port}, the guest is not up yet,"
        " or the VMM has all the connections that it can (Firecracker and Cloud Hypervisor: 1023)"
    )
    return DialError(endpoint, "refused", sentence, code)


async def _connected(sock: socket.socket, code: int, deadline: float) -> None:
    """Wait for the connect whose errno was ``code``; raises the OSError it ended with."""
    if code == errno.EINPROGRESS:
        await _wait(trio.lowlevel.wait_writable, sock, deadline)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


async def _wait(
    ready: Callable[[socket.socket], Awaitable[None]], sock: socket.socket, deadline: float
) -> None:
    with trio.CancelScope(deadline=deadline) as scope:
        await ready(sock)
    if scope.cancelled_caught:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
