"""Rates per second of live connections and of routes, from two samples of their counters.

Owns: the samples.  The data path counts and reads no clock; a rate costs something only while a
client asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import Final, Generic, NamedTuple, TypeVar

import trio

from vsockproxy.connection import Connection
from vsockproxy.http.loop_share import every
from vsockproxy.stats import RouteStats

_MIN_INTERVAL: Final = 0.25  # seconds between two samples; below that a rate is noise
_MAX_AGE: Final = 1.0  # seconds after which a sample is replaced
_EXPIRY: Final = 10.0  # seconds after which a sample says nothing about the present

_Item = TypeVar("_Item")


class Counters(NamedTuple):
    """The counters of one item at one time.

    Attributes:
      key: the same in every sample of the item.
      since: when they were 0, in seconds of `time.monotonic`, if that may be after a sample.
    """

    key: Hashable
    values: tuple[int, ...]
    since: float = 0.0


def connection_bytes(connection: Connection) -> Counters:
    """Return the bytes of a connection, upstream and downstream."""
    moved = (connection.upstream_bytes, connection.downstream_bytes)
    return Counters(connection.number, moved, connection.opened)


def route_counters(stats: RouteStats) -> Counters:
    """Return a route's accepted connections, failed dials, bytes upstream and downstream."""
    failed = sum(stats.dial_failures.values())
    moved = (stats.upstream_bytes, stats.downstream_bytes)
    return Counters(stats.route.name, (stats.connections, failed, *moved))


class _Sample(NamedTuple):
    time: float
    counted: dict[Hashable, tuple[int, ...]]


class Rates(Generic[_Item]):
    """The samples that one server keeps for all its clients."""

    def __init__(self, read: Callable[[_Item], Counters]) -> None:
        """``read`` returns the counters of an item."""
        self._read = read
        self._samples: list[_Sample] = []

    async def look(self, items: Iterable[_Item]) -> None:
        """Sample all items if the last sample is old.

        After a pause this sleeps for a quarter of a second, since a rate takes two samples; in that
        time connections may end.
        """
        now = monotonic()
        if not self._samples or now - self._samples[-1].time > _EXPIRY:
            self._samples = [await self._sample(items)]
        elif now - self._samples[-1].time > _MAX_AGE:
            self._samples = [self._samples[-1], await self._sample(items)]
        await trio.sleep(max(0.0, self._samples[0].time + _MIN_INTERVAL - monotonic()))

    def of(self, item: _Item) -> tuple[float, ...]:
        """Return the rate of each counter, since the sample before the last."""
        before = self._samples[0] if self._samples else _Sample(0.0, {})
        key, values, since = self._read(item)
        counted = before.counted.get(key, (0,) * len(values))
        seconds = max(_MIN_INTERVAL, monotonic() - max(before.time, since))
        return tuple((new - old) / seconds for new, old in zip(values, counted, strict=True))

    async def _sample(self, items: Iterable[_Item]) -> _Sample:
        now = monotonic()
        read = await every(map(self._read, list(items)))
        return _Sample(now, {one.key: one.values for one in read})
