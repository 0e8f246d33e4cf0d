"""The works that every proxy is measured at.

Owns: `Row` and the list of them.  A row is a name, what the load program is told, and what
one unit of its work is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """One work.

    ``groups`` is what the load program is told; the first of them is the one whose requests
    and latencies count.  ``bulk`` counts bytes, all others requests; ``connections`` is the most
    that are open at once.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    connections: int
    bulk: bool = False


def _bulk(way: str, streams: int, block: int) -> Row:
    title = f"bulk {way}, {streams} stream{'s' if streams > 1 else ''}"
    group = f"connections={streams},{way}={block}"
    return Row(f"{way}-{streams}", title, (group,), streams, bulk=True)


def _trips(size: int, connections: int) -> Row:
    name = "64 B" if size == 64 else "16 KiB"
    title = f"{name} round trips, {connections} connection{'s' if connections > 1 else ''}"
    group = f"connections={connections},up={size},down={size}"
    return Row(f"trips-{size}-{connections}", title, (group,), connections)


def _churn(at_once: int) -> Row:
    group = f"connections={at_once},requests=1"
    return Row(f"churn-{at_once}", f"connect, request, close, {at_once} at once", (group,), at_once)


def growth(connections: int) -> Row:
    """Ten round trips under way at any time, over so many live connections in turn."""
    group = f"connections={connections},flight=10"
    title = f"64 B round trips, 10 under way over {connections} connections"
    return Row(f"growth-{connections}", title, (group,), connections)


def idle(connections: int) -> Row:
    """Connections that carried a byte and are quiet now."""
    group = f"connections={connections},flight=0"
    return Row("idle", f"{connections} idle connections", (group,), connections)


def rows(block: int = 32 * 2**20) -> tuple[Row, ...]:
    """What every peer is measured at; ``block`` is the bytes of one request of a bulk stream."""
    mix = (
        "connections=60",
        f"connections=1,up={block}",
        f"connections=1,down={block}",
        "connections=2,requests=1",
    )
    return (
        *(_bulk(way, streams, block) for way in ("up", "down") for streams in (1, 8)),
        *(_trips(size, connections) for size in (64, 16384) for connections in (1, 64, 1000)),
        _churn(8),
        _churn(64),
        Row("mix", "mix: 64 B round trips beside bulk both ways and new connections", mix, 64),
    )


HALF_CLOSE: Final = "connections=1,up=1048576,half_close"
"""A request that ends with the client's half-close; the answer is still wanted."""
