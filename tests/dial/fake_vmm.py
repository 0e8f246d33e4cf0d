"""A fake of a virtual machine monitor's vsock socket, with the quirks of real ones (docs/vmm.md).

The Unix sockets are real; the guest behind them is a table of services, one for each port.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from tests.fake_services import Answer, Service, answers_ok, unix_server
from tests.sockets import stream
from vsockproxy.dial import mux_line


class Vmm:
    """A VMM at a path: hosts connect by CONNECT, its guest by `guest_connects`.

    Attributes:
      path: the socket's file.
      requests: all bytes that each host sent before the answer.
      live: the number of connected hosts.
    """

    def __init__(
        self,
        path: Path,
        services: Mapping[int, Service],
        *,
        answer: Answer = answers_ok,
        most: int | None = None,
        collapses: bool = False,
    ) -> None:
        """Allow ``most`` connections; a VMM that ``collapses`` closes both halves at a FIN."""
        self.path = path
        self.requests: list[bytes] = []
        self.live = 0
        self._services = services
        self._answer = answer
        self._most = most
        self._collapses = collapses

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run while the block runs; then remove the file and close every connection."""
        async with unix_server(self.path, self._serve):
            yield

    async def guest_connects(self, port: int) -> trio.SocketStream:
        """Connect to ``PATH_PORT``, as a VMM does when its guest connects to a host port.

        Raises OSError if nothing listens there, or its backlog is full: it never blocks, since a
        VMM has one thread.
        """
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        try:
            sock.connect(f"{self.path}_{port}")
        except BaseException:
            sock.close()
            raise
        return stream(sock)

    async def _serve(self, host: trio.SocketStream) -> None:
        async with host:
            if self.live == self._most:
                return
            self.live += 1
            try:
                await self._serve_request(host)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            finally:
                self.live -= 1

    async def _serve_request(self, host: trio.SocketStream) -> None:
        request = bytes(await host.receive_some(mux_line.LINE_MAX))
        await trio.testing.wait_all_tasks_blocked()
        self.requests.append(request + _waiting(host))
        if not request.endswith(b"\n"):  # a second packet is dropped with its connection
            return
        port = mux_line.parse_request(request)
        if port in self._services and await self._answer(host, port):
            serve = _collapsed if self._collapses else _whole
            await serve(host, self._services[port])


class AnswersLate:
    """A fake of a guest that answers CONNECT long after it: call it as an `Answer`.

    Attributes:
      asked: how many hosts have asked.
      answer: set it to have the guest answer.
      received: for each answered host, whether its socket was open, and then ended in order.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.answer = trio.Event()
        self.received: list[bool] = []

    async def __call__(self, host: trio.SocketStream, port: int) -> bool:
        """Send OK once the guest answers, and wait for the host's end; no service follows."""
        self.asked += 1
        await self.answer.wait()
        try:
            await host.send_all(mux_line.ok_reply(port))
            self.received.append(await host.receive_some(1) == b"")
        except trio.BrokenResourceError:  # EPIPE: vhost-device-vsock 0.3.0 panics here
            self.received.append(False)
        return False


async def never_answers(host: trio.SocketStream, port: int) -> bool:
    """Answer as a VMM whose guest has no driver: nothing, until the host closes."""
    await host.receive_some(1)
    return False


def _waiting(host: trio.SocketStream) -> bytes:
    """Return the received bytes that were not read."""
    with socket.fromfd(host.socket.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            return sock.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


async def _whole(host: trio.SocketStream, service: Service) -> None:
    await service(host)


async def _collapsed(host: trio.SocketStream, service: Service) -> None:
    """Run a service behind a VMM that closes both halves when the host closes one."""
    near, far = (stream(sock) for sock in socket.socketpair())

    async def answer() -> None:
        async with far:
            await service(far)

    async def bring_back() -> None:
        async for piece in near:
            await host.send_all(piece)
        await host.send_eof()

    async with near, trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        nursery.start_soon(bring_back)
        async for piece in host:
            await near.send_all(piece)
        nursery.cancel_scope.cancel()
