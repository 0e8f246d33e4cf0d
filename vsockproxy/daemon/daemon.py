"""The daemon: run a configuration, and those that replace it, until the last connection has ended.

Owns: `Daemon`, which reads and applies configurations, opens every endpoint before anything
changes, and is what the API asks and commands. So a daemon that is ready has all of its ports, one
that cannot have them leaves nothing behind, and a reload that fails changes nothing. The routes
are the supervisor's, the HTTP servers are `http`'s, signals are `process`'s.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from time import time
from typing import Any

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.config.settings import Config
from vsockproxy.daemon.http import HttpServers, http_endpoints
from vsockproxy.daemon.supervisor import Supervisor
from vsockproxy.errors import VsockproxyError
from vsockproxy.listen.sockets import FdStore, Listen, ListeningSockets
from vsockproxy.log.output import get_logger
from vsockproxy.log.recent import RecentEvents, Recorder
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Pump
from vsockproxy.readable import count
from vsockproxy.stats import Reloads
from vsockproxy.systemd import Notifier

Load = Callable[[], Config]
"""Reads the configuration again; called in a thread. Raises `ConfigError`."""


class Daemon:
    """Everything that runs, as its process and its operator see it.

    Attributes:
      config: the configuration that runs now.
      started: when it was made, in seconds of the epoch.
      reloads: how reloading went so far.
      events: the recent failures and changes.
    """

    def __init__(
        self,
        config: Config,
        *,
        load: Load | None = None,
        inherited: Mapping[str, Sequence[socket.socket]] | None = None,
        store: FdStore | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """Own ``inherited``, the sockets that systemd handed in, by name.

        ``load`` is what a reload reads; without it there is no reload. With ``store`` listening
        sockets outlive the process. ``notifier`` tells systemd what the daemon does.
        """
        self.config = config
        self.started = time()
        self.events = RecentEvents()
        self.reloads = Reloads(config)
        self._load = load
        self._log: Any = Recorder(get_logger(), self.events)
        self._notifier = notifier or Notifier({}, 0)
        self._sockets = ListeningSockets(inherited, store=store, log=self._log)
        self._http = HttpServers(self, self._sockets, self._log)
        self.supervisor = Supervisor(config, self._sockets, self._log)
        self._pump: Pump
        self._tasks: trio.Nursery
        self._changing = trio.Lock()  # held while listeners come and go
        self._stops = 0
        self._status = ""
        self._reload_failed = False

    @property
    def pump_name(self) -> str:
        """``native`` or ``portable``."""
        return self._pump.name

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> bool:
        """Serve until `stop`; return whether every connection ended by itself.

        ``task_status`` is started once every listener, those for HTTP included, is open.

        Raises:
          ListenError: an endpoint cannot be bound, with a note that names its route. Nothing stays
            open.
          ConfigError: a certificate cannot be read.
        """
        async with open_pump(self.config.pump) as self._pump:
            self._log.info("pump_started", pump=self._pump.name, why=self._pump.why)
            try:
                certificates = self._http.certificates(self.config)
                self._sockets.open(self._wanted(self.config))
                self._http.use(certificates)
                async with trio.open_nursery() as self._tasks:
                    async with trio.open_nursery() as routes:
                        await routes.start(self.supervisor.run, self._pump)
                        await self._start()
                        task_status.started()
                    self._tasks.cancel_scope.cancel()
            finally:
                self._sockets.close_all()
        drained = self.supervisor.is_drained
        self._log.info("stopped", drained=drained)
        return drained

    async def _start(self) -> None:
        if not self._stops:  # a signal may have come first
            await self._apply(self.config)
        self._sockets.close_unclaimed()
        self._warn_of_unused_sockets()
        routes = len(self.supervisor.listeners)
        self._log.info("ready", routes=routes, config=self.config.source)
        self.tell_status()
        self._notifier.ready()

    # ---- reload ----

    async def reload(self) -> list[str]:
        """Read the configuration again and run it, without losing a connection.

        Cancelled, it still goes on to its end.

        Returns:
          The problems that keep the configuration from running, and then nothing has changed;
          empty when it runs.
        """
        if self._load is None:
            return ["this daemon was started without a configuration that could be read again"]
        if self._stops:  # and the tasks may have ended
            return ["the daemon drains: it takes no other configuration"]
        self._notifier.reloading()
        reload = _Reload(self._load)
        self._tasks.start_soon(self._reload, reload)
        await reload.ended.wait()
        return reload.problems

    async def _reload(self, reload: _Reload) -> None:
        try:
            await self.replace(reload.load)
        except VsockproxyError as error:
            reload.problems = _problems(error)
        self._reload_failed = bool(reload.problems)
        for problem in reload.problems:
            self._log.error("reload_failed", problem=problem)
        self.tell_status()
        if not self._stops:  # STOPPING=1 is final
            self._notifier.ready()
        reload.ended.set()

    async def replace(self, load: Load) -> None:
        """Run the configuration that ``load`` gives in place of the present one.

        Raises:
          VsockproxyError: it cannot be read or run, and nothing has changed.
        """
        async with self._changing:
            try:
                config = await trio.to_thread.run_sync(load)
                certificates = self._http.certificates(config)
                self._sockets.open(self._wanted(config))
            except VsockproxyError:
                self.reloads.failed()
                raise
            if self._stops:
                self._sockets.close_unleased()
                return
            for name in ("pump", "log"):
                if getattr(config, name) != getattr(self.config, name):
                    self._log.warning("needs_restart", settings=name)
            self._http.use(certificates)
            await self._apply(config)
            if self._stops:
                self._sockets.close_unleased()
                return
            self.reloads.succeeded(config)
            routes = len(self.supervisor.listeners)
            self._log.info("reloaded", routes=routes, config=config.fingerprint)
            self._warn_of_unused_sockets()

    async def _apply(self, config: Config) -> None:
        """Make what runs what ``config`` says; its endpoints are open."""
        self.config = config
        await self._http.stop_others(config)
        await self.supervisor.reconfigure(config)
        if not self._stops:
            await self._http.start(config, self._tasks)

    def _wanted(self, config: Config) -> dict[ListenEndpoint, Listen]:
        return self.supervisor.wanted(config) | http_endpoints(config)

    def _warn_of_unused_sockets(self) -> None:
        for name in self._sockets.unused():
            remedy = (
                f"clients are queued there forever: listen on fd:{name}, or stop its .socket unit"
            )
            self._log.warning("unused_socket", name=name, remedy=remedy)

    # ---- an operator's orders ----

    def pause(self, name: str) -> None:
        """Leave a route's clients in the backlog until `resume`."""
        self.supervisor.pause(name)

    async def drain(self, name: str) -> None:
        """Close a route's listener until `resume`; its connections end by themselves."""
        async with self._changing:
            if not self._stops:  # every route drains then, and its endpoint is closed
                await self.supervisor.drain(name)

    async def resume(self, name: str) -> None:
        """Have a route accept again; raises `ListenError`, and a drained route stays drained."""
        async with self._changing:
            if not self._stops:
                wanted = self._wanted(self.config) | self.supervisor.drained_endpoint(name)
                self._sockets.open(wanted)
                self.supervisor.resume(name)

    def stop(self) -> None:
        """Drain at the first call, end every connection at the second."""
        self._stops += 1
        event = "draining" if self._stops == 1 else "shutting_down"
        self._log.info(event, connections=self.supervisor.live())
        self._sockets.leave()
        if self._stops == 1:
            self._notifier.stopping()
        self.supervisor.stop()
        self.tell_status()

    # ---- life signs ----

    async def alive(self) -> None:
        """Return once every pump thread has answered; the caller bounds the time."""
        await self._pump.alive()

    def not_ready(self) -> list[str]:
        """Return what keeps the daemon from being ready, a sentence each."""
        return self.supervisor.not_ready()

    async def reach(self, name: str) -> str | None:
        """Dial a route's target and hang up; return why that fails, or None."""
        return await self.supervisor.reach(name)

    def tell_status(self) -> None:
        """Tell systemd in a line how the daemon is, if that has changed."""
        trouble = "the last reload failed, see the log; " if self._reload_failed else ""
        doing = "draining" if self._stops else count(len(self.supervisor.listeners), "route")
        status = f"{trouble}{doing}, {count(self.supervisor.live(), 'live connection')}"
        if status != self._status and self._notifier.status(status):
            self._status = status


class _Reload:
    """A reload that a caller waits for, and what came of it."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.problems: list[str] = []
        self.ended = trio.Event()


def _problems(error: VsockproxyError) -> list[str]:
    """Return the lines of an error, each after what it was about (`BaseException.add_note`)."""
    notes: list[str] = getattr(error, "__notes__", [])
    return [": ".join([*notes, line]) for line in str(error).splitlines()]
