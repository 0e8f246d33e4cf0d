"""One dial looked at closely: how long each step took, and what the target did then.

Owns: the steps of a dial, the look at a fresh connection, the wait for a guest that boots,
and the words for all of it.  Dials with `transport.dial`, as the daemon does.  Knows nothing
of routes or of a terminal.
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
from vsockproxy.errors import ABSENT, DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.readable import duration
from vsockproxy.remedy import remedy

LOOK: Final = 0.25
"""Seconds that a fresh connection is watched: what closes at once has nothing behind it."""

_ADVISED: Final = frozenset({"no_transport", "blocked", "not_found", "no_descriptors"})
"""The reasons whose explanation has a remedy after its colon, in fewer words than ours."""

_MOST: Final = 4096  # bytes of an answer that are shown
_PLAIN: Final = Policy()
_FIRST_PAUSE: Final = 0.1  # seconds between two attempts, doubled each time; arbitrary
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a dial, and how many seconds it took; the last may have failed."""

    name: str
    seconds: float


@dataclass(slots=True)
class Probe:
    """What came of a dial: how it went, and why it failed if it did.

    ``said`` and ``ended`` are what the target did in the first moment of the connection;
    ``number`` is that of a VMM's OK.  ``target`` is where a guest was found, once it was.
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
        """Whether the target was reached, and did not close without a word."""
        return self.failure is None and not (self.ended and not self.said)

    @property
    def seconds(self) -> float:
        """Of all its steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def what(self) -> str:
        """What happened, in one sentence."""
        if self.failure is not None:
            sentence = self.failure.explanation
            advised = self.failure.reason in _ADVISED
            return sentence.partition(": ")[0] if advised else sentence
        if not self.reached:
            return "it took the connection and closed it at once"
        return f"reached in {duration(self.seconds)}"

    @property
    def remedy(self) -> str:
        """What to do about it; empty where nothing is wrong."""
        if self.failure is not None:
            return remedy(self.failure)
        return "" if self.reached else _closed(self.target)

    def as_json(self) -> dict[str, Any]:
        """All of it, for a program; times in seconds."""
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
    """Dial once, within ``timeout`` seconds, and see what the target does then.

    ``guests`` know where the target is if it is a guest's.  ``policy`` is that of the route
    whose target it is, its connect_timeout apart.
    With ``send`` it gets these bytes and as long again to answer; without, the connection
    is watched for ``look`` seconds.  Never raises but when cancelled, and closes the
    connection.
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
    """Probe again while the reason is one that a booting guest gives.

    The last probe, when it reached the target, when waiting is in vain, or after
    ``patience`` seconds.  ``tell`` hears of every failure, and of the seconds left.
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
    """A line for each step, what the target said, and the verdict with its remedy."""
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
    """The names of a dial's steps, in their order."""
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
    """What the target does first; whether it did anything in time."""
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
            "start the service in the guest that this socket leads to (the VMM takes every"
            " connection, and drops it where nothing listens); wait if it is booting"
        )
    return "see what the service's own log says: it may refuse this client"
