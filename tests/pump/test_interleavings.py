"""Both ends of a relayed connection see the same as those of a direct one.

Hypothesis draws the actions of both ends and their order; they run over a direct TCP connection
and over a relayed one, and each end must have seen the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pump.direct_pump import KINDS, join, opened
from tests.sockets import Pair, reset, tcp_pair
from vsockproxy.pump.transfer import Bounds, Meter

Seen = Literal["open", "eof", "reset"]
Step = tuple[str, int, int]  # what, which end, how many bytes

LEFT, RIGHT = 0, 1

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(LEFT, RIGHT), st.integers(1, 20_000)),
        st.tuples(st.just("eof"), st.integers(LEFT, RIGHT), st.just(0)),
        st.tuples(st.just("settle"), st.just(LEFT), st.just(0)),
    ),
    max_size=8,
)
last_steps = st.sampled_from(["eof both", "reset", "close"])


@dataclass
class End:
    """One outer end: the bytes it sent, and those it received."""

    sock: trio.socket.SocketType
    sent: int = 0
    ended: bool = False
    received: bytearray = field(default_factory=bytearray)
    seen: Seen = "open"

    async def send(self, size: int) -> None:
        data = bytes((self.sent + index) % 251 for index in range(size))
        self.sent += size
        while data:
            data = data[await self.sock.send(data) :]

    def eof(self) -> None:
        self.ended = True
        self.sock.shutdown(trio.socket.SHUT_WR)

    async def read(self, *, until: int | None = None) -> None:
        """Read until ``until`` bytes have arrived in all, or until the stream's end."""
        while self.seen == "open" and (until is None or len(self.received) < until):
            try:
                data = await self.sock.recv(65536)
            except ConnectionResetError:
                self.seen = "reset"
            else:
                self.received += data
                self.seen = "open" if data else "eof"


@dataclass(frozen=True)
class Story:
    """What an end saw: the bytes received, whether they were right, and how its stream ended."""

    bytes: int
    right: bool
    seen: Seen


async def play(pair: Pair, script: list[Step], last: str) -> tuple[Story, Story]:
    """Run the script; return what the left end and the right end saw."""
    ends = [End(trio.socket.from_stdlib_socket(sock)) for sock in pair]
    left, right = ends
    with left.sock, right.sock:
        for what, which, size in script:
            if what == "settle":
                await settle(ends)
            elif not ends[which].ended:
                await ends[which].send(size) if what == "send" else ends[which].eof()
        await finish(ends, last)
    return told(left), told(right)


async def finish(ends: list[End], last: str) -> None:
    left, right = ends
    if last == "eof both":
        for end in ends:
            if not end.ended:
                end.eof()
        await left.read()
        await right.read()
        return
    # Bytes under way when an end closes may or may not arrive, even without a proxy.
    await settle(ends)
    if last == "close":
        left.sock.close()
    else:
        reset(left.sock._sock)  # type: ignore[attr-defined]  # the socket that trio wraps
    await right.read()


async def settle(ends: list[End]) -> None:
    """Wait until all sent bytes have arrived."""
    left, right = ends
    await left.read(until=right.sent)
    await right.read(until=left.sent)
    for end, other in ((left, right), (right, left)):
        if other.ended:
            await end.read()


def told(end: End) -> Story:
    right = all(value == index % 251 for index, value in enumerate(end.received))
    return Story(len(end.received), right, end.seen)


@pytest.mark.parametrize("kind", KINDS)
@given(script=steps, last=last_steps)
@settings(max_examples=200)
async def test_both_ends_see_the_same_as_without_a_proxy(
    kind: str, script: list[Step], last: str
) -> None:
    direct = await play(tcp_pair(), script, last)
    async with opened(kind, threads=1) as pump, trio.open_nursery() as nursery:
        left, right, run = join(pump, ("tcp", "tcp"), Bounds(), Meter())
        nursery.start_soon(run)
        relayed = await play((left, right), script, last)
        nursery.cancel_scope.cancel()
    assert relayed == direct
    assert all(story.right for story in relayed)
