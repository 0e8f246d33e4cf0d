"""The workloads of the benchmarks.

Owns: `Row` and the list of them.  A row is a name, the arguments of the load program, and the
unit of its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """One workload.

    ``groups`` are the arguments of the load program; requests and latencies of the first one
    count.  ``bulk`` counts bytes, all others requests; ``connections`` is the most
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
    """Return a row with ten round trips at any time, over many live connections in turn."""
    group = f"connections={connections},flight=10"
    title = f"64 B round trips, 10 under way over {connections} connections"
    return Row(f"growth-{connections}", title, (group,), connections)


def idle(connections: int) -> Row:
    """Return the group of connections that have carried a byte and are idle."""
    group = f"connections={connections},flight=0"
    return Row("idle", f"{connections} idle connections", (group,), connections)


def rows(block: int = 32 * 2**20) -> tuple[Row, ...]:
    """Return the rows of every peer; ``block`` is the bytes of one request of a bulk stream."""
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
"""A request that ends with the client's half-close; the answer must still arrive."""
