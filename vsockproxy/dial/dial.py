"""Dial a target: connect to each kind of address within a time limit.

Owns: connecting, and the translation of the kernel's errors into `DialError`. Knows no route,
bytes or counters.

The sockets are the standard library's, non-blocking and close-on-exec, and belong to the caller
once returned. A dial that succeeds immediately is not a checkpoint.
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
from vsockproxy.connection import VsockConnection
from vsockproxy.dial import mux, vsock
from vsockproxy.dial.sockopt import Options, apply, target_options
from vsockproxy.errors import AddressError, DialError, dial_error

PLAIN: Final = target_options(Policy())
"""The socket options of the default policy."""

ANYWHERE: Final = Destinations()
"""Every address is allowed."""

_FIRST_RETRY: Final = 0.001  # seconds, doubled each time
_LONGEST_RETRY: Final = 0.05

Connect = Callable[[socket.socket], Awaitable[None]]
"""Connect a new socket; raise OSError or `DialError`."""


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
    """Return a socket connected to ``endpoint``, which the caller owns.

    Args:
      timeout: seconds for the whole dial, a name's resolution and a handshake included.
      options: socket options, set before the socket connects.
      handshake_timeout: seconds between CONNECT and OK, where that is less than ``timeout``.
      destinations: the allowed addresses of a TCP endpoint, and of those its name resolves to.
      assigned: called with the number in a vsock-mux's OK; its meaning differs between VMMs.
      passed: called after each step but the last: a name is resolved, a VMM's socket connected.

    Raises:
      DialError: no socket stays open; neither does one when the dial is cancelled.
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


def connect_unix(endpoint: UnixEndpoint) -> socket.socket | None:
    """Return a socket connected to a Unix endpoint, without waiting; None if its backlog is full.

    A Unix socket has no options. Raises `DialError`.
    """
    sock = None
    try:
        sock = new_socket(socket.AF_UNIX)
        sock.connect(unix_address(endpoint.path))
    except BlockingIOError:
        assert sock is not None
        sock.close()
        return None
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _failed(endpoint, error) from error
    return sock


def _failed(endpoint: Target, error: OSError) -> DialError:
    # connect(2) gives ECONNREFUSED both for a dead socket and for a file that is not a socket.
    if isinstance(endpoint, UnixEndpoint | MuxEndpoint) and error.errno == errno.ECONNREFUSED:
        path = Path(endpoint.path)
        if path.exists() and not path.is_socket():
            return dial_error(endpoint, "not_a_socket", errno=error.errno)
    return dial_error(endpoint, errno_of(error))


async def open_vsock_stream(
    cid: int, port: int, *, to_host: bool = False, timeout: float = 5.0
) -> trio.SocketStream:
    """Return a trio stream to a vsock port; ``timeout`` is in seconds.

    ``to_host`` as in `VsockEndpoint`. Raises `DialError`, and `AddressError` for numbers beyond
    32 bits and for ANY.
    """
    sock, _ = await _dial_port(cid, port, to_host, timeout)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def open_vsock_connection(
    cid: int, port: int, *, to_host: bool = False, timeout: float = 5.0
) -> VsockConnection:
    """Return a connection to a vsock port, which the caller owns; else as `open_vsock_stream`.

    Its socket is non-blocking.
    """
    return VsockConnection(*await _dial_port(cid, port, to_host, timeout))


async def _dial_port(
    cid: int, port: int, to_host: bool, timeout: float
) -> tuple[socket.socket, VsockEndpoint]:
    await trio.lowlevel.checkpoint()
    endpoint = VsockEndpoint(cid, port, to_host)
    if CID_ANY in (endpoint.cid, endpoint.port):
        raise AddressError(f"cannot dial {endpoint}: name one CID and one port, not any")
    return await dial(endpoint, timeout), endpoint


