"""All routes together: bind, say ready, reload, drain, stop.

Owns: `Supervisor`, the one nursery under which everything runs.  Every listener is bound
before anything is served or changed, so a daemon that is ready has all of its ports, one
that cannot have them leaves nothing behind, and a reload that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from time import time
from typing import Any

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.admit.admission import Admission, QueueReason
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.daemon.http import Services, wanted_by
from vsockproxy.errors import ListenError, VsockproxyError
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.bind import socket_file
from vsockproxy.listen.listener import RouteListener
from vsockproxy.listen.renew import keep_present
from vsockproxy.listen.sockets import Forget, Inherited, Keep, Ports
from vsockproxy.log.output import get_logger
from vsockproxy.log.recent import Events, Recorder
from vsockproxy.pump.native import open_pump
from vsockproxy.pump.transfer import Pump
from vsockproxy.stats import Reloads, RouteState, RouteStats

Reload = Callable[[], Awaitable[list[str]]]
"""Reads the configuration again; what is wrong with it, if it is not taken."""


class Supervisor:
    """Runs a configuration, and those that replace it, until the last connection has ended.

    Attributes:
      config: what runs now.
      listeners: the routes that accept, by the endpoint they listen at.
      reloads: how reloading went so far.
      started: when it was made, in seconds of the epoch.
      events: the last failures and changes.
    """

    def __init__(
        self,
        config: Config,
        *,
        inherited: Inherited | None = None,
        keep: Keep | None = None,
        forget: Forget | None = None,
    ) -> None:
        """``inherited`` are the sockets that systemd handed in, by name.

        With ``keep`` and ``forget`` listening sockets outlive this process: see `Ports`.
        """
        self.config = config
        self.started = time()
        self.events = Events()
        self.listeners: dict[ListenEndpoint, RouteListener] = {}
        self.reloads = Reloads(config)
        self.admission = Admission(config.limits)
        self._ports = Ports(inherited or {}, keep=keep, forget=forget)
        self._draining: set[RouteListener] = set()
        self._stats: dict[str, RouteStats] = {}
        self._drained: dict[str, ListenEndpoint] = {}  # by an operator, and where they listened
        self._numbers = count(1)
        self._log: Any = Recorder(get_logger(), self.events)
        self.guests = Guests(config.guests, log=self._log)
        self._beside = Services(self, self._ports, self._let_go, self._log)
        self._reload: Reload | None = None
        self._pump: Pump
        self._routes: trio.Nursery
        self._services: trio.Nursery
        self._stopping = trio.Event()
        self._changing = trio.Lock()  # held while listeners come and go
        self._stops = 0
        self._cut = False

    async def run(
        self,
        *,
        reload: Reload | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> bool:
        """Serve until `stop`; True when every connection ended by itself.

        ``reload`` is what an operator asks for; it calls `reload`.  ``task_status`` is started
        when every listener, those for HTTP included, is bound.  Raises `ListenError`, naming
        the route, when one cannot be; nothing stays open then.
        """
        self._reload = reload
        async with open_pump(self.config.pump) as self._pump:
            self._log.info("pump_started", pump=self._pump.name, why=self._pump.why)
            certificates = self._beside.certificates(self.config)
            self._open(self.config)
            self._beside.adopt(certificates)
            try:
                async with trio.open_nursery() as self._services:
                    async with trio.open_nursery() as self._routes:
                        await self._apply(self.config)
                        self._log.info(
                            "ready", routes=len(self.listeners), config=self.config.source
                        )
                        task_status.started()
                        await self._stopping.wait()
                    self._services.cancel_scope.cancel()
            finally:
                self._ports.leave_all()
        self._log.info("stopped", drained=not self._cut)
        return not self._cut

    async def reload(self, load: Callable[[], Config]) -> None:
        """Replace the configuration by what ``load`` gives, without losing a connection.

        Routes with the same name and listener keep both; their new target and policy are
        for new connections. Routes that are gone stop accepting and drain.

        Raises `VsockproxyError`, and then everything goes on as it was.
        """
        async with self._changing:
            try:
                config = await trio.to_thread.run_sync(load)
                certificates = self._beside.certificates(config)
                opened = self._open(config)
            except VsockproxyError:
                self.reloads.failed()
                raise
            self._warn_of_fixed(config)
            self._beside.adopt(certificates)
            if not await self._apply(config):
                self._close_unused(opened)
                return
            self.reloads.succeeded(config)
            self._log.info("reloaded", routes=len(self.listeners), config=config.fingerprint)

    def stop(self) -> None:
        """Drain at the first call, end every connection at the second."""
        self._stops += 1
        self._log.info("draining" if self._stops == 1 else "shutting_down", connections=self.live())
        self._tell_listeners()
        self._stopping.set()

    async def alive(self) -> None:
        """Return once every pump thread has answered; for a watchdog, with its own deadline."""
        await self._pump.alive()

    def not_ready(self) -> list[str]:
        """What keeps the daemon from being ready, in words; empty when it is."""
        not_ready = []
        if self._stops:
            not_ready.append(f"draining: {self.live()} connections are left")
        if self.admission.is_short():
            not_ready.append("file descriptors are nearly used up: raise LimitNOFILE= (ulimit -Hn)")
        not_ready.extend(
            filter(None, (listener.not_ready() for listener in self.listeners.values()))
        )
        return not_ready

    def live(self) -> int:
        """How many connections are open."""
        return sum(len(stats.live) for stats in self._stats.values())

    def stats(self) -> list[RouteStats]:
        """The counters of every route, those that still drain included."""
        return list(self._stats.values())

    # ---- steering ----

    @property
    def pump_name(self) -> str:
        """What moves the bytes."""
        return self._pump.name

    async def reach(self, name: str) -> str | None:
        """Dial a route's target and hang up: why that cannot be done, if it cannot."""
        listener = self._listener(name)
        return await listener.reach() if listener else "there is none that listens"

    def state_of(self, stats: RouteStats) -> RouteState:
        """What a route does now."""
        listener = self.listeners.get(stats.route.listen)
        if listener is None or listener.stats is not stats or self._stops:
            return "draining" if stats.live else "drained"
        if listener.is_paused:
            return "paused"
        return "queued" if listener.queue_reason() else "listening"

    def queued_by(self, stats: RouteStats) -> QueueReason | None:
        """Return the limit that queues a route's clients in its backlog, or None."""
        listener = self.listeners.get(stats.route.listen)
        return listener.queue_reason() if listener else None

    def pause(self, name: str) -> None:
        """Have a route's clients wait in the backlog until `resume`; a drained one stays so."""
        if listener := self._listener(name):
            listener.pause()
            self._log.info("route_paused", route=name)

    async def drain(self, name: str) -> None:
        """Close a route's listener until `resume`; its connections end by themselves."""
        async with self._changing:
            if listener := self._listener(name):
                self._drained[name] = listener.route.listen
                self._log.info("route_draining", route=name, connections=len(listener.stats.live))
                await self._retire(listener, listener.retire)

    async def resume(self, name: str) -> None:
        """Have a route accept again; raises `ListenError`, and then a drained one stays so."""
        async with self._changing:
            if listener := self._listener(name):
                listener.resume()
            elif name in self._drained and not self._stops:
                self._start_again(name)
            self._log.info("route_resumed", route=name)

    def _start_again(self, name: str) -> None:
        endpoint = self._drained.pop(name)
        try:
            self._open(self.config)
        except ListenError:
            self._drained[name] = endpoint
            raise
        self._start(next(route for route in self.config.routes if route.name == name))

    async def reload_as_asked(self) -> list[str]:
        """Reload as a signal does; what is wrong, if the configuration is not taken."""
        if self._reload is None:
            return ["this daemon was started without a configuration that could be read again"]
        return await self._reload()

    def _listener(self, name: str) -> RouteListener | None:
        return next((one for one in self.listeners.values() if one.route.name == name), None)

    def _is_drained(self, route: Route) -> bool:
        return self._drained.get(route.name) == route.listen

    # ---- listening ----

    def _wanted(self, config: Config) -> dict[ListenEndpoint, tuple[str, Policy]]:
        """Where to listen, each with who does and how."""
        wanted: dict[ListenEndpoint, tuple[str, Policy]] = {
            route.listen: (f"route {route.name}", route.policy)
            for route in config.routes
            if not self._is_drained(route)
        }
        return wanted | wanted_by(config)

    def _open(self, config: Config) -> list[ListenEndpoint]:
        """Bind what ``config`` wants and is not open yet: those. On an error, nothing of it."""
        opened: list[ListenEndpoint] = []
        wanted = self._wanted(config)
        try:
            for endpoint, (owner, policy) in wanted.items():
                if endpoint not in self._ports:
                    self._ports.open(owner, endpoint, policy, wanted)
                    opened.append(endpoint)
                    self._log.debug("listening", owner=owner, listen=str(endpoint))
        except ListenError:
            for endpoint in opened:
                self._ports.close(endpoint)
            raise
        return opened

    def _close_unused(self, opened: list[ListenEndpoint]) -> None:
        """Close what nobody will accept at, so that its clients are refused and do not wait."""
        for endpoint in opened:
            if endpoint in self._ports and endpoint not in self.listeners:
                self._ports.close(endpoint)

    def _warn_of_fixed(self, config: Config) -> None:
        """Say which changes a running process cannot follow."""
        for name in ("pump", "log"):
            if getattr(config, name) != getattr(self.config, name):
                self._log.warning("needs_restart", settings=name)

    def _let_go(self, endpoint: ListenEndpoint) -> None:
        """Close a listener that nobody waits for any more, unless it has a next user."""
        if self._stops:
            self._ports.leave(endpoint)
        elif endpoint not in self._wanted(self.config):
            self._ports.close(endpoint)

    # ---- serving ----

    async def _apply(self, config: Config) -> bool:
        """Make what runs what ``config`` says; its listeners are open.

        False when the daemon was told to stop: then no route is started any more.
        """
        if self._stops:
            return False
        self.config = config
        self._drained = {r.name: r.listen for r in config.routes if self._is_drained(r)}
        self.admission.adopt(config.limits)
        self.guests.adopt(config.guests)
        routes = {route.listen: route for route in config.routes}
        for endpoint, listener in list(self.listeners.items()):
            route = routes.get(endpoint)
            if route is not None and route.name == listener.route.name:
                listener.adopt(route)
            else:
                await self._retire(listener, listener.stop)
        await self._beside.stop_others(config)
        if self._stops:
            return False
        for route in config.routes:
            if self._is_drained(route):
                self._stats[route.name].route = route
            elif route.listen not in self.listeners:
                self._start(route)
        self._forget_stats()
        await self._beside.start(config, self._services)
        return True

    def _start(self, route: Route) -> None:
        stats = self._stats.setdefault(route.name, RouteStats(route))
        listener = RouteListener(
            route,
            self._ports[route.listen],
            stats,
            pump=self._pump,
            numbers=self._numbers,
            log=self._log,
            admission=self.admission,
            guests=self.guests,
        )
        self.listeners[route.listen] = listener
        self._routes.start_soon(self._serve, listener)
        if socket_file(route.listen) is not None:
            self._routes.start_soon(keep_present, listener, self._ports, self._log)

    async def _retire(self, listener: RouteListener, leave: Callable[[], None]) -> None:
        """Have a route accept no more; returns when its sockets are free for another."""
        del self.listeners[listener.route.listen]
        self._draining.add(listener)
        leave()
        await listener.released.wait()

    async def _serve(self, listener: RouteListener) -> None:
        drained = await listener.serve(partial(self._let_go, listener.route.listen))
        if self._stops:
            self._cut = self._cut or not drained
        if listener in self._draining:
            self._draining.remove(listener)
            self._forget_stats()

    def _forget_stats(self) -> None:
        """Drop the counters of names that no route has any more."""
        users = [*(other.route for other in self._all_listeners()), *self.config.routes]
        for name in self._stats.keys() - {route.name for route in users}:
            del self._stats[name]

    def _tell_listeners(self) -> None:
        for listener in self._all_listeners():
            if self._stops == 1:
                listener.stop()
            elif self._stops:
                listener.end()

    def _all_listeners(self) -> list[RouteListener]:
        return [*self.listeners.values(), *self._draining]
