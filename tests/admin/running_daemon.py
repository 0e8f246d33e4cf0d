"""A daemon in this process with a control socket, and a client of its API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.fake_services import Service, echo
from tests.waiting import until
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.config.process import AdminSettings
from vsockproxy.config.settings import Config, Policy, PumpChoice, PumpSettings, Route
from vsockproxy.connection import Connection
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.daemon.reload import Load
from vsockproxy.stats import RouteStats


class ControlledDaemon:
    """A running daemon and a client of its API.

    Attributes:
      daemon: the daemon, for direct access to its state.
      socket: path of the control socket.
    """

    def __init__(self, daemon: Daemon, http: httpx.AsyncClient, socket: Path) -> None:
        self.daemon = daemon
        self.socket = socket
        self._http = http

    async def ask(
        self, method: str, path: str, body: object = None, **query: Any
    ) -> httpx.Response:
        """Send a request, with ``body`` as JSON, and return the response."""
        content = None if body is None else json.dumps(body)
        return await self._http.request(method, path, content=content, params=query or None)

    async def send(self, path: str, content: bytes) -> httpx.Response:
        """Send a POST request with a body that need not be JSON, and return the response."""
        return await self._http.post(path, content=content)

    async def get(self, path: str, **query: Any) -> Any:
        """Return the JSON of a GET request that must succeed."""
        answer = await self.ask("GET", path, **query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: object = None) -> Any:
        """Return the JSON of a POST request that must succeed."""
        answer = await self.ask("POST", path, body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stats(self, name: str) -> RouteStats:
        """Return the counters of a route."""
        return next(stats for stats in self.daemon.supervisor.stats() if stats.route.name == name)

    def path(self, name: str) -> str:
        """Return the path of a route's Unix listener."""
        listen = self.stats(name).route.listen
        assert isinstance(listen, UnixEndpoint)
        return listen.path

    async def connect(self, name: str) -> trio.SocketStream:
        """Return a new client of a route."""
        return await trio.open_unix_socket(self.path(name))

    async def live(self, name: str) -> tuple[trio.SocketStream, Connection]:
        """Return a client that has received its first byte back, and its connection."""
        before = set(self.stats(name).live)
        client = await self.connect(name)
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        await until(lambda: self.stats(name).live - before)
        [connection] = self.stats(name).live - before
        return client, connection

    async def closed(self, name: str, reason: str, number: int = 1) -> None:
        """Wait until ``number`` connections of a route have closed for a reason."""
        await until(lambda: self.stats(name).closed[reason] >= number)

    async def reload(self, **changes: Any) -> None:
        """Reload with these fields of the configuration changed."""
        config = replace(self.daemon.config, **changes)
        await self.daemon.replace(lambda: config)


@asynccontextmanager
async def controlled_daemon(
    folder: Path,
    *names: str,
    service: Service = echo,
    policy: Policy = Policy(),  # noqa: B008 - Policy is frozen
    choice: PumpChoice = "auto",
    load: Load | None = None,
    target: MuxEndpoint | None = None,
) -> AsyncIterator[ControlledDaemon]:
    """Run a daemon with a route from a Unix socket to ``target`` for each name.

    Without ``target`` every route's target is a TCP server that runs ``service``.  Cancels the
    daemon and the server at the end of the block.
    """
    async with trio.open_nursery() as nursery:
        [served] = await nursery.start(partial(trio.serve_tcp, service, 0, host="127.0.0.1"))
        endpoint = target or TcpEndpoint("127.0.0.1", served.socket.getsockname()[1])
        routes = tuple(
            Route(name, UnixEndpoint(str(folder / f"{name}.sock")), endpoint, policy)
            for name in names
        )
        socket = folder / "admin.sock"
        config = Config(
            routes, pump=PumpSettings(choice), admin=AdminSettings(UnixEndpoint(str(socket)))
        )
        daemon = Daemon(config, load=load)
        await nursery.start(daemon.run)
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://daemon", timeout=30
        ) as http:
            yield ControlledDaemon(daemon, http, socket)
        nursery.cancel_scope.cancel()
