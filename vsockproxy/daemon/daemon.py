"""The daemon: run a configuration, and those that replace it, until the last connection has ended.

Owns: `Daemon`, which opens every endpoint before anything changes, and is what the API asks and
commands. So a daemon that is ready has all of its ports, and one that cannot have them leaves
nothing behind. Reloads are `reload`'s, the routes are the supervisor's, the HTTP servers are
`http_servers`'s, signals are `signals`'s.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from time import time
from typing import TYPE_CHECKING, Any

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.admin.socket_path import DefaultSocket
from vsockproxy.config.added import Added
from vsockproxy.config.changes import Changes
from vsockproxy.config.settings import Config
from vsockproxy.daemon.change import Changing
from vsockproxy.daemon.http_servers import HttpServers, http_endpoints
from vsockproxy.daemon.reload import START_AGAIN, Load, Reloading, in_thread
from vsockproxy.daemon.supervisor import Supervisor
from vsockproxy.daemon.watch import Watch
from vsockproxy.errors import ListenError, OrderError
from vsockproxy.listen.fd_store import FdStore
from vsockproxy.listen.sockets import Listen, ListeningSockets
from vsockproxy.log.output import get_logger
from vsockproxy.log.recent import RecentEvents, Recorder
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Pump
from vsockproxy.readable import count
from vsockproxy.stats import Reloads
from vsockproxy.systemd import Notifier

if TYPE_CHECKING:
    import ssl


class Daemon:
    """Everything that runs, as its process and its operator see it.

    Attributes:
      config: the configuration that runs now.
      base: it without what was added at run time.
      added: what was added at run time.
      started: when it was made, in seconds of the epoch.
      reloads: how reloading went so far.
      events: the recent failures and changes.
      changing: held while listeners come and go.
    """

    def __init__(
        self,
        config: Config,
        *,
        load: Load | None = None,
        inherited: Mapping[str, Sequence[socket.socket]] | None = None,
        store: FdStore | None = None,
        notifier: Notifier | None = None,
        control: DefaultSocket | None = None,
    ) -> None:
        """Own ``inherited``, the sockets that systemd handed in, by name.

        ``load`` is what a reload reads; without it there is no reload. With ``store`` listening
        sockets outlive the process. ``notifier`` tells systemd what the daemon does. ``control``
        has resolved the configuration, and resolves those that ``load`` returns.
        """
        self.config = self.base = config
        self.added = Added()
        self.started = time()
        self.events = RecentEvents()
        self._log: Any = Recorder(get_logger(), self.events)
        self._notifier = notifier or Notifier({}, 0)
        self._control = control or DefaultSocket({}, 0)
        self.reloads = Reloads(config)
        self._reloading = Reloading(self, load, self._notifier, self._log)
        self._watch = Watch(self, load, self._log) if load else None
        self.changing_entries = Changing(self, self._reloading, self._log)
        self._sockets = ListeningSockets(inherited, store=store, log=self._log)
        self._http = HttpServers(self, self._sockets, self._log)
        self.supervisor = Supervisor(config, self._sockets, self._log)
        self._certificates: ssl.SSLContext | None = None
        self._pump: Pump
        self._tasks: trio.Nursery
        self.changing = trio.Lock()
        self._stops = 0
        self._is_ready = False
        self._drains = False
        self._status = ""

    @property
    def is_stopping(self) -> bool:
        """Whether a stop was asked for: the daemon drains, will soon, or ends its connections."""
        return self._stops > 0

    @property
    def pump_name(self) -> str:
        """``native`` or ``portable``."""
        return self._pump.name

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> bool:
        """Serve until `stop`; return whether no connection had to be ended.

        ``task_status`` is started once every listener, those for HTTP included, is open.

        Raises:
          ListenError: an endpoint cannot be bound, with a note that names its route. Nothing stays
            open.
          ConfigError: a certificate cannot be read.
        """
        async with open_pump(self.config.pump) as self._pump:
            self._log.info("pump_started", pump=self._pump.name, why=self._pump.why)
            try:
                self.config, self._certificates = await self.open(self.config)
                self.base = self.config
                self.reloads.fingerprint = self.config.fingerprint
                async with trio.open_nursery() as self._tasks:
                    try:
                        async with trio.open_nursery() as routes:
                            await routes.start(self.supervisor.run, self._pump)
                            await self._start()
                            task_status.started()
                    finally:
                        self.changing_entries.end()
                    await self._http.finish()
                    self._tasks.cancel_scope.cancel()
            finally:
                self._sockets.close_all()
        drained = self.supervisor.is_drained
        self._log.info("stopped", drained=drained)
        return drained

    async def _start(self) -> None:
        async with self.changing:  # the control socket is served before all else is
            if not self._stops:  # a signal may have come first
                await self._apply(self.config, self._certificates)
        self._sockets.close_unclaimed()
        if self._stops:  # STOPPING=1 is final
            return
        self.warn_of_unused_sockets()
        routes = len(self.supervisor.listeners)
        self._log.info("ready", routes=routes, config=self.config.source)
        self._is_ready = True
        self.tell_status()
        self._notifier.ready()
        if self._watch:
            self._tasks.start_soon(self._watch.run)

    # ---- reload ----

    async def reload(self) -> Changes:
        """Read the configuration again and run it; see `Reloading.reload`."""
        return await self._reloading.reload(self._tasks)

    async def preview_reload(self) -> Changes:
        """Return what a reload would change; see `Reloading.preview`."""
        return await self._reloading.preview()

    async def replace(self, load: Load) -> None:
        """Run the configuration that ``load`` gives; see `Reloading.replace`."""
        await self._reloading.replace(load)

    async def open(self, config: Config) -> tuple[Config, ssl.SSLContext | None]:
        """Read the certificates of a configuration and open its endpoints; return both for `apply`.

        A control socket that names no path goes to the next place if its bind fails.

        Raises:
          VsockproxyError: that cannot be done, and nothing has changed.
        """
        certificates = await self.read_certificates(config)
        while True:
            try:
                await self._open_endpoints(config)
            except ListenError as error:
                config = self._control.after(error, config)
            else:
                return config, certificates

    async def _open_endpoints(self, config: Config) -> None:
        wanted = self._wanted(config)
        self._sockets.open(wanted, await self._sockets.resolve(wanted))

    async def apply(self, config: Config, certificates: ssl.SSLContext | None) -> bool:
        """Make what runs what ``config`` says; its endpoints are open.

        Returns:
          False where a stop came first: then the endpoints that no route uses are closed.

        Raises:
          Exception: a defect, or no memory is left. What ran before runs again, as far as that
            can be had.
        """
        if not self._stops:
            before = self.config, self._certificates
            try:
                await self._apply(config, certificates)
            except Exception:
                await self._put_back(*before)
                raise
        if self._stops:
            self._sockets.close_unleased()
        return not self._stops

    async def swap(self, config: Config) -> bool:
        """Run a configuration with the present certificates; return, or raise, as `apply`."""
        await self._open_endpoints(config)
        return await self.apply(config, self._certificates)

    async def _put_back(self, config: Config, certificates: ssl.SSLContext | None) -> None:
        """Run a configuration again that another one has replaced in part."""
        try:
            await self._open_endpoints(config)
            await self._apply(config, certificates)
            self._sockets.close_unleased()
        except Exception:  # noqa: BLE001 - the routes that work go on
            remedy = "some routes may be off, see status: reload, or restart the daemon"
            self._log.exception("reload_not_undone", remedy=remedy)

    async def _apply(self, config: Config, certificates: ssl.SSLContext | None) -> None:
        self.config, self._certificates = config, certificates
        self._http.use(certificates)
        if self._watch:
            self._watch.use(config.reload)
        await self._http.stop_others(config)
        await self.supervisor.reconfigure(config)
        if not self._stops:
            await self._http.start(config, self._tasks)

    async def read_certificates(self, config: Config) -> ssl.SSLContext | None:
        """Read the certificates in a thread: their file system may be slow; no thread for none."""
        if config.metrics_tls is None:
            return None
        return await in_thread(lambda: self._http.certificates(config))

    def _wanted(self, config: Config) -> dict[ListenEndpoint, Listen]:
        # The control socket first: a bind of it that fails closes no listener with clients.
        return http_endpoints(config) | self.supervisor.wanted(config)

    def warn_of_unused_sockets(self) -> None:
        """Log the sockets from systemd's socket units that no endpoint uses."""
        for name in self._sockets.unused():
            remedy = (
                f"clients are queued there forever: listen on fd:{name}, or stop its .socket unit"
            )
            self._log.warning("unused_socket", name=name, remedy=remedy)

    # ---- an operator's orders ----

    async def pause(self, name: str) -> None:
        """Leave a route's clients in the backlog until `resume`; raises `OrderError`."""
        async with self.ordering():
            self.supervisor.pause(name)

    async def drain(self, name: str) -> None:
        """Close a route's listener until `resume`; raises `OrderError`."""
        async with self.ordering():
            await self.supervisor.drain(name)

    async def resume(self, name: str) -> None:
        """Have a route accept again.

        Raises:
          OrderError: it cannot.
          ListenError: the address of a drained route cannot be had; it stays drained.
        """
        async with self.ordering():
            # No other's: a route that a defect has ended stays closed until a reload.
            wanted = {
                endpoint: how
                for endpoint, how in self._wanted(self.config).items()
                if endpoint in self._sockets
            } | self.supervisor.drained_endpoint(name)
            resolved = await self._sockets.resolve(wanted)
            self._check_orders()
            self._sockets.open(wanted, resolved)
            self.supervisor.resume(name)

    @asynccontextmanager
    async def ordering(self) -> AsyncIterator[None]:
        """Keep reloads and other orders away; raise `OrderError` where a stop came first."""
        async with self.changing:
            self._check_orders()
            yield

    def _check_orders(self) -> None:
        if self._stops:  # every route drains, or will soon
            raise OrderError("the daemon is stopping: its routes take no orders", START_AGAIN)

    def stop(self) -> None:
        """Drain at the first call, after drain_delay; end every connection at the second."""
        self._stops += 1
        if self._stops == 1:
            self._notifier.stopping()
            delay = self.config.limits.drain_delay
            if delay and self._is_ready:
                self._log.info("drain_delayed", seconds=delay, connections=self.supervisor.live())
                self._tasks.start_soon(self._drain_after, delay)
            else:
                self._drain()
        else:
            self._log.info("shutting_down", connections=self.supervisor.live())
            self._drain()
            self.supervisor.stop()
        self.tell_status()

    async def _drain_after(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._drain()
        self.tell_status()

    def _drain(self) -> None:
        """Close the listeners; one that drains goes on."""
        if not self._drains:
            self._drains = True
            self._log.info("draining", connections=self.supervisor.live())
            self._sockets.leave()
            self.supervisor.stop()

    # ---- life signs ----

    async def alive(self) -> None:
        """Return once every pump thread has answered; the caller bounds the time."""
        await self._pump.alive()

    def not_ready(self) -> list[str]:
        """Return what keeps the daemon from being ready, a sentence each."""
        delayed = self._stops and not self._drains
        stopping = (
            ["stopping: clients are accepted until drain_delay has passed"] if delayed else []
        )
        return [*stopping, *self.supervisor.not_ready()]

    def closed_routes(self) -> list[str]:
        """Return a sentence for each route that an operator, or a missing folder, keeps closed."""
        return self.supervisor.closed_routes()

    def accepts(self, name: str) -> str | None:
        """Return why a route accepts no clients, or None where it does."""
        return self.supervisor.accepts(name)

    async def reach(self, name: str) -> str | None:
        """Dial the target of a route that accepts, and hang up; return why it is not reached."""
        return await self.supervisor.reach(name)

    def tell_status(self) -> None:
        """Tell systemd in a line how the daemon is, if that has changed."""
        trouble = "the last reload failed, see the log; " if self.reloads.last_failure else ""
        doing = "draining" if self._drains else count(len(self.supervisor.listeners), "route")
        if self._stops and not self._drains:
            doing = "stopping after drain_delay"
        status = f"{trouble}{doing}, {count(self.supervisor.live(), 'live connection')}"
        if status != self._status and self._notifier.status(status):
            self._status = status
