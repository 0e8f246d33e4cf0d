"""One route at work: accept its clients and run a relay for each.

Owns: `RouteListener`. Accepting waits for nothing but the kernel: dialling is the relay's, in a
task per connection, so no silent guest delays the next client. No accept error ends the listener.
"""

from __future__ import annotations

import errno
import math
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NoReturn

import trio

from vsockproxy.admit.credentials import Users
from vsockproxy.admit.gate import Gate, QueueReason
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.by_name import ByName
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.dial.selection import Selection
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.bind import ListeningSocket
from vsockproxy.listen.renew import serve_renewed
from vsockproxy.listen.sockets import Lease, Listen
from vsockproxy.log.output import Throttle
from vsockproxy.pump.reset import reset_descriptor
from vsockproxy.pump.transfer import Accepted, EndReason, Pump
from vsockproxy.reasons import accept_remedy
from vsockproxy.relay.by_name import ByNameTargets
from vsockproxy.relay.direct import DirectRelays
from vsockproxy.relay.direct_clients import DirectClients
from vsockproxy.relay.failed_dial_log import FailedDials
from vsockproxy.relay.relay import Relay, bounds_of
from vsockproxy.stats import RouteStats

_BATCH: Final = 64  # clients accepted before other tasks get their turn; arbitrary

_AFTER_DEFECT: Final = 1.0  # seconds until a listener with a defect tries again; arbitrary
_DEFECTIVE: Final = 10.0  # seconds for which the route is not ready after a defect; arbitrary
_DEFECT: Final = "accepting failed, see listener_error in the log; it is tried again every second"

# accept(2), "Error handling": an error of the one connection that was taken off the queue. The
# next one may be good, so there is no reason to wait.
_PEER_ERRORS: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)


def listen_for(route: Route) -> Listen:
    """Return how a route listens at its endpoint."""
    return Listen(f"route {route.name}", route.policy, route.name)


