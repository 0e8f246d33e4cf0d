"""All routes at work: start them, retarget them, pause, drain and stop them.

Owns: `Supervisor`, the nursery under which every route runs, and the table of running routes.
Reads no configuration and binds nothing: `daemon` does both, and tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from shlex import quote
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.admit.gate import QueueReason
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.settings import Config, Route
from vsockproxy.errors import OrderError
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.listener import RouteListener, listen_for
from vsockproxy.listen.sockets import Listen, ListeningSockets
from vsockproxy.pump.transfer import Pump
from vsockproxy.readable import count as counted
from vsockproxy.stats import RouteState, RouteStats

_OFF: Final = "a defect ended it, see route_error in the log; vsockproxy reload"
_CLOSED: Final[Mapping[RouteState, str]] = {
    "paused": "an operator has paused it; vsockproxy resume {}",
    "retrying": "its listener cannot be opened yet; see listener_retrying in the log",
    "off": _OFF,
}
"""Why a route in a state accepts no clients, and what to do; the place is the route's name."""


class Supervisor:
    """Run routes until the last connection has ended.

    Attributes:
      listeners: the routes that accept, by their endpoints.
      admission: the limits that all routes share.
      guests: where guests are, for all routes.
      is_drained: whether no connection of a route that has ended had to be ended.
    """

    def __init__(self, config: Config, sockets: ListeningSockets, log: Any) -> None:
        """Borrow ``sockets``, where every endpoint of a route is open before it is started."""
        self.listeners: dict[ListenEndpoint, RouteListener] = {}
        self.admission = Admission(config.limits)
        self.guests = Guests(config.guests, log=log)
        self.is_drained = True
        self._sockets = sockets
        self._log = log
        self._pump: Pump
        self._stats: dict[str, RouteStats] = {}
        self._draining: set[RouteListener] = set()
        self._drained: dict[str, ListenEndpoint] = {}  # by an operator, and where they listened
        self._off: set[str] = set()  # routes that a defect has ended
        self._configured: tuple[Route, ...] = ()
        self._shared = config.limits, config.guests
        self._numbers = count(1)
        self._nursery: trio.Nursery
        self._stopped = trio.Event()

    async def run(self, pump: Pump, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the routes that `reconfigure` names, until `stop` and the last connection's end.

        ``task_status`` is started at once; `reconfigure` may be called from then on.
        """
        self._pump = pump
        async with trio.open_nursery() as beside:
            beside.start_soon(self.admission.count_aside)
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await self._stopped.wait()
            beside.cancel_scope.cancel()

    # ---- a configuration ----

    def wanted(self, config: Config) -> dict[ListenEndpoint, Listen]:
        """Return where the routes of a configuration listen, except those that are drained."""
        return {r.listen: listen_for(r) for r in config.routes if not self._is_drained(r)}

    async def reconfigure(self, config: Config) -> None:
        """Run the routes of a configuration whose endpoints are open.

        A route with the same name and endpoint keeps its listener: its new target and policy are
        for new connections. A route that is gone stops accepting and drains. Returns once the
        sockets of those are free.
        """
        self._configured = config.routes
        self._off.clear()  # they are started again
        self._drained = {r.name: r.listen for r in config.routes if self._is_drained(r)}
        shared, self._shared = self._shared, (config.limits, config.guests)
        if shared != self._shared:
            self.admission.reconfigure(config.limits)
            self.guests.reconfigure(config.guests)
        routes = {route.listen: route for route in config.routes}
        for endpoint, listener in list(self.listeners.items()):
            route = routes.get(endpoint)
            if route is not None and route.name == listener.route.name:
                before = listener.route
                if route == before:  # an unchanged one keeps its bandwidth, and the dials under way
                    continue
                listener.reconfigure(route)
                if (route.target, route.others) != (before.target, before.others):
                    self._log_listening(listener)
            else:
                await self._retire(listener, listener.drain)
        if self._stopped.is_set():
            return
        for route in config.routes:
            if self._is_drained(route):
                self._stats[route.name].route = route
            elif route.listen not in self.listeners:
                self._start(route)
        self._forget_stats()
        self.admission.count_again()  # listeners have come or gone

    def _start(self, route: Route) -> None:
        stats = self._stats.setdefault(route.name, RouteStats(route))
        stats.route = route
        listener = RouteListener(
            self._sockets.lease(route.listen, listen_for(route)),
            stats,
            pump=self._pump,
            numbers=self._numbers,
            log=self._log,
            admission=self.admission,
            guests=self.guests,
        )
        self.listeners[route.listen] = listener
        self._nursery.start_soon(self._serve, listener)
        self._log_listening(listener)

    def _log_listening(self, listener: RouteListener) -> None:
        route = listener.route
        if listener.sockets:  # else `listener_retrying` is logged
            target = " ".join(map(str, route.targets or (route.target,)))
            self._log.info("listening", route=route.name, listen=str(route.listen), target=target)

    async def _serve(self, listener: RouteListener) -> None:
        drained = False
        try:
            drained = await listener.serve()
        except* Exception:  # noqa: BLE001 - a defect of one route ends no other
            self._give_up(listener)
        if self._stopped.is_set():
            self.is_drained = self.is_drained and drained
        if listener in self._draining:
            self._draining.remove(listener)
            self._forget_stats()

    def _give_up(self, listener: RouteListener) -> None:
        """Turn a route off after a defect that is being handled; a reload starts it again."""
        route = listener.route
        self._log.exception("route_error", route=route.name, remedy="the route is off: reload")
        if self.listeners.get(route.listen) is listener and not self._stopped.is_set():
            del self.listeners[route.listen]
            self._off.add(route.name)
            # Without a socket its clients are refused, not queued.
            self._sockets.close_when_released(route.listen)
            self._sockets.released(route.listen)

    async def _retire(self, listener: RouteListener, leave: Callable[[], None]) -> None:
        """Have a route accept no more; return when its endpoint is free for another."""
        del self.listeners[listener.route.listen]
        self._draining.add(listener)
        leave()
        await listener.released.wait()

    def _forget_stats(self) -> None:
        """Drop the counters of names that no route has any more."""
        used = [*(listener.route for listener in self._all_listeners()), *self._configured]
        for name in self._stats.keys() - {route.name for route in used}:
            del self._stats[name]

    # ---- what views read ----

    def live(self) -> int:
        """Return how many connections are open."""
        return sum(len(stats.live) for stats in self._stats.values())

    def stats(self) -> list[RouteStats]:
        """Return the counters of every route, those that still drain included."""
        return list(self._stats.values())

    def not_ready(self) -> list[str]:
        """Return what keeps the routes from being ready, a sentence each."""
        reasons = []
        if self._stopped.is_set():
            reasons.append(f"draining: {counted(self.live(), 'connection')} left")
        if self.admission.is_short():
            reasons.append("file descriptors are nearly used up: raise LimitNOFILE= (ulimit -Hn)")
        if self.admission.is_out_of_memory():
            reasons.append("memory is nearly used up: raise LimitAS= (ulimit -Hv)")
        reasons.extend(f"route {name}: {_OFF}" for name in sorted(self._off))
        of_routes = (listener.not_ready() for listener in self.listeners.values())
        return [*reasons, *filter(None, of_routes)]

    def closed_routes(self) -> list[str]:
        """Return a sentence for each route that is kept from accepting, but not by a failure."""
        if self._stopped.is_set():
            return []
        closed = {one.route.name for one in self.listeners.values() if one.is_closed}
        return [f"route {name}: {self.accepts(name)}" for name in sorted({*closed, *self._drained})]

    def state_of(self, stats: RouteStats) -> RouteState:
        """Return what a route does now."""
        listener = self.listeners.get(stats.route.listen)
        if listener is None or listener.stats is not stats or self._stopped.is_set():
            if stats.route.name in self._off:
                return "off"
            return "draining" if stats.live else "drained"
        if listener.is_paused:
            return "paused"
        if listener.is_retrying:
            return "retrying"
        return "queued" if listener.queue_reason() else "listening"

    def closed_by(self, stats: RouteStats) -> str | None:
        """Return why a route accepts no clients, and what to do; None where it does."""
        state = self.state_of(stats)
        if state in ("draining", "drained"):
            return self._drained_by(stats.route)
        sentence = _CLOSED.get(state)
        return sentence and sentence.format(quote(stats.route.name))

    def _drained_by(self, route: Route) -> str:
        if self._stopped.is_set():
            return "the daemon is stopping"
        if self._is_drained(route):
            return f"an operator has drained it; vsockproxy resume {quote(route.name)}"
        return "it is not in the configuration any more: it drains"

    def not_direct(self, stats: RouteStats) -> str | None:
        """Return why a route is not direct (`config.direct`), in words; None where it is."""
        listener = self.listeners.get(stats.route.listen)
        return listener.not_direct() if listener else "it does not accept clients"

    def queued_by(self, stats: RouteStats) -> QueueReason | None:
        """Return the limit that queues the clients of a route, or None."""
        listener = self.listeners.get(stats.route.listen)
        return listener.queue_reason() if listener else None

    def accepts(self, name: str) -> str | None:
        """Return why a route accepts no clients, or None where it does."""
        stats = self._stats.get(name)
        return "there is no such route" if stats is None else self.closed_by(stats)

    async def reach(self, name: str) -> str | None:
        """Dial the target of a route that accepts, and hang up; return why it is not reached."""
        if reason := self.accepts(name):
            return reason
        listener = self._listener(name)
        assert listener is not None
        return await listener.reach()

    # ---- an operator's orders ----
    # Each raises `OrderError` where it cannot be carried out; a repeated one changes nothing.

    def pause(self, name: str) -> None:
        """Leave a route's clients in the backlog until `resume`."""
        listener = self._obeying(name)
        if listener is None:
            raise OrderError(
                f"the route {name!r} is drained: it has no listener to queue clients",
                "resume it, then pause it",
            )
        if not listener.is_paused:
            listener.pause()
            self._log.info("route_paused", route=name)

    async def drain(self, name: str) -> None:
        """Close a route's listener until `resume`; its connections end by themselves."""
        if listener := self._obeying(name):
            self._drained[name] = listener.route.listen
            self._sockets.close_when_released(listener.route.listen)
            self._log.info("route_draining", route=name, connections=len(listener.stats.live))
            await self._retire(listener, listener.stop_accepting)

    def drained_endpoint(self, name: str) -> dict[ListenEndpoint, Listen]:
        """Return where a drained route will listen once it is resumed; empty for another."""
        return {
            route.listen: listen_for(route)
            for route in self._configured
            if route.name == name and self._is_drained(route)
        }

    def resume(self, name: str) -> None:
        """Have a route accept again; the endpoint of a drained one is open."""
        listener = self._obeying(name)
        if listener is None:
            del self._drained[name]
            self._start(next(route for route in self._configured if route.name == name))
        elif listener.is_paused:
            listener.resume()
        else:
            return
        self._log.info("route_resumed", route=name)

    def _obeying(self, name: str) -> RouteListener | None:
        """Return the listener of a route that takes orders; None if an operator has drained it."""
        if all(name != route.name for route in self._configured):
            raise OrderError(
                f"the route {name!r} is not in the configuration any more: it drains",
                "add it to the configuration, then reload",
            )
        listener = self._listener(name)
        if name in self._off or (listener is None and name not in self._drained):
            raise OrderError(f"the route {name!r} is off: a defect ended it", "reload")
        return listener

    def stop(self) -> None:
        """Drain at the first call, end every connection at the second."""
        for listener in self._all_listeners():
            if self._stopped.is_set():
                listener.end_connections()
            else:
                listener.drain()
        self._stopped.set()

    def _listener(self, name: str) -> RouteListener | None:
        return next((one for one in self.listeners.values() if one.route.name == name), None)

    def _is_drained(self, route: Route) -> bool:
        return self._drained.get(route.name) == route.listen

    def _all_listeners(self) -> list[RouteListener]:
        return [*self.listeners.values(), *self._draining]
