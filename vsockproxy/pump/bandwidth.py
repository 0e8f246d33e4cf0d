"""How many bytes a second the portable pump may move; the C code has its own in bandwidth.c.

Owns: `Bucket`.
"""

from __future__ import annotations

from typing import Final

import trio

_BURST: Final = 0.1  # seconds whose bytes a full bucket holds
_THROTTLED: Final = 0.02  # seconds until a direction without bandwidth tries again


class Bucket:
    """A token bucket: full, it holds the bytes of `_BURST`."""

    __slots__ = ("_filled", "_level", "_rate")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._level = 0.0
        self._filled = trio.current_time()

    def take(self, most: int) -> int:
        """Take up to ``most`` bytes of bandwidth; return how many, possibly 0."""
        now = trio.current_time()
        burst = max(1.0, self._rate * _BURST)
        self._level = min(burst, self._level + self._rate * (now - self._filled))
        self._filled = now
        taken = min(most, int(self._level))
        self._level -= taken
        return taken

    def put_back(self, unused: int) -> None:
        """Give back bytes that were taken and not moved."""
        self._level += unused


def buckets_of(shared: Bucket | None, bandwidth: int | None) -> list[Bucket]:
    """Return the buckets that one direction takes from: its own and its route's."""
    own = Bucket(bandwidth) if bandwidth else None
    return [bucket for bucket in (own, shared) if bucket is not None]


async def allowance(buckets: list[Bucket], most: int) -> int:
    """Wait until every bucket gives a byte or more; return how many, at most ``most``.

    The bytes are taken; the caller puts back what it does not move.
    """
    while True:
        size = most
        for index, bucket in enumerate(buckets):
            less = bucket.take(size)
            for before in buckets[:index]:
                before.put_back(size - less)
            size = less
        if size:
            return size
        await trio.sleep(_THROTTLED)