class RouteListener:
    """Accept a route's clients and run a relay for each.

    Attributes:
      stats: the route's counters, which outlive the listener; ``stats.route`` is the route.
      is_paused: whether an operator keeps clients in the backlog.
    """

    def __init__(
        self,
        lease: Lease,
        stats: RouteStats,
        *,
        pump: Pump,
        numbers: Iterator[int],
        log: Any,
        admission: Admission | None = None,
        guests: Guests | None = None,
    ) -> None:
        """Take over ``lease``, which `serve` releases; ``numbers`` names connections.

        ``admission`` and ``guests`` are shared by all routes; by default this route has its own.
        """
        self.stats = stats
        self.is_paused = False
        self._lease = lease
        self._numbers = numbers
        self._log = log
        self._pump = pump
        self._gate = Gate(stats, admission or Admission(), log)
        self._guests = guests or Guests()
        self._selection = Selection(stats, self._guests, log)
        self._failed_dials = FailedDials(stats, self._gate, self._selection, Throttle(log))
        self._users: Users | None = None
        self._accepting = trio.CancelScope()
        self._relaying = trio.CancelScope()
        self._resumed = trio.Event()
        self._drains = False
        self._defective_until = -math.inf
        clients = partial(
            DirectClients,
            stats=stats,
            gate=self._gate,
            selection=self._selection,
            failed_dials=self._failed_dials,
            numbers=numbers,
            log=log,
        )
        self._direct = DirectRelays(self._gate, pump, clients)
        self._relay = self._make_relay(stats.route)

    @property
    def route(self) -> Route:
        """The route as new connections are treated."""
        return self.stats.route

    @property
    def sockets(self) -> Sequence[ListeningSocket]:
        """The sockets that it accepts at; none while the endpoint's folder does not exist."""
        return self._lease.sockets

    @property
    def is_retrying(self) -> bool:
        """Return whether no client finds it, as its endpoint cannot be opened yet, or again."""
        return not self.sockets or bool(self._lease.failure)

    @property
    def is_closed(self) -> bool:
        """Whether no client is accepted, for an operator or for want of a socket."""
        return self.is_paused or not self.sockets

    @property
    def released(self) -> trio.Event:
        """Set once no task waits for the sockets and the lease is given back."""
        return self._lease.released

    def reconfigure(self, route: Route) -> None:
        """Treat new connections as ``route`` says; live ones end as they began."""
        self.stats.route = route
        self._lease.configure(listen_for(route))
        self._gate.reconfigure(route)
        self._selection.reconfigure(route)
        self._relay = self._make_relay(route)

    def _make_relay(self, route: Route) -> Relay:
        bounds = bounds_of(route, self._pump)
        self._direct.reconfigure(route, bounds)
        return Relay(
            self.stats,
            self._gate,
            self._pump,
            bounds,
            self._selection,
            self._log,
            self._failed_dials,
            self._by_name(route),
        )

    def _by_name(self, route: Route) -> ByNameTargets | None:
        """Return the targets that clients name; None where the route has its own."""
        if not isinstance(route.target, ByName):
            return None
        file = route.target.credentials
        if file is None:
            self._users = None
        elif self._users is None or self._users.path != file:  # else it keeps its failures
            self._users = Users(file, self._log)
        return ByNameTargets(
            route.target, self._users, self.stats, self._gate, self._guests, self._log
        )

    async def serve(self) -> bool:
        """Accept until `stop_accepting`, then let the connections end.

        Returns:
          Whether all of them ended by themselves: ``drain_timeout`` and `end_connections` cut
          others off.
        """
        with self._relaying:
            async with self._selection.tended(), trio.open_nursery() as relays:
                self._lease.accept_queued = partial(self._accept_queued, relays=relays)
                try:
                    try:
                        with self._accepting:
                            await self._accept_despite_defects(relays)
                    finally:
                        self._lease.release()
                    if self._drains:
                        self._bound_drain()
                finally:
                    await self._direct.outlast()
        return not self._relaying.cancelled_caught

    # ---- what an operator and a view ask ----

    def queue_reason(self) -> QueueReason | None:
        """Return the limit that keeps clients in the backlog now, if one does."""
        return self._gate.queue_reason()

    async def reach(self) -> str | None:
        """Dial the targets until one answers, and hang up; return why none does, or None."""
        return await self._selection.reach()

    def not_ready(self) -> str | None:
        """Return why the route is not ready, in words; None when it is."""
        if trio.current_time() < self._defective_until:
            return f"route {self.route.name}: {_DEFECT}"
        return self._selection.not_ready()

    def not_direct(self) -> str | None:
        """Return why the route is not direct, in words; None where it is."""
        return self._direct.why_not

    def pause(self) -> None:
        """Leave new clients in the backlog until `resume`; live connections go on."""
        self.is_paused = True
        self._direct.pause()

    def resume(self) -> None:
        """Accept again."""
        self.is_paused = False
        self._direct.resume()
        self._resumed.set()
        self._resumed = trio.Event()

    # ---- the end ----

    def stop_accepting(self) -> None:
        """Accept no more; live connections end by themselves, or by a later `drain`."""
        self._accepting.cancel()

    def drain(self) -> None:
        """Accept no more; live connections have ``drain_timeout`` to end."""
        if not self._drains:
            self._drains = True
            self._accepting.cancel()
            if self.released.is_set():
                self._bound_drain()

    def end_connections(self) -> None:
        """Accept no more and end every connection now, without waiting for slow clients."""
        self._name_endings("shutdown")
        for connection in list(self.stats.live):
            connection.end_now(connection.ending)
        self._relaying.cancel()

    def _bound_drain(self) -> None:
        self._name_endings("drained")
        self._relaying.deadline = trio.current_time() + self.route.policy.drain_timeout

    def _name_endings(self, reason: EndReason) -> None:
        self._direct.name_endings(reason)
        for connection in self.stats.live:
            if connection.ending != "killed":  # an operator is ending it already
                connection.ending = reason

    # ---- accepting ----

    async def _accept_despite_defects(self, relays: trio.Nursery) -> None:
        """Accept until cancelled; a defect is logged, and live connections go on."""
        while True:
            try:
                accept = partial(self._accept_at, relays=relays)
                await serve_renewed(self._lease, accept, self._log)
            except* Exception:  # noqa: BLE001 - it must not end the daemon
                self._defective_until = trio.current_time() + _DEFECTIVE
                self._log.exception("listener_error", route=self.route.name, remedy=_DEFECT)
            await trio.sleep(_AFTER_DEFECT)

    async def _accept_at(self, sockets: Sequence[ListeningSocket], *, relays: trio.Nursery) -> None:
        if len(sockets) == 1:  # as most routes have: a task less for each
            await self._accept(sockets[0].sock, relays)
        async with trio.open_nursery() as acceptors:
            for listening in sockets:
                acceptors.start_soon(self._accept, listening.sock, relays)
            await trio.sleep_forever()  # there may be no socket yet

    async def _accept(self, sock: socket.socket, relays: trio.Nursery) -> NoReturn:
        failures = 0
        while True:
            # After an error it is seen here that clients are accepted again.
            error = None if failures else await self._direct.serve(sock.fileno())
            if error is not None:
                self.stats.accept_errors += 1
            if error is None or error.errno in _PEER_ERRORS:
                # Whether an error of one client is a lasting one is found out here.
                await trio.lowlevel.wait_readable(sock)
                if self._gate.queue_reason():
                    await self._gate.wait_for_room()
                if self.is_paused:
                    self._gate.wake_others()
                    await self._resumed.wait()
                    continue
                error = self._accept_batch(sock, relays)
                self._gate.wake_others()
            elif self._gate.is_short_by(error):
                continue
            if error is None:
                failures = self._recovered(failures)
                await trio.lowlevel.checkpoint()
            else:
                failures += 1
                await self._back_off(error, failures)

    def _accept_batch(self, sock: socket.socket, relays: trio.Nursery) -> OSError | None:
        """Accept the queued clients; return the error after which waiting makes sense, if any.

        The gate is open for the first of them.
        """
        family, route = sock.family, self.route
        failure = None
        accepted = 0
        for _ in range(_BATCH):
            room = self._gate.room(_BATCH)
            try:
                clients = self._pump.accept(sock.fileno(), room)
            except BlockingIOError:
                return None
            except OSError as error:
                self.stats.accept_errors += 1
                failure = error
                if error.errno in _PEER_ERRORS:
                    continue
                return error
            for client, address in clients:
                connection = Connection(next(self._numbers), route, family, address)
                self._admit(client, connection, relays)
            accepted += len(clients)
            if len(clients) < room or accepted >= _BATCH or self._gate.queue_reason():
                return None
        return None if accepted else failure

    def _admit(self, client: int, connection: Connection, relays: trio.Nursery) -> None:
        if self._gate.admit(client, connection):
            relays.start_soon(self._relay.serve, client, connection, name="relay")
        else:
            reset_descriptor(client, connection.family)

    def _accept_queued(self, sock: socket.socket, *, relays: trio.Nursery) -> None:
        """Accept every client in the backlog of a socket that is about to be closed.

        Clients for which no descriptor is left stay in it, and are reset.
        """
        room = self._gate.connections_free()
        clients: list[Accepted] = []
        failures = 0
        while len(clients) < room and failures < _BATCH:
            try:
                clients += self._pump.accept(sock.fileno(), min(_BATCH, room - len(clients)))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EINVAL:  # a Unix socket that is shut down, and empty
                    break
                failures += 1 if error.errno in _PEER_ERRORS else _BATCH
        if clients:
            relays.start_soon(self._serve_queued, clients, sock.family, relays)

    async def _serve_queued(
        self, clients: Sequence[Accepted], family: int, relays: trio.Nursery
    ) -> None:
        """Admit clients, the first one first, as the limits allow: they bound the target's load."""
        left = deque(clients)
        try:
            while left:
                await self._gate.wait_for_room()
                client, address = left.popleft()
                connection = Connection(next(self._numbers), self.route, family, address)
                connection.ending = "drained" if self._drains else connection.ending
                self._admit(client, connection, relays)
        finally:
            for client, _ in left:
                reset_descriptor(client, family)

    async def _back_off(self, error: OSError, failures: int) -> None:
        """Wait for the descriptor table or memory to have room again: 10 ms to 1 s."""
        self._gate.recount()
        if failures == 1:
            self._log.error(
                "accept_failed",
                route=self.route.name,
                error=str(error),
                remedy=accept_remedy(error.errno),
            )
        await trio.sleep(min(0.01 * 2 ** (failures - 1), 1.0))

    def _recovered(self, failures: int) -> int:
        if failures:
            self._log.info("accept_recovered", route=self.route.name, failures=failures)
        return 0
