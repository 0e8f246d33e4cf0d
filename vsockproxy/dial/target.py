"""One target of a route: how it is dialled, and the state that its answers give it.

Owns: `Dialer`, and the log lines for a change of state. Knows no client: `selection` chooses
among several targets and holds clients.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import GuestEndpoint, UnixEndpoint
from vsockproxy.config.destination import Destinations
from vsockproxy.config.reach import Reach
from vsockproxy.config.settings import Policy
from vsockproxy.dial import unix
from vsockproxy.dial.dial import dial
from vsockproxy.dial.sockopt import target_options
from vsockproxy.errors import DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.reasons import ABSENT
from vsockproxy.stats import TargetState, TargetStateName

OURS: Final = frozenset({"no_descriptors", "no_resources"})
"""Why dials fail because of this process: they change no target's state."""

_LOG_PAUSE: Final = 10.0  # seconds between two lines that a target is down


class Dialer:
    """Dial one target of a route, and keep its state.

    Attributes:
      state: the target's address, state and last error; views read it.
    """

    def __init__(
        self,
        state: TargetState,
        policy: Policy,
        guests: Guests,
        *,
        names: dict[str, str],
        log: Any,
        destinations: Destinations | Reach | None = None,
        chosen_by: str | None = None,
    ) -> None:
        """Dial as ``policy`` says; ``names`` are the log fields that name the target.

        With ``destinations``, these are checked in place of the policy's. ``chosen_by`` is as for
        `dial`.
        """
        self.state = state
        self._guests = guests
        self._destinations = destinations
        self._chosen_by = chosen_by
        self._names = names
        self._log = log
        self._told, self._told_at = state.name, state.since
        self._quiet_until = -inf
        self.reconfigure(policy)

    def reconfigure(self, policy: Policy) -> None:
        """Follow a new policy, from the next dial on."""
        own = self._destinations
        self._timeout = policy.connect_timeout
        self._dial = partial(
            dial,
            options=target_options(policy),
            handshake_timeout=policy.handshake_timeout,
            destinations=own if own is not None else policy.destinations,
            chosen_by=self._chosen_by,
        )

    async def dial(
        self,
        assigned: Callable[[int], object],
        cancellable: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> socket.socket:
        """Return a socket connected within connect_timeout, which the caller owns.

        A Unix target whose backlog has room is connected without waiting. A failure is not
        logged: call `log_change`, or write `change` into a line about the client.

        Args:
          assigned: called with the number in a vsock-mux's OK.
          cancellable: makes the context of a dial that waits; its cost is saved otherwise.

        Raises:
          DialError: the state and its last error have changed accordingly.
        """
        address = self.state.address
        try:
            sock = unix.connect_now(address) if isinstance(address, UnixEndpoint) else None
            if sock is None:
                with cancellable():
                    sock = await self._dial_target(assigned)
        except DialError as error:
            self.note_failure(error)
            raise
        self.note_success()
        return sock

    async def _dial_target(self, assigned: Callable[[int], object]) -> socket.socket:
        target = self.state.address
        if isinstance(target, GuestEndpoint):
            return await self._dial_guest(target, assigned)
        return await self._dial(target, self._timeout, assigned=assigned)

    async def _dial_guest(
        self, target: GuestEndpoint, assigned: Callable[[int], object]
    ) -> socket.socket:
        """Dial a guest's present address, and once more if the guest has moved."""
        deadline = trio.current_time() + self._timeout
        address = await self._guests.resolve(target, deadline)
        try:
            return await self._dial(address, deadline - trio.current_time(), assigned=assigned)
        except DialError:
            self._guests.forget(target.guest)
            if trio.current_time() >= deadline:
                raise
            moved = await self._guests.resolve(target, deadline)
            if moved == address:
                raise
        return await self._dial(moved, deadline - trio.current_time(), assigned=assigned)

    @property
    def is_up(self) -> bool:
        """Whether the target answered its last dial."""
        return self.state.name == "up"

    @property
    def is_hopeless(self) -> bool:
        """Whether the target is down for a reason that waiting does not change."""
        error = self.state.last_error
        return self.state.name == "down" and error is not None and error.reason not in ABSENT | OURS

    def note_success(self) -> None:
        """Take note that the target has answered a dial."""
        if self.state.name != "up":
            self.state.become("up")
            self.log_change()

    def note_failure(self, error: DialError) -> None:
        """Take note of a failed dial."""
        self.state.keep_error(error)
        if error.reason not in OURS:
            self.state.become("refused" if error.reason == "refused" else "down")

    # ---- telling a change ----

    def change(self) -> dict[str, object]:
        """Return the log field for a state that is not logged yet, and count it as logged."""
        if self.state.name == self._told:
            return {}
        self._mark_told()
        return {"target_state": self.state.name}

    def log_change(self) -> None:
        """Log a change of state, but at most one failure in ten seconds."""
        state, now = self.state, monotonic()
        if state.name == self._told:
            return
        fields = {**self._names, "was": self._told, "seconds": round(now - self._told_at, 3)}
        if state.name == "up":
            if self._told != "unknown":  # a target that is up from the start is not news
                self._log.info("target_up", **fields)
        elif now < self._quiet_until:
            return  # still not told: the next failed dial tries again
        else:
            assert state.last_error is not None
            error = state.last_error
            self._log.warning(
                "target_down",
                **fields,
                reason=error.reason,
                error=error.summary,
                remedy=error.remedy,
            )
        self._mark_told()

    def _mark_told(self) -> None:
        name: TargetStateName = self.state.name
        if name != "up":
            self._quiet_until = monotonic() + _LOG_PAUSE
        self._told, self._told_at = name, self.state.since
