"""Choose the target of a client among a route's targets, and hold clients until one is up.

Owns: `Selection`, one for each route. A client of a route with one target and no special policy
dials itself. Otherwise one background task for each target dials it while its state matters, and
a few more dial for held clients; a connected socket goes to the client that was held longest.
Tasks never start one another: each change sets an event that they wait for.

Knows no bytes, pumps or admission. The background tasks run while `tended` does.
"""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from math import inf
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import Target
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.dial.held_clients import MOST_HELD, HeldClients, Outcome, Reached
from vsockproxy.dial.target import OURS, Dialer
from vsockproxy.errors import DialError, dial_error
from vsockproxy.guests.directory import Guests
from vsockproxy.stats import HeldResult, RouteStats, TargetState

_AT_ONCE: Final = 64  # parallel dials for held clients
_FIRST_PAUSE: Final = 0.05  # seconds between two dials of an absent target; doubled each time
_LONGEST_PAUSE: Final = 2.0
_RANKS: Final = {"up": 0, "unknown": 0, "refused": 1, "down": 2}


class Selection:
    """Connect the clients of one route to its targets."""

    def __init__(self, stats: RouteStats, guests: Guests, log: Any) -> None:
        """Serve ``stats.route``; ``stats`` outlives the selection and keeps the target states."""
        self._stats = stats
        self._guests = guests
        self._log = log
        self._held = HeldClients()
        self._changed = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._background = trio.CancelScope()
        self._turn = 0
        self._targets: list[Dialer] = []
        self._check = trio.Lock()
        self._check_result: list[str | None] = []
        self.reconfigure(stats.route)

    def reconfigure(self, route: Route) -> None:
        """Follow a new configuration of the route; held clients stay, and so do target states."""
        policy = route.policy
        known = {state.address: state for state in self._stats.targets}
        states = [known.get(endpoint) or TargetState(endpoint) for endpoint in route.targets]
        dialers = {id(dialer.state): dialer for dialer in self._targets}
        self._route, self._policy = route, policy
        for target in self._targets:
            target.reconfigure(policy)
        self._targets = [dialers.get(id(state)) or self._dialer(state) for state in states]
        self._stats.targets = states
        special = policy.wait_for_guest or policy.fail_fast or policy.ready_when_up
        is_plain = len(states) == 1 and not special
        self._only = self._targets[0] if is_plain else None
        self._needs_background = bool(states) and (
            not is_plain or policy.probe_interval is not None
        )
        self._restart_background()

    def _dialer(self, state: TargetState) -> Dialer:
        names = {"route": self._route.name, "target": str(state.address)}
        return Dialer(state, self._policy, self._guests, names=names, log=self._log)

    # ---- connecting a client ----

    def connect(self, client: int, connection: Connection) -> Awaitable[socket.socket]:
        """Return a socket connected to a target, which the caller owns; await it at once.

        Not a coroutine: on the way to the only target its frame would be one more.

        Args:
          client: the client's descriptor, which stays the caller's; no byte of it is read.
          connection: receives the target, the VMM's number and the time that it was held.

        Raises (when it is awaited):
          DialError: with reason ``client_left`` where the client left while it was held.
          EndedError: `Connection.end` was called meanwhile.
        """
        if self._only is not None:
            return self._only.dial(connection.assign, connection.cancellable)
        return self._connect_to_one(client, connection)

    async def _connect_to_one(self, client: int, connection: Connection) -> socket.socket:
        """Dial one target after the other, or hold the client, as the policy says."""
        began = trio.current_time()
        failed: Dialer | None = None
        failure: DialError | None = None
        for target in self._candidates():
            if failed is not None:
                failed.log_change()
            connection.target = target.state.address
            try:
                return await target.dial(connection.assign, connection.cancellable)
            except DialError as error:
                self._notify()
                if error.reason in OURS:
                    raise
                failed, failure = target, error
        longest = self._policy.wait_for_guest
        if longest is not None and not self._is_hopeless():
            if failed is not None:
                failed.log_change()
            return await self._hold(client, connection, began + longest)
        raise failure or self._known_error("not dialled: fail_fast")

    def note_success(self, endpoint: Target) -> None:
        """Take note that a target has answered a dial by the pump."""
        for target in self._targets:
            if target.state.name != "up" and target.state.address == endpoint:
                target.note_success()
                self._notify()

    def note_failure(self, endpoint: Target, error: DialError) -> None:
        """Take note of the error of a dial by the pump."""
        for target in self._targets:
            if target.state.address == endpoint:
                target.note_failure(error)
                self._notify()

    def change_of(self, connection: Connection) -> dict[str, object]:
        """Return the log field for a change of the state of a connection's target; see `Dialer`."""
        for target in self._targets:
            if target.state.address == connection.target:
                return target.change()
        return {}  # a reload has removed the target

    def _candidates(self) -> list[Dialer]:
        """Return the targets that a client dials itself, in this order."""
        order = self._in_order()
        if self._policy.wait_for_guest is not None and not self._is_hopeless():
            return [target for target in order if target.is_up]
        if self._policy.fail_fast:
            return [target for target in order if target.state.name != "down"]
        return order

    def _in_order(self) -> list[Dialer]:
        """Return all targets: those that may be up first, in the order of `balance`."""
        if len(self._targets) == 1:
            return self._targets
        ready = [target for target in self._targets if not _rank(target)]
        if self._policy.balance == "round_robin" and ready:
            self._turn = (self._turn + 1) % len(ready)
            ready = ready[self._turn :] + ready[: self._turn]
        return ready + sorted(filter(_rank, self._targets), key=_rank)

    def _is_hopeless(self) -> bool:
        """Return whether waiting changes the state of no target."""
        return all(target.is_hopeless for target in self._targets)

    def _known_error(self, context: str) -> DialError:
        """Return the last error of the first target that has one, with ``context`` added."""
        for target in self._targets:
            if target.state.last_error is not None:
                return target.state.last_error.with_context(context)
        return dial_error(self._route.target, "not_dialled").with_context(context)

    # ---- holding a client ----

    async def _hold(self, client: int, connection: Connection, deadline: float) -> socket.socket:
        """Hold a client until a target answers; return the socket that was dialled for it."""
        results = self._stats.held_results
        if len(self._held) >= MOST_HELD:
            results["full"] += 1
            raise dial_error(connection.target, "too_many_held", len(self._held))
        began = trio.current_time()
        self._stats.held += 1
        try:
            with connection.cancellable("held"):
                held = self._held.add(client)
                self._notify()
                outcome = await self._held.wait(held, deadline)
        finally:
            self._stats.held -= 1
            connection.held_seconds = trio.current_time() - began
        results[_result(outcome)] += 1
        if not isinstance(outcome, Reached):
            raise self._error_of(outcome, connection)
        connection.target = outcome.dialer.state.address
        connection.vmm_port = outcome.vmm_port
        return outcome.sock

    def _error_of(self, outcome: Outcome, connection: Connection) -> DialError:
        if isinstance(outcome, DialError):
            return outcome
        if outcome == "left":
            return dial_error(connection.target, "client_left")
        return self._known_error(f"the client was held for {connection.held_seconds:.3g} s")

    # ---- readiness ----

    def not_ready(self) -> str | None:
        """Return why the route is not ready, where `ready_when_up` matters; None when it is."""
        if not self._policy.ready_when_up or any(target.is_up for target in self._targets):
            return None
        return f"route {self._route.name}: {self._known_error('ready_when_up')}"

    async def reach(self) -> str | None:
        """Dial until a target answers, and hang up; return the last error if none does.

        Callers that come while a check is under way share its result.
        """
        known = self._check_result
        async with self._check:
            if self._check_result is known:
                self._check_result = [await self._dial_until_one_answers()]
            return self._check_result[0]

    async def _dial_until_one_answers(self) -> str | None:
        message: str | None = None
        for target in self._in_order():
            try:
                (await target.dial(_ignore)).close()
            except DialError as error:
                target.log_change()
                message = str(error)
            else:
                message = None
                break
        self._notify()
        return message

    # ---- background tasks ----

    @asynccontextmanager
    async def tended(self) -> AsyncIterator[None]:
        """Run the background tasks while the block runs."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._restart_background()
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
                self._nursery = None

    def _restart_background(self) -> None:
        self._background.cancel()
        if self._nursery is not None and (self._needs_background or len(self._held)):
            self._background = trio.CancelScope()
            self._nursery.start_soon(self._run_background, self._background)

    async def _run_background(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    await self._run_tasks()
                except* Exception:  # noqa: BLE001 - it must not end the route
                    self._log.exception("dial_error", route=self._route.name)
                await trio.sleep(_LONGEST_PAUSE)

    async def _run_tasks(self) -> None:
        async with trio.open_nursery() as nursery:
            for target in self._targets:
                nursery.start_soon(self._keep_dialling, target)
            nursery.start_soon(self._serve_held)
            nursery.start_soon(self._watch_held)

    def _notify(self) -> None:
        """Wake the background tasks: a state changed, or a client is held."""
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_dialling(self, target: Dialer) -> None:
        """Dial a target with growing pauses while its state matters, and every probe_interval."""
        interval = self._policy.probe_interval or inf
        pause, probe_at = _FIRST_PAUSE, inf if interval == inf else trio.current_time()
        while True:
            before = target.state.name
            if self._matters(target):
                if not await self._dial_for_next(target):
                    if target.state.name != before:
                        pause = _FIRST_PAUSE  # the guest is booting
                    await trio.sleep(_jittered(pause))
                    pause = min(2 * pause, _LONGEST_PAUSE)
            elif trio.current_time() >= probe_at:
                await self._dial_for_next(target)
                probe_at = trio.current_time() + _jittered(interval)
            else:
                pause = _FIRST_PAUSE
                with trio.move_on_at(probe_at):
                    await self._changed.wait()

    def _matters(self, target: Dialer) -> bool:
        """Return whether a client or a policy depends on when a target comes up."""
        policy, state = self._policy, target.state.name
        return state != "up" and (
            len(self._held) > 0
            or policy.ready_when_up
            or (policy.fail_fast and state == "down")
            or (len(self._targets) > 1 and state != "unknown")
        )

    async def _serve_held(self) -> None:
        """Dial for held clients, several at once, whenever a target is up."""
        async with trio.open_nursery() as diallers:
            while True:
                if any(target.is_up for target in self._targets):
                    while len(diallers.child_tasks) < min(_AT_ONCE, len(self._held)):
                        diallers.start_soon(self._dial_for_held, diallers)
                await self._changed.wait()

    async def _dial_for_held(self, diallers: trio.Nursery) -> None:
        """Dial for one held client after the other while a target is up."""
        while len(self._held) >= len(diallers.child_tasks):
            target = next((one for one in self._in_order() if one.is_up), None)
            if target is None:
                break
            if not await self._dial_for_next(target):
                await trio.sleep(_jittered(_FIRST_PAUSE))
        self._notify()  # another target may be up

    async def _watch_held(self) -> None:
        """Release held clients that leave."""
        while True:
            await self._held.watch()
            await self._changed.wait()

    async def _dial_for_next(self, target: Dialer) -> bool:
        """Dial a target once, for the client held longest; return whether it answered."""
        numbers: list[int] = []
        try:
            sock = await target.dial(numbers.append)
        except DialError as error:
            target.log_change()
            if error.reason not in OURS and self._is_hopeless():
                self._held.dismiss(error)
            self._notify()
            return False
        except Exception:  # noqa: BLE001 - it is logged, and must not end the other routes
            self._log.exception("dial_error", route=self._route.name)
            return False
        self._held.hand_over(Reached(sock, target, numbers[0] if numbers else None))
        self._notify()
        await trio.lowlevel.checkpoint()
        return True


def _ignore(_vmm_port: int) -> None:
    """Take the number of a connection without a client."""


def _rank(target: Dialer) -> int:
    return _RANKS[target.state.name]


def _result(outcome: Outcome) -> HeldResult:
    if isinstance(outcome, Reached):
        return "served"
    return "failed" if isinstance(outcome, DialError) else outcome


def _jittered(seconds: float) -> float:
    """Return a little less than ``seconds``, so that tasks begun together drift apart."""
    return seconds * random.uniform(0.7, 1.0)  # noqa: S311 - no secret
