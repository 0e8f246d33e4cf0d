"""How many bytes a second the portable pump may move; the C code has its own in bandwidth.c.

Owns: `Bucket`, and the equal shares that directions have of one.
"""

from __future__ import annotations

from typing import Final

import trio

_BURST: Final = 0.1  # seconds whose bytes a full bucket holds
_PERIOD: Final = 0.02  # seconds; a direction without bandwidth tries again at the next one's begin
_LEAST: Final = 2048  # bytes of a share for which it is worth to read and send
_PERIODS: Final = 3  # for which a bucket waits until it has them for everyone
_ROUNDING: Final = 1e-6  # periods


def _period_at(time: float) -> int:
    return int(time / _PERIOD + _ROUNDING)


class Bucket:
    """A token bucket: full, it holds the bytes of `_BURST`."""

    __slots__ = ("filled", "level", "period", "rate", "refused", "share")

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.level = 0.0
        self.filled = trio.current_time()
        self.period = -1
        self.share = 0  # bytes that a direction may take in the period
        self.refused = 0  # directions that wanted more in it

    def refresh(self) -> None:
        """Fill it up to now; divide what it has, once a period, or in several if that is little."""
        now = trio.current_time()
        burst = max(1.0, self.rate * _BURST)
        self.level = min(burst, self.level + self.rate * (now - self.filled))
        self.filled = now
        period = _period_at(now)
        if period <= self.period:
            return
        share = int(self.level / max(1, self.refused))
        if share >= _LEAST or period >= self.period + _PERIODS:
            self.share = max(1, share)  # a rate below a byte for each would move nothing
            self.refused = 0
            self.period = period


class Share:
    """What one direction may take from a bucket: as much as each other one, in a period."""

    __slots__ = ("_bucket", "_period", "_refused", "_taken")

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._period = -1
        self._taken = 0
        self._refused = False

    def take(self, most: int) -> int:
        """Take up to ``most`` bytes of bandwidth; return how many, possibly 0."""
        bucket = self._bucket
        bucket.refresh()
        if self._period != bucket.period:
            self._period, self._taken, self._refused = bucket.period, 0, False
        taken = min(most, int(bucket.level), bucket.share - self._taken)
        bucket.level -= taken
        self._taken += taken
        if not taken and not self._refused:
            self._refused = True
            bucket.refused += 1
        return taken

    def put_back(self, unused: int) -> None:
        """Give back bytes of the last take that were not moved."""
        self._bucket.level += unused
        self._taken -= unused


def shares_of(shared: Bucket | None, bandwidth: int | None) -> list[Share]:
    """Return a direction's shares: of its own bucket, and of its route's."""
    own = Bucket(bandwidth) if bandwidth else None
    return [Share(bucket) for bucket in (own, shared) if bucket is not None]


async def allowance(shares: list[Share], most: int) -> int:
    """Wait until every bucket gives a byte or more; return how many, at most ``most``.

    The bytes are taken; the caller puts back what it does not move.
    """
    while True:
        size = most
        for index, share in enumerate(shares):
            less = share.take(size)
            for before in shares[:index]:
                before.put_back(size - less)
            size = less
            if not size:
                break
        if size:
            return size
        await trio.sleep_until((_period_at(trio.current_time()) + 1) * _PERIOD)
