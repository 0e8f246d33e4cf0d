"""Bytes per second of live connections, from two samples of their counters.

Owns: the samples.  The data path counts bytes and reads no clock; a rate costs something only
while a client asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Final, NamedTuple

import trio

from vsockproxy.connection import Connection

_MIN_INTERVAL: Final = 0.25  # seconds between two samples; below that a rate is noise
_MAX_AGE: Final = 1.0  # seconds after which a sample is replaced
_EXPIRY: Final = 10.0  # seconds after which a sample says nothing about the present
_BATCH: Final = 500  # connections sampled between two checkpoints


class _Sample(NamedTuple):
    time: float
    moved: dict[int, tuple[int, int]]


class Rates:
    """The samples that one server keeps for all its clients."""

    def __init__(self) -> None:
        self._samples: list[_Sample] = []

    async def look(self, connections: Iterable[Connection]) -> None:
        """Sample all live connections if the last sample is old.

        After a pause this sleeps for a quarter of a second, since a rate takes two samples; in that
        time connections may end.
        """
        now = monotonic()
        if not self._samples or now - self._samples[-1].time > _EXPIRY:
            self._samples = [await _sample(connections)]
        elif now - self._samples[-1].time > _MAX_AGE:
            self._samples = [self._samples[-1], await _sample(connections)]
        await trio.sleep(max(0.0, self._samples[0].time + _MIN_INTERVAL - monotonic()))

    def of(self, connection: Connection) -> tuple[float, float]:
        """Return bytes per second upstream and downstream, since the sample before the last."""
        before = self._samples[0] if self._samples else _Sample(0.0, {})
        upstream, downstream = before.moved.get(connection.number, (0, 0))
        seconds = max(_MIN_INTERVAL, monotonic() - max(before.time, connection.opened))
        return (
            (connection.upstream_bytes - upstream) / seconds,
            (connection.downstream_bytes - downstream) / seconds,
        )


async def _sample(connections: Iterable[Connection]) -> _Sample:
    now = monotonic()
    moved: dict[int, tuple[int, int]] = {}
    for index, connection in enumerate(list(connections), 1):
        moved[connection.number] = (connection.upstream_bytes, connection.downstream_bytes)
        if index % _BATCH == 0:
            await trio.lowlevel.checkpoint()
    return _Sample(now, moved)