async def _open(family: int, connect: Connect, options: Options = PLAIN) -> socket.socket:
    """Return a new socket connected by ``connect``; close it on failure or cancellation."""
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
        # An address whose packets are dropped must leave time for the next ones.
        now = trio.current_time()
        share = now + (deadline - now) / (len(addresses) - position)
        try:
            connect = partial(_connect_tcp, address=address, deadline=share)
            return await _open(family, connect, options)
        except OSError as error:
            # "No IPv6 on this machine" is less useful than the answer of an IPv4 address.
            if failure is None or not (family == socket.AF_INET6 and error.errno in NO_IPV6):
                failure = error
    assert failure is not None  # getaddrinfo gives an address or an error
    if len(addresses) == 1:
        raise failure
    found = dial_error(endpoint, errno_of(failure))
    sentence = f"{found.explanation} ({len(addresses)} addresses tried)"
    raise DialError(
        endpoint, found.reason, sentence, failure.errno, remedy=found.remedy
    ) from failure


def _admitted(
    endpoint: TcpEndpoint, addresses: list[Address], destinations: Destinations
) -> list[Address]:
    admitted = [one for one in addresses if destinations.admits(endpoint, one[1][0])]
    if not admitted:
        first, *others = (address[0] for _, address in addresses)
        more = f" and {len(others)} more" if others else ""
        raise dial_error(endpoint, "forbidden", f"{first}{more}")
    return admitted


async def _addresses(
    endpoint: TcpEndpoint,
    deadline: float,
    destinations: Destinations,
    passed: Callable[[], object] | None,
) -> list[Address]:
    """Return the addresses to connect to, in their order; raise `DialError`."""
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
            raise dial_error(endpoint, "name", unresolved(endpoint, error)) from error
        return distinct_addresses(found)
    raise dial_error(endpoint, "slow_resolver", errno=errno.ETIMEDOUT)


async def _connect_tcp(sock: socket.socket, address: tuple[Any, ...], deadline: float) -> None:
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        # On the loopback the answer has arrived: asking costs less than waiting for it.
        code = sock.connect_ex(address)
        if code in (errno.EALREADY, errno.EISCONN):
            code = errno.EINPROGRESS
    await _connected(sock, code, deadline)
    own = sock.getsockname()
    if own[1] == address[1] and own == sock.getpeername():
        # The kernel chose the target's port for our end: TCP's simultaneous open met itself.
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


async def _dial_vsock(
    endpoint: VsockEndpoint, timeout: float, deadline: float, options: Options
) -> socket.socket:
    known = hasattr(socket, "AF_VSOCK")
    if not known and sys.platform != "darwin":
        raise dial_error(endpoint, "no_vsock")

    async def connect(sock: socket.socket) -> None:
        if timeout > vsock.KERNEL_CONNECT_TIMEOUT:
            with suppress(OSError):  # the kernel's limit of 2 s stays
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
    # EAGAIN means a full backlog, not a connection in progress: the socket never becomes writable.
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
        raise dial_error(endpoint, "closed_before_ok", errno=error.errno) from error
    except mux.MalformedLineError as error:
        raise dial_error(endpoint, "protocol", repr(error.line)) from error
    if assigned is not None:
        assigned(number)


async def _read_ok(sock: socket.socket, endpoint: MuxEndpoint, deadline: float) -> int:
    reply = mux.LineReader()
    while not reply.done:
        await _wait(trio.lowlevel.wait_readable, sock, deadline)
        with suppress(BlockingIOError):
            data = sock.recv(reply.room, socket.MSG_PEEK)
            if not data and not reply.line:
                raise dial_error(endpoint, "closed_before_ok")
            if not data:
                raise mux.MalformedLineError(reply.line)
            sock.recv(reply.feed(data))
    return mux.parse_reply(reply.line)


async def _connected(sock: socket.socket, code: int, deadline: float) -> None:
    """Wait for a connect whose errno was ``code``; raise OSError if it fails."""
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
