"""Probe a target: dial it once, time each step, and watch the new connection.

Owns: the steps of a dial, the first moment of a connection, the wait for a guest that boots, and
their text. Dials with `dial.dial`, as the daemon does. Knows no route and no terminal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import (
    Dialable,
    GuestEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.address.sockaddr import literal_addresses
from vsockproxy.config.settings import Policy
from vsockproxy.dial.dial import dial
from vsockproxy.dial.sockopt import target_options
from vsockproxy.errors import DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.readable import duration
from vsockproxy.reasons import ABSENT

LOOK: Final = 0.25
"""Seconds to watch a new connection: one that closes within them has no service behind it."""

_MOST: Final = 4096  # bytes of an answer that are shown
_PLAIN: Final = Policy()
_FIRST_PAUSE: Final = 0.1  # seconds between two attempts, doubled each time; arbitrary
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a dial and its duration in seconds; the last step may have failed."""

    name: str
    seconds: float


@dataclass(slots=True)
class Probe:
    """The result of a probe.

    Attributes:
      target: the probed target; for a guest, its address once it was found.
      steps: the steps of the dial, in their order.
      failure: why the dial failed, or None.
      number: the number in a VMM's OK.
      said, ended: the target's first bytes, and whether it closed the new connection.
      attempts: how many dials were made.
    """

    target: Target
    steps: list[Step] = field(default_factory=list)
    failure: DialError | None = None
    number: int | None = None
    said: bytes = b""
    ended: bool = False
    attempts: int = 1

    @property
    def reached(self) -> bool:
        """Whether the target was reached, and did not close before its first byte."""
        return self.failure is None and not (self.ended and not self.said)

    @property
    def seconds(self) -> float:
        """Return the duration of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def what(self) -> str:
        """Return what happened, in one sentence."""
        if self.failure is not None:
            return self.failure.explanation
        if not self.reached:
            return "the target accepted the connection and closed it immediately"
        return f"reached in {duration(self.seconds)}"

    @property
    def remedy(self) -> str:
        """Return what to do about a failure; empty if there is none."""
        if self.failure is not None:
            return self.failure.remedy
        return "" if self.reached else _closed(self.target)

    def as_json(self) -> dict[str, Any]:
        """Return the result for a program; times are in seconds."""
        failure = self.failure
        return {
            "target": str(self.target),
            "reached": self.reached,
            "what": self.what,
            "remedy": self.remedy or None,
            "reason": failure.reason if failure else None if self.reached else "closed",
            "errno": failure.errno if failure else None,
            "steps": [{"step": step.name, "seconds": step.seconds} for step in self.steps],
            "seconds": self.seconds,
            "attempts": self.attempts,
            "number": self.number,
            "said": self.said.decode(errors="backslashreplace"),
            "ended": self.ended,
        }


async def probe(
    target: Target,
    timeout: float,
    *,
    guests: Guests | None = None,
    policy: Policy = _PLAIN,
    send: bytes = b"",
    look: float = LOOK,
) -> Probe:
    """Dial once, watch the new connection, and close it. Raises `trio.Cancelled` alone.

    Args:
      timeout: seconds for the dial, and again for an answer to ``send``.
      guests: finds the address of a guest.
      policy: the policy of the target's route; its connect_timeout is not used.
      send: bytes to send; without them, the connection is watched for ``look`` seconds.
    """
    result = Probe(target)
    names = iter(("guest",))
    since = trio.current_time()
    deadline = since + timeout

    def passed() -> None:
        nonlocal since
        now = trio.current_time()
        result.steps.append(Step(next(names), now - since))
        since = now

    def assigned(number: int) -> None:
        result.number = number

    try:
        if isinstance(target, GuestEndpoint):
            target = result.target = await (guests or Guests()).resolve(target, deadline)
            passed()
        names = _steps(target)
        sock = await dial(
            target,
            deadline - trio.current_time(),
            options=target_options(policy),
            handshake_timeout=policy.handshake_timeout,
            destinations=policy.destinations,
            assigned=assigned,
            passed=passed,
        )
    except DialError as error:
        result.failure = error
        passed()
        return result
    passed()
    with trio.socket.from_stdlib_socket(sock) as connection:
        answered = await _watch(connection, result, send, timeout if send else look)
    if send and answered:
        result.steps.append(Step("answer", trio.current_time() - since))
    return result


async def wait_for(
    attempt: Callable[[], Awaitable[Probe]], patience: float, tell: Callable[[Probe, float], object]
) -> Probe:
    """Probe again while the target is absent; return the last probe.

    It ends when the target is reached, when waiting cannot help, or after ``patience`` seconds.
    ``tell`` is called with every failed probe and the seconds that remain.
    """
    deadline = trio.current_time() + patience
    pause, attempts = _FIRST_PAUSE, 0
    while True:
        result = await attempt()
        attempts += 1
        result.attempts = attempts
        left = deadline - trio.current_time()
        if result.reached or not _is_temporary(result) or left <= 0:
            return result
        tell(result, left)
        await trio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_temporary(result: Probe) -> bool:
    return result.failure is None or result.failure.reason in ABSENT


def describe(result: Probe) -> Iterator[str]:
    """Return lines for people: each step, the target's first bytes, the result, the remedy."""
    yield str(result.target)
    for step in result.steps:
        failed = result.failure is not None and step is result.steps[-1]
        yield f"  {step.name:<10} {duration(step.seconds):>8}{'  failed' if failed else ''}"
    if result.said:
        text = result.said.decode(errors="backslashreplace").splitlines()
        yield f"  it says: {text[0] if text else ''}{' ...' if len(text) > 1 else ''}"
    if result.number is not None:
        yield f"  the VMM answered OK {result.number}"
    if result.failure is not None:
        yield f"not reached: {result.what}"
    else:
        yield result.what
    if result.remedy:
        yield f"  -> {result.remedy}"


def _steps(target: Dialable) -> Iterator[str]:
    """Return the names of a dial's steps, in their order."""
    match target:
        case TcpEndpoint() if literal_addresses(target) is None:
            return iter(("resolve", "connect"))
        case MuxEndpoint(handshake="none"):
            return iter(("connect", "request"))
        case MuxEndpoint():
            return iter(("connect", "handshake"))
        case _:
            return iter(("connect",))


async def _watch(
    connection: trio.socket.SocketType, result: Probe, send: bytes, patience: float
) -> bool:
    """Wait for the target's first bytes or its end; return whether one came in time."""
    with trio.move_on_after(patience):
        try:
            while send:
                send = send[await connection.send(send) :]
            result.said = await connection.recv(_MOST)
        except OSError:
            result.ended = True
        else:
            result.ended = not result.said
        return True
    return False


def _closed(target: Target) -> str:
    if isinstance(target, UnixEndpoint | MuxEndpoint):
        return (
            "start the service in the guest behind this socket (the VMM accepts every"
            " connection, and drops it where nothing listens); wait if it is booting"
        )
    return "see the service's own log: it may reject this client"
