"""Bytes a second of live connections, from two looks at their counters.

Owns: the looks.  The data path counts bytes and knows no time; a rate costs something only
while somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Final, NamedTuple

import trio

from vsockproxy.connection import Connection

_SHORTEST: Final = 0.25  # seconds between two looks; below that a rate is noise
_FRESH: Final = 1.0  # seconds until a look is followed by another
_STALE: Final = 10.0  # seconds after which a look says nothing of now
_BATCH: Final = 500  # connections looked at before other tasks get their turn


class _Look(NamedTuple):
    time: float
    moved: dict[int, tuple[int, int]]


class Rates:
    """The looks that one server took for those who ask it."""

    def __init__(self) -> None:
        self._looks: list[_Look] = []

    async def look(self, connections: Iterable[Connection]) -> None:
        """Look at all live connections, if it is time to.

        The first look after a pause waits for a quarter of a second: it takes two.
        """
        now = monotonic()
        if not self._looks or now - self._looks[-1].time > _STALE:
            self._looks = [await _take(connections)]
        elif now - self._looks[-1].time > _FRESH:
            self._looks = [self._looks[-1], await _take(connections)]
        await trio.sleep(max(0.0, self._looks[0].time + _SHORTEST - monotonic()))

    def of(self, connection: Connection) -> tuple[float, float]:
        """Bytes a second upstream and downstream, since the look before."""
        before = self._looks[0] if self._looks else _Look(0.0, {})
        upstream, downstream = before.moved.get(connection.number, (0, 0))
        seconds = max(_SHORTEST, monotonic() - max(before.time, connection.opened))
        return (
            (connection.upstream_bytes - upstream) / seconds,
            (connection.downstream_bytes - downstream) / seconds,
        )


async def _take(connections: Iterable[Connection]) -> _Look:
    now = monotonic()
    moved: dict[int, tuple[int, int]] = {}
    for index, connection in enumerate(list(connections), 1):
        moved[connection.number] = (connection.upstream_bytes, connection.downstream_bytes)
        if index % _BATCH == 0:
            await trio.lowlevel.checkpoint()
    return _Look(now, moved)
