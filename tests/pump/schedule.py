"""Random schedules of what both ends of a connection do, and what each end may then have seen.

The invariant: **an end sees a clean EOF only if it has every byte that the other end sent, in
order, and the other end sent an EOF**; and it does see that if the other end then did nothing that
throws bytes away.  It holds for TCP without a proxy as for a connection through a pump.  A Unix
socket cannot be reset, so that an end there may see an EOF after a part: only the order of its
bytes, and the second half of the invariant, are checked.
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from tests.sockets import Pair, queued_bytes, reset, unsent_bytes
from vsockproxy.pump.transfer import Bounds

Seen = Literal["open", "eof", "reset"]
Last = Literal["finish", "left resets", "right resets", "left closes", "right closes"]
Outside = Literal["nothing", "kill", "idle_timeout", "half_close_timeout", "max_lifetime"]
Step = tuple[str, int, int]  # what, which end, how many bytes

LEFT, RIGHT = 0, 1
TIMEOUT: Final = 0.03
PATTERN: Final = bytes(range(251)) * 1100
NARROW: Final = 131_072  # bytes; below two segments of the loopback TCP waits for timers
FULL: Final = 3  # milliseconds without room for a byte
DELIVERY: Final = 50  # milliseconds; with fewer of them a schedule would only check less


@dataclass(frozen=True)
class Schedule:
    """What happens, in this order; drawn from a seed.

    Attributes:
      families: of the left and the right end's connection.
      steps: what the ends do first.
      narrow: the ends' kernels take little that is not read, so that the rest waits at the sender.
      full: every buffer both ways is filled then.
      outside: what the proxy does to the connection then, or may have done before.
      last: what the ends do at the end, before those that are left read to the end.
      settled: the last step comes once everything sent has been delivered, where that is possible.
      brisk: an EOF comes right before the last step.
      late: no end reads for a while after it.
      first: the end that reads first, at the end.
    """

    seed: int
    families: tuple[str, str]
    steps: tuple[Step, ...]
    narrow: bool
    full: bool
    outside: Outside
    last: Last
    settled: bool
    brisk: bool
    late: bool
    first: int

    @property
    def bounds(self) -> Bounds:
        """The bounds of the transfer."""
        if self.outside in ("nothing", "kill"):
            return Bounds(linger_timeout=1)
        return Bounds(linger_timeout=1, **{self.outside: TIMEOUT})  # type: ignore[arg-type] # times


def schedule(seed: int) -> Schedule:
    """Draw a schedule."""
    draw = random.Random(seed)
    steps = tuple(_step(draw) for _ in range(draw.randrange(9)))
    outside: Outside = "nothing"
    if draw.random() < 0.2:
        outside = draw.choice(("kill", "idle_timeout", "half_close_timeout", "max_lifetime"))
    return Schedule(
        seed=seed,
        families=draw.choice((("tcp", "tcp"), ("tcp", "tcp"), ("tcp", "unix"), ("unix", "tcp"))),
        steps=steps,
        narrow=draw.random() < 0.5,
        full=draw.random() < 1 / 3,
        outside=outside,
        last=draw.choice(("finish", "left resets", "right resets", "left closes", "right closes")),
        settled=draw.random() < 0.5,
        brisk=draw.random() < 0.5,
        late=draw.random() < 0.5,
        first=draw.choice((LEFT, RIGHT)),
    )


def _step(draw: random.Random) -> Step:
    what = draw.choice(("send", "send", "send", "read", "fin", "pause", "settle"))
    return what, draw.choice((LEFT, RIGHT)), int(10 ** draw.uniform(0, 5.4))


@dataclass
class End:
    """One outer end.

    Attributes:
      sent: the bytes that its kernel has taken.
      fin: it has sent its EOF.
      whole: it then did nothing that may have thrown bytes away.
      delivered: the bytes that the other side's kernel had when it closed.
      closed: it is closed: what it has seen says nothing.
      received: the bytes that it has read, each of them right.
      told: a send has said that the other end has reset, which the kernel says only once.
      seen: how its stream has ended.
    """

    sock: socket.socket
    family: str
    sent: int = 0
    fin: bool = False
    whole: bool = True
    delivered: int = 0
    closed: bool = False
    received: int = 0
    told: bool = False
    seen: Seen = "open"
    wrong: list[str] = field(default_factory=list)

    def send(self, size: int) -> int:
        """Send up to ``size`` bytes without waiting; return how many."""
        if self.fin or self.closed:
            return 0
        begin = self.sent % 251
        try:
            taken = self.sock.send(PATTERN[begin : begin + size])
        except BlockingIOError:
            return 0
        except OSError as error:  # the other end is gone
            self.told = self.told or error.errno == errno.ECONNRESET
            return 0
        self.sent += taken
        return taken

    def read(self, size: int) -> bool:
        """Read once without waiting; return whether there was something."""
        if self.seen != "open" or self.closed:
            return False
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return False
        except OSError:
            self.seen = "reset"
            return True
        begin = self.received % 251
        if data != PATTERN[begin : begin + len(data)]:
            self.wrong.append(f"wrong bytes after {self.received}")
        self.received += len(data)
        if not data:
            self.seen = "reset" if self.told else "eof"
        return True

    def shut(self) -> None:
        """Send the EOF."""
        if self.fin or self.closed:
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # the other end is gone
            self.whole = False
        self.fin = True

    async def read_to_end(self) -> None:
        """Read until the stream ends."""
        while self.seen == "open" and not self.closed:
            if not self.read(262_144):
                await trio.lowlevel.wait_readable(self.sock)

    def end(self, *, by_reset: bool) -> None:
        """Close the socket, over unread input if there is some."""
        if self.family != "tcp" or unsent_bytes(self.sock):
            self.whole = False
        else:
            self.delivered = self.sent
        self.closed = True
        if by_reset and self.family == "tcp":
            reset(self.sock)
        else:
            self.sock.close()


async def play(
    plan: Schedule, pair: Pair, interfere: Callable[[], Awaitable[None]] | None
) -> list[str]:
    """Run a schedule; return what is wrong with what the ends saw.

    ``interfere`` does what the schedule has done from outside; None: nothing does.
    """
    ends = (End(pair[LEFT], plan.families[LEFT]), End(pair[RIGHT], plan.families[RIGHT]))
    with pair[LEFT], pair[RIGHT]:
        if plan.narrow:
            for sock in pair:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW)
        for what, which, size in plan.steps:
            await _act(ends[which], what, size)
        if plan.full:
            await _fill(ends)
        if interfere:
            await interfere()
        await _finish(plan, ends)
    proxied_away = interfere is not None
    return [
        f"{name} end: {problem}"
        for name, end, other in (("left", ends[0], ends[1]), ("right", ends[1], ends[0]))
        for problem in _problems(end, other, proxied_away)
    ] + _undelivered(*ends, ended_outside=proxied_away)


async def _act(end: End, what: str, size: int) -> None:
    if what == "send":
        end.send(size)
    elif what == "read":
        end.read(size)
    elif what == "fin":
        end.shut()
    elif what == "pause":
        await trio.sleep(0.001)
    else:
        await _settle(end)


async def _settle(end: End) -> None:
    for _ in range(DELIVERY):
        if end.closed or not queued_bytes(end.sock):
            return
        await trio.sleep(0.001)


async def _fill(ends: tuple[End, End]) -> None:
    quiet = 0
    while quiet < FULL:
        if sum(end.send(200_000) for end in ends):
            quiet = 0
        else:
            quiet += 1
            await trio.sleep(0.001)


async def _finish(plan: Schedule, ends: tuple[End, End]) -> None:
    name, _, what = plan.last.partition(" ")
    if what:
        which = LEFT if name == "left" else RIGHT
        if plan.settled:
            await _settle(ends[which])
        if plan.brisk:
            ends[which].shut()
        ends[which].end(by_reset=what == "resets")
    if plan.late:
        await trio.sleep(0.005)
    for end in ends:
        end.shut()
    for end in (ends[plan.first], ends[not plan.first]):
        await end.read_to_end()


def _undelivered(left: End, right: End, *, ended_outside: bool) -> list[str]:
    """Return what is missing of an answer whose sender had delivered it, and reset then.

    What a client sent before its reset is not promised.
    """
    if left.closed or ended_outside or left.received >= right.delivered:
        return []
    return [f"left end: {left.received} of {right.delivered} bytes, delivered before the reset"]


def _problems(end: End, other: End, ended_outside: bool) -> list[str]:
    problems = end.wrong
    if end.closed:
        return problems
    every_byte = end.received == other.sent
    if end.received > other.sent:
        problems.append("more bytes than were sent")
    # Without its own FIN a closing end may have reset, which the kernel decides.
    if end.seen == "eof" and not every_byte and end.family == "tcp":
        problems.append(f"a clean EOF after {end.received} of {other.sent} bytes")
    if other.fin and other.whole and not ended_outside and not (end.seen == "eof" and every_byte):
        problems.append(f"{end.seen} after {end.received} of {other.sent} bytes, all delivered")
    return problems
