"""The HTTP servers that run beside the routes: the metrics', and the operator's.

Owns: which of them runs where, and that one which cannot run harms no route.  What they
serve is `admin`'s; the sockets are `ports`'s.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.admin.daemon import Daemon
from vsockproxy.config.settings import Config, Policy
from vsockproxy.errors import ListenError
from vsockproxy.listen.sockets import Ports

if TYPE_CHECKING:
    import ssl

    from prometheus_client import CollectorRegistry

_BACKLOG: Final = 128  # scrapers and operators are few
_REMEDY: Final = "raise LimitNOFILE= (or ulimit -n); a reload tries again"


def wanted_by(config: Config) -> dict[ListenEndpoint, tuple[str, Policy]]:
    """Where a configuration has its servers listen, each with its name and how."""
    wanted: dict[ListenEndpoint, tuple[str, Policy]] = {}
    if config.metrics is not None:
        wanted[config.metrics] = ("metrics", Policy(backlog=_BACKLOG))
    admin = config.admin
    if admin.listen is not None:
        policy = Policy(backlog=_BACKLOG, mode=admin.mode, group=admin.group)
        wanted[admin.listen] = ("admin", policy)
    return wanted


class Services:
    """The servers of one daemon, by their endpoints."""

    def __init__(
        self, daemon: Daemon, ports: Ports, let_go: Callable[[ListenEndpoint], None], log: Any
    ) -> None:
        """``let_go`` is told of an endpoint whose server has ended."""
        self._daemon = daemon
        self._ports = ports
        self._let_go = let_go
        self._log = log
        self._tls: ssl.SSLContext | None = None
        self._running: dict[ListenEndpoint, _Server] = {}

    def certificates(self, config: Config) -> ssl.SSLContext | None:
        """What is in the files that ``config`` names, for `adopt`; raises `ConfigError`."""
        if config.metrics is None or config.metrics_tls is None:
            return None
        from vsockproxy.admin.tls import tls_context  # noqa: PLC0415 - only where it is wanted

        return tls_context(config.metrics_tls, config.source)

    def adopt(self, certificates: ssl.SSLContext | None) -> None:
        """Show these to the clients that come from now on; None is no TLS."""
        self._tls = certificates

    async def stop_others(self, config: Config) -> None:
        """End those that ``config`` does not want; returns when their sockets are free."""
        for endpoint in self._running.keys() - wanted_by(config).keys():
            await self._running[endpoint].stop()

    async def start(self, config: Config, nursery: trio.Nursery) -> None:
        """Have all run that ``config`` wants; their listeners are open."""
        for endpoint, (name, policy) in wanted_by(config).items():
            if endpoint in self._running:
                self._configure(endpoint, policy)
            else:
                self._running[endpoint] = server = _Server(name, endpoint)
                await nursery.start(self._serve, server)

    def _configure(self, endpoint: ListenEndpoint, policy: Policy) -> None:
        """Give a listener's file its mode and group; it goes on with those it had if not."""
        for listening in self._ports[endpoint]:
            try:
                listening.configure(policy)
            except ListenError as error:
                self._log.error("listener_options_failed", route=None, error=str(error))

    async def _serve(self, server: _Server, *, task_status: trio.TaskStatus[None]) -> None:
        sockets = [listening.sock for listening in self._ports[server.endpoint]]
        serve = self._serve_metrics if server.name == "metrics" else self._serve_control
        try:
            with server.scope:
                await serve(sockets, task_status=task_status)
        except* OSError as errors:  # no descriptor is left: the routes go on without
            self._log.error(
                "http_server_failed", server=server.name, error=_first(errors), remedy=_REMEDY
            )
            with suppress(RuntimeError):  # it had started, and was served for a while
                task_status.started()
        finally:
            del self._running[server.endpoint]
            self._let_go(server.endpoint)
            server.ended.set()

    async def _serve_metrics(
        self, sockets: list[socket.socket], *, task_status: trio.TaskStatus[None]
    ) -> None:
        # Imported here: a daemon without such a server does not pay for it.
        from vsockproxy.admin.observe import serve_metrics  # noqa: PLC0415 - see above

        await serve_metrics(
            sockets, self._registry(), self._daemon, tls=lambda: self._tls, task_status=task_status
        )

    async def _serve_control(
        self, sockets: list[socket.socket], *, task_status: trio.TaskStatus[None]
    ) -> None:
        from vsockproxy.admin.control import serve_control  # noqa: PLC0415 - see above
        from vsockproxy.admin.observe import read_only_routes  # noqa: PLC0415 - see above

        beside = read_only_routes(self._registry(), self._daemon)
        await serve_control(sockets, self._daemon, beside, task_status=task_status)

    def _registry(self) -> CollectorRegistry:
        from vsockproxy.metrics import make_registry  # noqa: PLC0415 - see above

        return make_registry(self._daemon)


def _first(error: BaseException) -> str:
    """The words of the first error in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


class _Server:
    """A server that runs, and how to end it."""

    def __init__(self, name: str, endpoint: ListenEndpoint) -> None:
        self.name = name
        self.endpoint = endpoint
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()
