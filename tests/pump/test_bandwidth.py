"""The shares of the portable pump's buckets; those of the C code are in driver.c."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from vsockproxy.pump.bandwidth import Bucket, allowance, shares_of

RATE = 1_000_000
PIECE = 4096


async def test_directions_that_always_have_bytes_share_a_bandwidth_equally(
    autojump_clock: MockClock,
) -> None:
    shared, taken = Bucket(RATE), [0, 0, 0]

    async def take(which: int) -> None:
        await trio.sleep(0.007 * which)
        shares = shares_of(shared, None)
        while True:
            taken[which] += await allowance(shares, PIECE)

    async with trio.open_nursery() as nursery:
        for which in range(3):
            nursery.start_soon(take, which)
        await trio.sleep(1)
        first = list(taken)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    second = [now - before for now, before in zip(taken, first, strict=True)]
    assert second == pytest.approx([RATE / 3] * 3, rel=0.2)
    assert sum(second) == pytest.approx(RATE, rel=0.05)


async def test_a_direction_that_wants_less_leaves_the_rest_to_the_other(
    autojump_clock: MockClock,
) -> None:
    shared, taken = Bucket(RATE), {"much": 0, "little": 0}

    async def take(which: str, most: int, pause: float) -> None:
        shares = shares_of(shared, RATE)
        while True:
            taken[which] += await allowance(shares, most)
            if pause:
                await trio.sleep(pause)

    with trio.move_on_after(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, "much", PIECE, 0)
            nursery.start_soon(take, "little", 100, 0.05)
    assert taken["much"] == pytest.approx(2 * RATE, rel=0.1)
    assert taken["little"] >= 2 * 100 * 10


async def test_a_rate_below_a_byte_a_period_still_moves(
    autojump_clock: MockClock,
) -> None:
    shares = shares_of(Bucket(10), None)
    taken = 0
    with trio.move_on_after(2):
        while True:
            taken += await allowance(shares, PIECE)
    assert 15 <= taken <= 22
