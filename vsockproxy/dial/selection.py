"""How a route reaches a target: which one, when, and for whom.

Owns: `Targets`, one for each route. A client's own dial is all there is in the plain case: one
target and no waiting. Otherwise targets are dialled on behalf of those who wait, by a few
tasks whatever the number of clients, and each socket goes to whoever is next.

Knows nothing of bytes, pumps or admission; the nursery of those tasks is open while `tended`.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio

from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.dial.hold import Outcome, Reached, WaitingRoom
from vsockproxy.dial.target import OURS, Target
from vsockproxy.errors import DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.stats import HeldResult, RouteStats, TargetState

_MOST_HELD: Final = 1000  # clients of a route
_AT_ONCE: Final = 64  # dials at once for clients that have waited
_FIRST_PAUSE: Final = 0.05  # seconds between two dials of an absent target; doubled each time
_LONGEST_PAUSE: Final = 2.0
_RANKS: Final = {"up": 0, "unknown": 0, "refused": 1, "down": 2}


class Targets:
    """The way to one route's targets; `adopt` is called before anything else."""

    def __init__(self, stats: RouteStats, guests: Guests, log: Any) -> None:
        """``stats`` outlive it, and the states of the targets with them."""
        self._stats = stats
        self._guests = guests
        self._log = log
        self._room = WaitingRoom()
        self._turn = 0
        self._diallers = 0
        self._nursery: trio.Nursery | None = None
        self._probing = trio.CancelScope()
        self._targets: list[Target] = []
        self._reaching = trio.Lock()
        self._reached: list[str | None] = []

    def adopt(self, route: Route) -> None:
        """Reach the targets of ``route``, as its policy says, from now on."""
        self._route, self._policy = route, route.policy
        self._targets = [self._target_at(state) for state in self._states(route)]
        self._stats.targets = [target.state for target in self._targets]
        for target in self._targets:
            target.follow(route.policy)
        policy = route.policy
        is_plain = not (policy.wait_for_guest or policy.fail_fast or policy.ready_when_up)
        self._only = self._targets[0] if is_plain and len(self._targets) == 1 else None
        self._probing.cancel()
        if self._nursery is not None:
            self._tend(self._nursery)

    def _states(self, route: Route) -> Iterator[TargetState]:
        known = {state.address: state for state in self._stats.targets}
        for endpoint in route.targets:
            yield known.get(endpoint) or TargetState(endpoint)

    def _target_at(self, state: TargetState) -> Target:
        for target in self._targets:
            if target.state is state:
                return target
        names = {"route": self._route.name, "target": str(state.address)}
        return Target(state, self._guests, names, self._log)

    # ---- a client's way ----

    def connect_at_once(self) -> socket.socket | None:
        """A connected socket where that takes no waiting, else None; raises `DialError`."""
        if self._only is not None:
            return self._only.dial_at_once()
        if len(self._targets) == 1 and self._targets[0].is_up:
            with suppress(DialError):  # what follows from that is for `connect` to say
                return self._targets[0].dial_at_once()
        return None

    def connect(self, client: socket.socket, connection: Connection) -> Awaitable[socket.socket]:
        """A socket connected to a target, for ``connection``; the caller's to close.

        ``client`` stays the caller's, and no byte of it is read.  Awaiting it raises
        `DialError`; one whose reason is ``client_left`` when there is nobody to connect.
        """
        if self._only is not None:
            return self._only.dial(connection.assign)
        return self._reach(client, connection)

    async def _reach(self, client: socket.socket, connection: Connection) -> socket.socket:
        began = trio.current_time()
        failure: DialError | None = None
        for target in self._candidates():
            connection.target = target.state.address
            try:
                return await target.dial(connection.assign)
            except DialError as error:
                failure = error
                self._attend()
                if error.reason in OURS:
                    break
        else:
            longest = self._policy.wait_for_guest
            if longest is not None and not self._is_hopeless():
                return await self._hold(client, connection, began + longest)
        if failure is None:
            self._attend()
            failure = self._known_error("it was not dialled: fail_fast")
        raise failure

    async def reach(self) -> str | None:
        """Dial until a target answers, and hang up: what is wrong with the last, if none does.

        Those who ask while it is under way share its answer.
        """
        known = self._reached
        async with self._reaching:
            if self._reached is known:
                self._reached = [await self._dial_until_one_answers()]
            return self._reached[0]

    async def _dial_until_one_answers(self) -> str | None:
        words: str | None = None
        for target in self._in_order():
            try:
                (await target.dial(_unassigned)).close()
            except DialError as error:
                words = str(error)
            else:
                words = None
                break
        self._attend()
        return words

    def _candidates(self) -> list[Target]:
        """The targets that a client dials itself, in this order."""
        order = self._in_order()
        if self._policy.wait_for_guest is not None and not self._is_hopeless():
            return [target for target in order if target.is_up]
        if self._policy.fail_fast:
            return [target for target in order if target.state.name != "down"]
        return order

    def _in_order(self) -> list[Target]:
        """All targets: those that may be up first, as `balance` says."""
        if len(self._targets) == 1:
            return self._targets
        ready = [target for target in self._targets if not _rank(target)]
        if self._policy.balance == "round_robin" and ready:
            self._turn = (self._turn + 1) % len(ready)
            ready = ready[self._turn :] + ready[: self._turn]
        return ready + sorted(filter(_rank, self._targets), key=_rank)

    def _is_hopeless(self) -> bool:
        """Whether it makes no sense to wait for any target."""
        return all(target.is_hopeless for target in self._targets)

    async def _hold(
        self, client: socket.socket, connection: Connection, deadline: float
    ) -> socket.socket:
        """Have a client wait until a target answers; what is dialled for it is its own."""
        if len(self._room) >= _MOST_HELD:
            self._stats.held_results["full"] += 1
            sentence = f"{len(self._room)} clients wait for it already, which is the most"
            raise DialError(connection.target, "too_many_held", sentence)
        began = trio.current_time()
        waiter = self._room.enter(client)
        self._attend()
        self._stats.held += 1
        try:
            outcome = await self._room.wait(waiter, deadline)
        finally:
            self._stats.held -= 1
            connection.held_seconds = trio.current_time() - began
        self._stats.held_results[_result(outcome)] += 1
        if isinstance(outcome, Reached):
            return self._follow(connection, outcome)
        raise self._error_of(outcome, connection)

    def _follow(self, connection: Connection, reached: Reached) -> socket.socket:
        connection.target = reached.target.state.address
        connection.vmm_port = reached.vmm_port
        return reached.sock

    def _error_of(self, outcome: Outcome, connection: Connection) -> DialError:
        if isinstance(outcome, DialError):
            return outcome
        if outcome == "left":
            sentence = "the client left while it waited"
            return DialError(connection.target, "client_left", sentence)
        return self._known_error(f"a client waited {connection.held_seconds:.3g} s for it")

    def _known_error(self, more: str) -> DialError:
        """What is wrong with the first target that something is known of."""
        for target in self._targets:
            if target.state.last_error is not None:
                return target.state.last_error.again(f"; {more}")
        return DialError(self._route.target, "timeout", f"it has not answered yet; {more}")

    # ---- the targets' own tasks ----

    @asynccontextmanager
    async def tended(self) -> AsyncIterator[None]:
        """Look after the targets while the block runs."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._tend(nursery)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                self._nursery = None

    def not_ready(self) -> str | None:
        """Why the route is not ready, where `ready_when_up` asks; None when it is."""
        if not self._policy.ready_when_up or any(target.is_up for target in self._targets):
            return None
        return f"route {self._route.name}: {self._known_error('ready_when_up')}"

    def _tend(self, nursery: trio.Nursery) -> None:
        if self._policy.probe_interval is not None:
            self._probing = trio.CancelScope()
            nursery.start_soon(self._probe_all, self._policy.probe_interval, self._probing)
        self._attend()

    def _attend(self) -> None:
        """Start the tasks that the targets and those who wait need and have not."""
        if self._nursery is None:
            return
        for target in self._targets:
            if self._is_wanted(target) and not target.is_retried:
                target.is_retried = True
                self._nursery.start_soon(self._retry, target)
        if any(target.is_up for target in self._targets):
            while self._diallers < min(_AT_ONCE, len(self._room)):
                self._diallers += 1
                self._nursery.start_soon(self._dial_for_waiting)
        if len(self._room) and not self._room.is_watched:
            self._room.is_watched = True
            self._nursery.start_soon(self._room.watch)

    def _is_wanted(self, target: Target) -> bool:
        """Whether somebody must find out when a target comes up."""
        if target.is_up or target not in self._targets:
            return False  # a reload may have dropped it
        policy, state = self._policy, target.state.name
        return (
            len(self._room) > 0
            or policy.ready_when_up
            or (policy.fail_fast and state == "down")
            or (len(self._targets) > 1 and state != "unknown")
        )

    async def _probe_all(self, interval: float, scope: trio.CancelScope) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for target in self._targets:
                    nursery.start_soon(self._probe, target, interval)

    async def _probe(self, target: Target, interval: float) -> None:
        """Dial a target every ``interval``."""
        while True:
            if not target.is_retried:
                await self._try(target)
            await trio.sleep(_about(interval))

    async def _retry(self, target: Target) -> None:
        """Dial a target with growing pauses until it answers or nobody wants it any more."""
        pause = _FIRST_PAUSE
        while self._is_wanted(target):
            before = target.state.name
            if await self._try(target):
                continue
            if target.state.name != before:
                pause = _FIRST_PAUSE  # it is on its way
            await trio.sleep(_about(pause))
            pause = min(2 * pause, _LONGEST_PAUSE)
        target.is_retried = False
        self._attend()  # somebody else may have found it up

    async def _dial_for_waiting(self) -> None:
        """Dial targets that are up for those who wait, one after the other."""
        while len(self._room) >= self._diallers:
            target = self._in_order()[0]
            if not target.is_up:
                break
            if not await self._try(target):
                await trio.sleep(_about(_FIRST_PAUSE))
        self._diallers -= 1
        self._attend()  # another target may be up

    async def _try(self, target: Target) -> bool:
        """Dial a target once, for whoever is next; whether it answered."""
        numbers: list[int] = []
        try:
            sock = await target.dial(numbers.append)
        except DialError as error:
            if error.reason not in OURS and self._is_hopeless():
                self._room.dismiss(error)
            self._attend()
            return False
        except Exception:  # noqa: BLE001 - it is logged, and must not end the other routes
            self._log.exception("dial_error", route=self._route.name)
            return False
        self._room.hand_over(Reached(sock, target, numbers[0] if numbers else None))
        self._attend()
        await trio.lowlevel.checkpoint()
        return True


def _unassigned(_vmm_port: int) -> None:
    """The number of a connection that nobody has."""


def _rank(target: Target) -> int:
    return _RANKS[target.state.name]


def _result(outcome: Outcome) -> HeldResult:
    if isinstance(outcome, Reached):
        return "served"
    return "failed" if isinstance(outcome, DialError) else outcome


def _about(seconds: float) -> float:
    """A little less, so that what began together does not go on so."""
    return seconds * random.uniform(0.7, 1.0)  # noqa: S311 - no secret
