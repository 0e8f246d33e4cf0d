"""Services, VMMs' sockets and listeners for tests, over real sockets."""

from __future__ import annotations

import os
import resource
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.sockets import no_descriptor_left_over, read_to_end
from vsockproxy.address.endpoint import Dialable, FdEndpoint, MuxEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.address.sockaddr import (
    Address,
    distinct_addresses,
    literal_addresses,
    new_socket,
    unix_address,
)
from vsockproxy.dial import mux_line
from vsockproxy.dial.dial import dial
from vsockproxy.listen.bind import ListeningSocket, listen

Service = Callable[[trio.SocketStream], Awaitable[None]]
"""Serve one client of a port; the stream is closed afterwards."""

Answer = Callable[[trio.SocketStream, int], Awaitable[bool]]
"""Answer CONNECT; return whether the port's service runs next."""

ORDINARY_USER = 65534
"""The user ``nobody`` of Debian, for tests of permissions that root always has."""

HOST_PORT = 1 << 30
"""The number of the first OK of a real VMM."""


async def echo(stream: trio.SocketStream) -> None:
    """Send every byte back, and end at the client's FIN, or at a reset."""
    with suppress(trio.BrokenResourceError):
        async for piece in stream:
            await stream.send_all(piece)
        await stream.send_eof()


async def echo_or_nothing(client: trio.SocketStream) -> bytes:
    """Return the echo of one byte; nothing for a client that is rejected."""
    async with client:
        try:
            await client.send_all(b"x")
            await client.send_eof()
            return await read_to_end(client)
        except trio.BrokenResourceError:
            return b""


def says(data: bytes) -> Service:
    """Return a service that sends ``data`` and ends."""

    async def service(stream: trio.SocketStream) -> None:
        await stream.send_all(data)

    return service


async def hold(stream: trio.SocketStream) -> None:
    """Serve without a byte and without an end."""
    await trio.sleep_forever()


def answers(*pieces: bytes) -> Answer:
    """Answer CONNECT with these pieces, each sent once the one before has been read."""

    async def answer(stream: trio.SocketStream, port: int) -> bool:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.005)
        return True

    return answer


async def answers_ok(stream: trio.SocketStream, port: int) -> bool:
    """Answer as a VMM whose guest listens."""
    await stream.send_all(mux_line.ok_reply(HOST_PORT))
    return True


async def answers_nothing(stream: trio.SocketStream, port: int) -> bool:
    """Answer as a VMM whose guest is not up: nothing, and the connection stays open."""
    await trio.sleep_forever()
    return False


class MuxServer:
    """A VMM's vsock socket: speaks CONNECT/OK, then runs the port's service.

    A port without a service is refused as VMMs do, by closing without an answer.

    Attributes:
      path: the socket's file; a target is ``MuxEndpoint(str(path), port)``.
      requests: every request line as it came, in one read each.
    """

    def __init__(self, path: Path, services: Mapping[int, Service], answer: Answer) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self._services = services
        self._answer = answer

    async def serve_connection(self, stream: trio.SocketStream) -> None:
        """Serve one client until its end."""
        async with stream:
            try:
                await self._serve(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _serve(self, stream: trio.SocketStream) -> None:
        request = await stream.receive_some(mux_line.LINE_MAX)
        self.requests.append(bytes(request))
        if not request:
            return
        port = mux_line.parse_request(bytes(request))
        if port in self._services and await self._answer(stream, port):
            await self._services[port](stream)


@asynccontextmanager
async def mux_server(
    path: Path, services: Mapping[int, Service], answer: Answer = answers_ok
) -> AsyncIterator[MuxServer]:
    """Run a `MuxServer` at ``path`` while the block runs."""
    server = MuxServer(path, services, answer)
    async with unix_server(path, server.serve_connection):
        yield server


@asynccontextmanager
async def unix_server(path: Path, serve: Service) -> AsyncIterator[None]:
    """Serve the clients of a Unix socket for a block; then close them and remove the file."""
    with unix_listener(path) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield
            nursery.cancel_scope.cancel()


def has_ipv6() -> bool:
    """Return whether this machine has ::1; many containers do not."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(
    not has_ipv6(), reason="no ::1 here: sysctl net.ipv6.conf.lo.disable_ipv6=0"
)


@contextmanager
def taken_on_ipv6_alone() -> Iterator[int]:
    """Give a port that is in use on ::1 and free on 127.0.0.1."""
    for _ in range(10):  # another process may have the IPv4 port
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
            port = taken.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                continue
            yield port
            return
    pytest.fail("the IPv4 port was in use ten times")


def without_ipv6(code: int) -> Callable[[int], socket.socket]:
    """Return a fake of `new_socket` that fails with an errno where it needs IPv6."""

    def opened(family: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(code, os.strerror(code))
        return new_socket(family)

    return opened


@contextmanager
def unix_listener(path: Path, backlog: int = 64) -> Iterator[socket.socket]:
    """Listen at a Unix socket, and remove its file afterwards; the test itself accepts."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(unix_address(str(path)))
        sock.listen(backlog)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def full_unix_listener(path: Path) -> Iterator[socket.socket]:
    """Listen at a Unix socket with a full backlog; each accept makes room for a client."""
    with unix_listener(path, 0) as sock, ExitStack() as clients:
        while True:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(str(path)):
                break
        yield sock


@contextmanager
def full_tcp_listener() -> Iterator[tuple[str, int]]:
    """Return a TCP address that answers no SYN, because its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock, ExitStack() as clients:
        address = sock.getsockname()
        while True:
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
            if client.connect_ex(address):
                break
        yield address


def dead_unix_socket(path: Path) -> None:
    """Leave the file of a closed Unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def unused_tcp_port() -> int:
    """Return a port on 127.0.0.1 without a listener."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Lower RLIMIT_NOFILE until no descriptor can be made."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)  # the lowest free number
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Drop root's power over files and ports for a block; do nothing for other users."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(ORDINARY_USER)
    try:
        yield
    finally:
        os.seteuid(uid)


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that every user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def listening(
    endpoint: TcpEndpoint | UnixEndpoint | MuxEndpoint | FdEndpoint,
    inherited: dict[str, list[socket.socket]] | None = None,
) -> Iterator[list[ListeningSocket]]:
    """Open listeners, also by host name, and close them at the end of the block."""
    resolved: list[Address] = []
    if isinstance(endpoint, TcpEndpoint) and literal_addresses(endpoint) is None:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        resolved = distinct_addresses(found)
    with no_descriptor_left_over():
        listeners = listen(endpoint, 16, inherited or {}, resolved=resolved)
        try:
            yield listeners
        finally:
            for listener in listeners:
                listener.close()


async def cancelled_while_waiting(endpoint: Dialable) -> None:
    """Cancel a dial that is blocked; assert that it leaves no descriptor and hides no error."""
    with no_descriptor_left_over(), trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, endpoint, 20)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
