"""One route at work: its listening sockets, and the connections that came in by them.

Owns: `RouteListener`.  Accepting waits for nothing but the kernel: dialling is the
relay's, in a task of its own, so a guest that does not answer never holds up the next
client.  An accept error never ends the listener.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import trio

from vsockproxy.admit.admission import Admission, Gate, QueueReason
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.dial.selection import Targets
from vsockproxy.errors import ListenError
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.bind import ListeningSocket
from vsockproxy.log.output import Throttle
from vsockproxy.pump.reset import reset_descriptor
from vsockproxy.pump.transfer import Bounds, EndReason, Pump
from vsockproxy.relay.relay import Relay
from vsockproxy.stats import RouteStats, TargetState

_BATCH: Final = 64  # clients taken before other tasks get their turn; arbitrary

# accept(2), "Error handling": what is wrong with the one connection that was just taken
# off the queue.  The next one may be well, so there is nothing to wait for.
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


class RouteListener:
    """Accepts a route's clients and runs a relay for each, until it is told to stop."""

    def __init__(
        self,
        route: Route,
        sockets: Sequence[ListeningSocket],
        stats: RouteStats,
        *,
        pump: Pump,
        numbers: Iterator[int],
        log: Any,
        admission: Admission | None = None,
        guests: Guests | None = None,
    ) -> None:
        """Borrow ``sockets``, which listen already; ``numbers`` names connections.

        ``stats`` outlive it where a reload gives the route another listener.  ``admission``
        and ``guests`` are what all routes share; without them, this route shares with nobody.
        """
        self.route = route
        self.sockets = sockets
        self.stats = stats
        self._numbers = numbers
        self._log = log
        self._failures = Throttle(log)
        self._pump = pump
        self._gate = Gate(stats, admission or Admission(), log)
        self._targets = Targets(stats, guests or Guests(), log)
        self.adopt(route)
        self.released = trio.Event()
        self._accepting = trio.CancelScope()
        self._turn = _Turn()
        self._turn.ended.set()
        self._relaying = trio.CancelScope()
        self._resumed: trio.Event | None = None
        self._is_stopping = False

    def adopt(self, route: Route) -> None:
        """Treat new connections as ``route`` says; live ones end as they began."""
        self.route = route
        self.stats.route = route
        self._gate.adopt(route)
        self._targets.adopt(route)
        for listening in self.sockets:
            self._configure(listening)
        policy = route.policy
        shared = policy.bandwidth and (
            self._pump.share(policy.bandwidth),
            self._pump.share(policy.bandwidth),
        )
        bounds = Bounds(
            policy.idle_timeout,
            policy.half_close_timeout,
            route.holds_half_close,
            policy.connection_bandwidth,
            shared or None,
            policy.max_lifetime,
        )
        self._relay = Relay(
            self.stats, self._gate, self._pump, bounds, self._targets, self._log, self._failures
        )

    def _configure(self, listening: ListeningSocket) -> None:
        """Give a listener the policy's options; it goes on with those it had if it cannot."""
        try:
            listening.configure(self.route.policy)
        except ListenError as error:
            self._log.error("listener_options_failed", route=self.route.name, error=str(error))

    async def serve(self, release: Callable[[], object]) -> bool:
        """Accept until `stop`, then let the connections end.

        ``release`` is called, and ``released`` set, once no task waits for the sockets any
        more: their owner closes them then, or gives them to another listener.

        True when all of them ended by themselves, False when ``drain_timeout`` or `end`
        cut some off.
        """
        with self._relaying:
            async with self._targets.tended(), trio.open_nursery() as relays:
                try:
                    with self._accepting:
                        while True:
                            await self._accept_everywhere(relays)
                finally:
                    release()
                    self.released.set()
                if self._is_stopping:
                    self._bound_the_rest()
        return not self._relaying.cancelled_caught

    async def replace(self, sockets: Sequence[ListeningSocket]) -> None:
        """Accept at other sockets; returns once no task waits for those from before."""
        self.sockets = sockets
        self._turn.scope.cancel()
        await self._turn.ended.wait()

    @property
    def is_paused(self) -> bool:
        """Whether clients wait in the backlog because somebody wants it so."""
        return self._resumed is not None

    def queue_reason(self) -> QueueReason | None:
        """The limit that keeps clients in the backlog now, if one does."""
        return self._gate.queue_reason()

    async def reach(self) -> str | None:
        """Dial the targets until one answers, and hang up: why none does, if that is so."""
        return await self._targets.reach()

    def pause(self) -> None:
        """Accept no more until `resume`: clients wait in the backlog, live ones go on."""
        self._resumed = self._resumed or trio.Event()

    def resume(self) -> None:
        """Accept again."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    def retire(self) -> None:
        """Accept no more; live connections end by themselves, or by a later `stop`."""
        self._accepting.cancel()

    @property
    def targets(self) -> list[TargetState]:
        """What is known of each target."""
        return self.stats.targets

    def not_ready(self) -> str | None:
        """Why the route is not ready, in words; None when it is."""
        return self._targets.not_ready()

    def stop(self) -> None:
        """Accept no more; live connections have ``drain_timeout`` to end."""
        if not self._is_stopping:
            self._is_stopping = True
            self._accepting.cancel()
            if self.released.is_set():
                self._bound_the_rest()

    def end(self) -> None:
        """Accept no more and end every connection now."""
        self._call_endings("shutdown")
        self._relaying.cancel()

    def _bound_the_rest(self) -> None:
        self._call_endings("drained")
        self._relaying.deadline = trio.current_time() + self.route.policy.drain_timeout

    def _call_endings(self, reason: EndReason) -> None:
        for connection in self.stats.live:
            if connection.ending != "killed":  # its end is under way
                connection.ending = reason

    async def _accept_everywhere(self, relays: trio.Nursery) -> None:
        """Accept at every socket that there is, until they are replaced."""
        turn = self._turn = _Turn()
        try:
            with turn.scope:
                async with trio.open_nursery() as acceptors:
                    for listening in self.sockets:
                        acceptors.start_soon(self._accept, listening.sock, relays)
                    await trio.sleep_forever()  # there may be none yet
        finally:
            turn.ended.set()

    async def _accept(self, sock: socket.socket, relays: trio.Nursery) -> None:
        troubles = 0
        while True:
            await trio.lowlevel.wait_readable(sock)
            if self._gate.queue_reason():
                await self._gate.opened()
            if self._resumed is not None:
                self._gate.pass_on()
                await self._resumed.wait()
                continue
            error = self._accept_batch(sock, relays)
            self._gate.pass_on()
            if error is None:
                troubles = self._recovered(troubles)
                await trio.lowlevel.checkpoint()
            else:
                troubles += 1
                await self._back_off(error, troubles)

    def _accept_batch(self, sock: socket.socket, relays: trio.Nursery) -> OSError | None:
        """Take the clients that wait; the error after which waiting makes sense, if any.

        The gate is open for the first of them.
        """
        family = sock.family
        trouble = None
        taken = 0
        for _ in range(_BATCH):
            room = self._gate.room(_BATCH)
            try:
                clients = self._pump.accept(sock.fileno(), room)
            except BlockingIOError:
                return None
            except OSError as error:
                self.stats.accept_errors += 1
                trouble = error
                if error.errno in _PEER_ERRORS:
                    continue
                return error
            for client, address in clients:
                connection = Connection(next(self._numbers), self.route, family, address)
                self._take(client, connection, relays)
            taken += len(clients)
            if len(clients) < room or taken >= _BATCH or self._gate.queue_reason():
                return None
        return None if taken else trouble

    def _take(self, client: int, connection: Connection, relays: trio.Nursery) -> None:
        if self._gate.admit(client, connection):
            relays.start_soon(self._relay.serve, client, connection, name="relay")
        else:
            reset_descriptor(client, connection.family)

    async def _back_off(self, error: OSError, troubles: int) -> None:
        """Wait, for the descriptor table or memory to have room again: 10 ms to 1 s."""
        self._gate.recount()
        if troubles == 1:
            self._log.error(
                "accept_failed",
                route=self.route.name,
                error=str(error),
                remedy="clients wait in the backlog; raise LimitNOFILE= (or ulimit -n)",
            )
        await trio.sleep(min(0.01 * 2 ** (troubles - 1), 1.0))

    def _recovered(self, troubles: int) -> int:
        if troubles:
            self._log.info("accept_recovered", route=self.route.name, failures=troubles)
        return 0


class _Turn:
    """The time for which a route accepts at one set of sockets."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
