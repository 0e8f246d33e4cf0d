"""One target of a route: dialling it, and what its answers say of it.

Owns: `Target`, its state and the line of the log for a change of it. Knows no client: who
waits for a target, and which of several is dialled, is for `targets` to say.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import GuestEndpoint
from vsockproxy.config.settings import Policy
from vsockproxy.dial.dial import dial, dial_at_once
from vsockproxy.dial.sockopt import target_options
from vsockproxy.errors import ABSENT, DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.stats import TargetState, TargetStateName

OURS: Final = frozenset({"no_descriptors", "no_resources"})
"""Why dials fail through no fault of the target's."""

_LOG_PAUSE: Final = 10.0  # seconds between two lines that say that a target is down


class Target:
    """One endpoint of a route; `follow` is called before anything else.

    Attributes:
      state: where it is, and what is known of it, for views.
      is_retried: whether somebody dials it again and again until it answers.
    """

    def __init__(self, state: TargetState, guests: Guests, names: dict[str, str], log: Any):
        """``names`` are the fields that tell this target in the log."""
        self.state = state
        self.is_retried = False
        self._guests = guests
        self._names = names
        self._log = log
        self._told, self._told_at = state.name, state.since
        self._quiet_until = -inf

    def follow(self, policy: Policy) -> None:
        """Dial as ``policy`` says, from now on."""
        self._timeout = policy.connect_timeout
        self._dial = partial(
            dial,
            options=target_options(policy),
            handshake_timeout=policy.handshake_timeout,
            destinations=policy.destinations,
        )

    async def dial(self, assigned: Callable[[int], object]) -> socket.socket:
        """A connected socket, within connect_timeout; ``assigned`` as in `transport.dial`.

        Raises `DialError`.
        """
        try:
            if isinstance(self.state.address, GuestEndpoint):
                sock = await self._dial_guest(self.state.address, assigned)
            else:
                sock = await self._dial(self.state.address, self._timeout, assigned=assigned)
        except DialError as error:
            self._failed(error)
            raise
        if self.state.name != "up":
            self._become("up")
        return sock

    async def _dial_guest(
        self, target: GuestEndpoint, assigned: Callable[[int], object]
    ) -> socket.socket:
        """Dial where the guest is; once more where it turns out to have moved."""
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

    def dial_at_once(self) -> socket.socket | None:
        """A connected socket where that takes no waiting, else None; raises `DialError`."""
        try:
            sock = dial_at_once(self.state.address)
        except DialError as error:
            self._failed(error)
            raise
        if sock is not None and self.state.name != "up":
            self._become("up")
        return sock

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last dialled."""
        return self.state.name == "up"

    @property
    def is_hopeless(self) -> bool:
        """Whether it did not answer when it was last dialled, and waiting would not help."""
        error = self.state.last_error
        return self.state.name == "down" and error is not None and error.reason not in ABSENT

    def _failed(self, error: DialError) -> None:
        if error.reason in OURS:
            return
        self.state.last_error = error.again()  # a raised one holds the frames that it passed
        self._become("refused" if error.reason == "refused" else "down")

    def _become(self, name: TargetStateName) -> None:
        self.state.become(name)
        if name != self._told:
            self._tell()

    def _tell(self) -> None:
        """Write one line for a change; a target that comes and goes writes few of them."""
        state, now = self.state, monotonic()
        words = {**self._names, "was": self._told, "seconds": round(now - self._told_at, 3)}
        if state.name != "up":
            if now < self._quiet_until:
                return  # the next dial that fails says it
            self._quiet_until = now + _LOG_PAUSE
            assert state.last_error is not None
            error = state.last_error
            self._log.warning("target_down", **words, reason=error.reason, why=error.explanation)
        elif self._told != "unknown":  # that all is well from the start is no news
            self._log.info("target_up", **words)
        self._told, self._told_at = state.name, state.since
