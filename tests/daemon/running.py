"""A daemon that runs in the process of the tests, and clients of it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio
import trio.testing

from tests.sockets import ends_by_reset, read_to_end
from tests.waiting import until
from vsockproxy.address.endpoint import (
    ListenEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.config.settings import Config, PumpChoice, PumpSettings, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.errors import first_of
from vsockproxy.stats import RouteStats

LOOPBACK = TcpEndpoint("127.0.0.1", 0)
LOOPBACK_2 = TcpEndpoint("127.0.0.2", 0)
GUEST_PORT = 80


class Running:
    """A daemon that runs, and clients of its routes."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.supervisor = daemon.supervisor
        self.drained: bool | None = None
        self.ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.drained = await self.daemon.run(task_status=task_status)
        self.ended.set()

    def stats(self, name: str) -> RouteStats:
        return next(s for s in self.supervisor.stats() if s.route.name == name)

    def address(self, name: str) -> ListenEndpoint:
        """Return the real endpoint of a route's listener."""
        listeners = self.supervisor.listeners.values()
        listener = next(x for x in listeners if x.route.name == name)
        return listener.sockets[0].endpoint

    async def connect(self, name: str = "echo") -> trio.SocketStream:
        address = self.address(name)
        if isinstance(address, UnixEndpoint):
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.connect(address.path)
            return trio.SocketStream(sock)
        assert isinstance(address, TcpEndpoint)
        assert address.host is not None
        return await trio.open_tcp_stream(address.host, address.port)

    async def resets(self, name: str) -> bool:
        """Connect a client; return whether it is reset, which its connect may say already."""
        try:
            client = await self.connect(name)
        except OSError as error:
            return isinstance(first_of(error.__cause__ or error), ConnectionResetError)
        return await ends_by_reset(client)

    async def reload(self, *routes: Route, metrics: UnixEndpoint | None = None) -> None:
        config = replace(self.daemon.config, routes=routes, metrics=_listed(metrics))
        await self.daemon.replace(lambda: config)

    async def closed(self, name: str, reason: str, number: int = 1) -> None:
        """Wait until ``number`` connections of a route have ended for a reason."""
        await until(lambda: self.stats(name).closed[reason] >= number)


@asynccontextmanager
async def running(
    *routes: Route,
    choice: PumpChoice = "auto",
    metrics: UnixEndpoint | None = None,
    **inherited: socket.socket,
) -> AsyncIterator[Running]:
    config = Config(routes, _listed(metrics), pump=PumpSettings(choice))
    daemon = Running(Daemon(config, inherited={k: [v] for k, v in inherited.items()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        yield daemon
        nursery.cancel_scope.cancel()


def _listed(metrics: UnixEndpoint | None) -> tuple[UnixEndpoint, ...]:
    return () if metrics is None else (metrics,)


async def scrape(endpoint: UnixEndpoint) -> str:
    async with await trio.open_unix_socket(endpoint.path) as stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await read_to_end(stream)).decode()


async def exchange(client: trio.SocketStream, data: bytes) -> bytes:
    async with client:
        await client.send_all(data)
        await client.send_eof()
        return await read_to_end(client)


def files_of(endpoints: list[UnixEndpoint]) -> list[str]:
    return [endpoint.path for endpoint in endpoints if Path(endpoint.path).exists()]


async def until_live(daemon: Running, name: str) -> None:
    await until(lambda: daemon.stats(name).upstream_bytes)


async def accepts(port: int, host: str = "127.0.0.1") -> bool:
    try:
        client = await trio.open_tcp_stream(host, port)
    except OSError:
        return False
    await client.aclose()
    return True


def only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    return error
