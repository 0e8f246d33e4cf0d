"""A route that runs on real sockets without a supervisor, and its clients."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import trio
from structlog.testing import CapturingLogger

from tests.fake_services import Service, echo
from tests.sockets import read_to_end
from tests.waiting import until
from vsockproxy.address.endpoint import ListenEndpoint, Target, TcpEndpoint, UnixEndpoint
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.by_name import ByName
from vsockproxy.config.process import Limits
from vsockproxy.config.settings import Policy, PumpChoice, PumpSettings, Route
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.listener import RouteListener, listen_for
from vsockproxy.listen.sockets import ListeningSockets
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Pump
from vsockproxy.stats import RouteStats


class Served:
    """A route that runs.

    Attributes:
      listener, stats: the route's.
      log: every line that it wants to write.
    """

    def __init__(self, listener: RouteListener, log: CapturingLogger) -> None:
        self.listener = listener
        self.stats: RouteStats = listener.stats
        self.log = log

    def reconfigure(self, policy: Policy) -> None:
        """Reload the route with another policy."""
        self.listener.reconfigure(replace(self.listener.route, policy=policy))

    def connect(self, source: str = "127.0.0.1") -> trio.SocketStream:
        """Connect a client from a loopback address; return before it is accepted."""
        endpoint = self.listener.sockets[0].endpoint
        if isinstance(endpoint, UnixEndpoint):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(endpoint.path)
        else:
            assert isinstance(endpoint, TcpEndpoint)
            assert endpoint.host is not None  # a listener knows where it is
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            sock = socket.socket(family)
            if family == socket.AF_INET:
                sock.bind((source, 0))
            sock.connect((endpoint.host, endpoint.port))
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

    async def live(self, source: str = "127.0.0.1") -> trio.SocketStream:
        """Connect a client, and return once its first byte is echoed and the route knows of it."""
        before = self.stats.connections
        client = self.connect(source)
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        await until(lambda: self.stats.connections > before)
        return client

    async def exchange(self, data: bytes, source: str = "127.0.0.1") -> bytes:
        """Send ``data`` and a FIN; return the whole answer once the route knows of the dial."""
        async with self.connect(source) as client:
            await client.send_all(data)
            await client.send_eof()
            answer = await read_to_end(client)
        await self.listener._pump.alive()
        return answer

    async def rejected(self, reason: str, number: int = 1) -> None:
        """Wait until ``number`` clients have been rejected for a reason."""
        await until(lambda: self.stats.rejected[reason] >= number)

    async def queues(self, reason: str) -> None:
        """Wait until clients are queued for a reason."""
        await until(lambda: self.stats.accept_pauses[reason])

    async def closed(self, reason: str, number: int = 1) -> None:
        """Wait until ``number`` connections have ended for a reason."""
        await until(lambda: self.stats.closed[reason] >= number)

    def events(self, name: str) -> list[dict[str, object]]:
        """Return the fields of the log lines with an event's name."""
        return [call.kwargs for call in self.log.calls if call.args == (name,)]


@asynccontextmanager
async def serving(
    policy: Policy,
    *,
    service: Service = echo,
    listen_at: ListenEndpoint = TcpEndpoint("127.0.0.1", 0),  # noqa: B008 - it is frozen
    dial_to: Target | ByName | None = None,
    admission: Admission | None = None,
    guests: Guests | None = None,
    choice: PumpChoice = "auto",
    pump: Pump | None = None,
) -> AsyncIterator[Served]:
    """Run a route from ``listen_at`` to ``dial_to``, by default a TCP service, for a block."""
    async with trio.open_nursery() as nursery, open_pump(PumpSettings(choice)) as chosen:
        [target] = await nursery.start(partial(trio.serve_tcp, service, 0, host="127.0.0.1"))
        endpoint = TcpEndpoint("127.0.0.1", target.socket.getsockname()[1])
        route = Route("route", listen_at, dial_to or endpoint, policy)
        log = CapturingLogger()
        sockets = ListeningSockets(log=log)
        sockets.open({listen_at: listen_for(route)})
        log.calls.clear()
        listener = RouteListener(
            sockets.lease(listen_at, listen_for(route)),
            RouteStats(route),
            pump=pump or chosen,
            numbers=count(1),
            log=log,
            admission=admission or Admission(Limits()),
            guests=guests,
        )

        try:
            async with trio.open_nursery() as routes:
                routes.start_soon(listener.serve)
                yield Served(listener, log)
                routes.cancel_scope.cancel()
        finally:
            sockets.close_all()
        nursery.cancel_scope.cancel()


def unix_at(folder: Path) -> UnixEndpoint:
    """Return a Unix listener's endpoint in a folder."""
    return UnixEndpoint(str(folder / "front.sock"))
