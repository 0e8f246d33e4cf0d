"""The HTTP servers beside the routes: the metrics' and the operator's.

Owns: which server runs at which endpoint, and that a server which cannot run harms no route.
What they serve is the admin folder's.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.config.settings import Config, Policy
from vsockproxy.errors import sentences
from vsockproxy.listen.bind import ListeningSocket
from vsockproxy.listen.renew import keep_file
from vsockproxy.listen.sockets import Lease, Listen, ListeningSockets

if TYPE_CHECKING:
    import ssl

    from prometheus_client import CollectorRegistry

    from vsockproxy.admin.daemon import Daemon

_BACKLOG: Final = 128  # scrapers and operators are few
_REMEDY: Final = "raise LimitNOFILE= (or ulimit -n); a reload tries again"


def http_endpoints(config: Config) -> dict[ListenEndpoint, Listen]:
    """Return where a configuration has the HTTP servers listen."""
    endpoints: dict[ListenEndpoint, Listen] = {}
    if config.metrics is not None:
        endpoints[config.metrics] = Listen("metrics", Policy(backlog=_BACKLOG))
    admin = config.admin
    if admin.listen is not None:
        policy = Policy(backlog=_BACKLOG, mode=admin.mode, group=admin.group)
        endpoints[admin.listen] = Listen("admin", policy)
    return endpoints


class HttpServers:
    """The HTTP servers of one daemon, by their endpoints."""

    def __init__(self, daemon: Daemon, sockets: ListeningSockets, log: Any) -> None:
        """Borrow ``sockets``, where every endpoint is open before its server is started."""
        self._daemon = daemon
        self._sockets = sockets
        self._log = log
        self._tls: ssl.SSLContext | None = None
        self._running: dict[ListenEndpoint, _Server] = {}

    def certificates(self, config: Config) -> ssl.SSLContext | None:
        """Return what is in the files that ``config`` names, for `use`; raises `ConfigError`."""
        if config.metrics is None or config.metrics_tls is None:
            return None
        from vsockproxy.admin.tls import tls_context  # noqa: PLC0415 - only where TLS is configured

        return tls_context(config.metrics_tls, config.source)

    def use(self, certificates: ssl.SSLContext | None) -> None:
        """Show these to the clients that come from now on; None is no TLS."""
        self._tls = certificates

    async def stop_others(self, config: Config) -> None:
        """Stop the servers that ``config`` does not have; return when their endpoints are free."""
        for endpoint in self._running.keys() - http_endpoints(config).keys():
            await self._running[endpoint].stop()

    async def start(self, config: Config, nursery: trio.Nursery) -> None:
        """Run every server that ``config`` has; their endpoints are open."""
        for endpoint, how in http_endpoints(config).items():
            if endpoint in self._running:
                self._running[endpoint].lease.configure(how)
            else:
                server = _Server(how.owner, self._sockets.lease(endpoint, how))
                self._running[endpoint] = server
                await nursery.start(self._serve, server)

    async def _serve(self, server: _Server, *, task_status: trio.TaskStatus[None]) -> None:
        serve = self._serve_metrics if server.name == "metrics" else self._serve_control
        started_once = _StartedOnce(task_status)

        async def serve_at(sockets: Sequence[ListeningSocket]) -> None:
            await serve([one.sock for one in sockets], task_status=started_once)

        try:
            with server.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(keep_file, server.lease, self._log)
                    nursery.start_soon(server.lease.serve, serve_at)
        except* OSError as errors:  # no descriptor is left: the routes go on without
            error = sentences(errors)[0]
            self._log.error("http_server_failed", server=server.name, error=error, remedy=_REMEDY)
            started_once.started()
        except* Exception:  # noqa: BLE001 - a defect there ends no route
            self._log.exception("http_server_failed", server=server.name, remedy="reload")
            started_once.started()
        finally:
            del self._running[server.lease.endpoint]
            server.lease.release()

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

        further = read_only_routes(self._registry(), self._daemon)
        await serve_control(sockets, self._daemon, further, task_status=task_status)

    def _registry(self) -> CollectorRegistry:
        from vsockproxy.metrics import make_registry  # noqa: PLC0415 - see above

        return make_registry(self._daemon)


class _Server:
    """A server that runs, and how to stop it."""

    def __init__(self, name: str, lease: Lease) -> None:
        self.name = name
        self.lease = lease
        self.scope = trio.CancelScope()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.lease.released.wait()


class _StartedOnce:
    """A task status that may be started again: a server starts anew at each renewed socket."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, _value: object = None) -> None:
        with suppress(RuntimeError):
            self._task_status.started()
