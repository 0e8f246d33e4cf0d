"""The HTTP servers beside the routes: the metrics' and the operator's.

Owns: which server runs at which endpoint, and that a server which cannot run harms no route.
What they serve is the admin folder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.config.settings import Config, Policy
from vsockproxy.errors import first_of, sentences
from vsockproxy.listen.bind import ListeningSocket
from vsockproxy.listen.renew import serve_renewed
from vsockproxy.listen.sockets import Lease, Listen, ListeningSockets
from vsockproxy.log.output import Throttle
from vsockproxy.reasons import accept_remedy

if TYPE_CHECKING:
    import ssl

    from vsockproxy.admin.daemon_interface import Daemon
    from vsockproxy.http.server import HttpServer

_BACKLOG: Final = 128  # scrapers and operators are few
_METRICS: Final = "metrics"
_ADMIN: Final = "admin"
_MODULES: Final = {
    _METRICS: ("vsockproxy.metrics", "vsockproxy.admin.probes", "vsockproxy.admin.page"),
    _ADMIN: ("vsockproxy.metrics", "vsockproxy.admin.probes", "vsockproxy.admin.control"),
}
_PAUSE: Final = 1.0  # seconds until a server that failed is tried again
_GRACE: Final = 0.5  # seconds that answers have at the end of the daemon


def http_endpoints(config: Config) -> dict[ListenEndpoint, Listen]:
    """Return where a configuration has the HTTP servers listen; the control socket is first."""
    endpoints: dict[ListenEndpoint, Listen] = {}
    admin = config.admin
    if admin.listen is not None:
        policy = Policy(backlog=_BACKLOG, mode=admin.mode, group=admin.group)
        endpoints[admin.listen] = Listen(_ADMIN, policy)
    metrics = Listen(_METRICS, Policy(backlog=_BACKLOG))
    return endpoints | dict.fromkeys(config.metrics, metrics)


class HttpServers:
    """The HTTP servers of one daemon, by their endpoints."""

    def __init__(self, daemon: Daemon, sockets: ListeningSockets, log: Any) -> None:
        """Borrow ``sockets``, where every endpoint is open before its server is started."""
        self._daemon = daemon
        self._sockets = sockets
        self._log = log
        self._tls: ssl.SSLContext | None = None
        self._failures = Throttle(log)
        self._servers: dict[str, HttpServer] = {}
        self._running: dict[ListenEndpoint, _Running] = {}

    def certificates(self, config: Config) -> ssl.SSLContext | None:
        """Return what is in the files that ``config`` names, for `use`; raises `ConfigError`."""
        if not config.metrics or config.metrics_tls is None:
            return None
        from vsockproxy.admin.tls import tls_context  # noqa: PLC0415 - only where TLS is configured

        return tls_context(config.metrics_tls, config.source)

    def use(self, certificates: ssl.SSLContext | None) -> None:
        """Show these to the clients that come from now on; None is no TLS."""
        self._tls = certificates

    async def stop_others(self, config: Config) -> None:
        """Stop the servers that ``config`` does not have; return when their endpoints are free."""
        wanted = {endpoint: how.owner for endpoint, how in http_endpoints(config).items()}
        for endpoint, running in list(self._running.items()):
            if wanted.get(endpoint) != running.name:
                await running.stop()

    async def start(self, config: Config, nursery: trio.Nursery) -> None:
        """Run every server that ``config`` has; their endpoints are open.

        Clients run in the nursery: one whose request stops its server gets its answer.
        """
        for endpoint, how in http_endpoints(config).items():
            if endpoint in self._running:
                self._running[endpoint].lease.configure(how)
                continue
            await self._prepare(how.owner)
            running = _Running(how.owner, self._sockets.lease(endpoint, how))
            self._running[endpoint] = running
            nursery.start_soon(self._serve, running, nursery)
            self._log.info("listening", server=how.owner, listen=str(endpoint))

    async def finish(self) -> None:
        """Let the answers under way reach their clients, within a bound."""
        with trio.move_on_after(_GRACE):
            for server in self._servers.values():
                await server.finish()

    async def _serve(self, running: _Running, clients: trio.Nursery) -> None:
        """Serve at a lease until stopped.

        A failure is tried again: an open socket that no task serves would keep its clients
        waiting.
        """
        lease = running.lease

        async def serve_at(sockets: Sequence[ListeningSocket]) -> None:
            server = await self._server(running.name)
            await server.serve([one.sock for one in sockets], clients)

        try:
            with running.scope:
                while True:
                    try:
                        await serve_renewed(lease, serve_at, self._log)
                    except* Exception as errors:  # noqa: BLE001 - the routes go on
                        self._log_failure(running.name, errors)
                    await trio.sleep(_PAUSE)
        finally:
            del self._running[lease.endpoint]
            lease.release()

    async def _prepare(self, name: str) -> None:
        """Make a server before READY: imports after it would keep the relays waiting."""
        try:
            await self._server(name)
        except Exception as error:  # noqa: BLE001 - no descriptor or no memory is left
            self._log_failure(name, error)

    async def _server(self, name: str) -> HttpServer:
        """Return the server of a name, made at its first use.

        Its modules are imported here: a daemon without it does not pay for them.
        """
        if name not in self._servers:
            await _imported(_MODULES[name])
            self._servers[name] = self._made(name)
        return self._servers[name]

    def _made(self, name: str) -> HttpServer:
        from vsockproxy.admin.probes import metrics_server, read_only_routes  # noqa: PLC0415
        from vsockproxy.admin.registry import Registry  # noqa: PLC0415

        registry = Registry(self._daemon)
        if name == _METRICS:
            from vsockproxy.admin.page import StatusPage  # noqa: PLC0415

            page = StatusPage(self._daemon)
            return metrics_server(registry, self._daemon, page.answer, tls=lambda: self._tls)
        from vsockproxy.admin.control import control_server  # noqa: PLC0415

        return control_server(self._daemon, read_only_routes(registry, self._daemon))

    def _log_failure(self, name: str, error: BaseException) -> None:
        error = first_of(error)
        remedy = accept_remedy(error.errno if isinstance(error, OSError) else None)
        defect = {} if isinstance(error, OSError | MemoryError) else {"exc_info": error}
        self._failures.warning(
            "http_server_failed",
            lambda: {"server": name},
            reason=type(error).__name__,
            error=sentences(error)[0],
            remedy=remedy,
            **defect,
        )


class _Running:
    """A server at one endpoint, and how to stop it."""

    def __init__(self, name: str, lease: Lease) -> None:
        self.name = name
        self.lease = lease
        self.scope = trio.CancelScope()

    async def stop(self) -> None:
        self.scope.cancel()
        await self.lease.released.wait()


async def _imported(modules: Sequence[str]) -> None:
    """Import modules in a thread, or here if none can be started."""
    for module in modules:
        try:
            await trio.to_thread.run_sync(import_module, module)
        except RuntimeError:
            import_module(module)
