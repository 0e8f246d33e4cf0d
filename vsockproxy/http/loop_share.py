"""The share of the event loop that all HTTP clients have together: one short turn each time round.

Whatever many clients ask for, or one client for many things, the relays' tasks run between two
turns.  Work that takes longer is cut into pieces, by `some`, `every` and `body_of`: a thread would
not do, because Python code in it keeps the loop from the interpreter's lock for longer than a turn.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from time import perf_counter
from typing import Final, TypeVar

import trio

from vsockproxy.http.message import Body
from vsockproxy.per_trio_run import PerRun

_LONGEST: Final = 0.002  # seconds of a turn, and the time of one item

_Item = TypeVar("_Item")

_LOCK: Final = PerRun(trio.Lock)


def turn() -> trio.Lock:
    """Return the lock whose holder has the turn, for a block that awaits nothing.

    trio's locks are fair, and are handed on in the next round of the loop.
    """
    return _LOCK.get()


async def some(work: Iterator[_Item]) -> list[_Item]:
    """Return the next items of an iterator, as many as one turn makes; none at its end."""
    items: list[_Item] = []
    async with turn():
        end = perf_counter() + _LONGEST
        for item in work:
            items.append(item)
            if perf_counter() >= end:
                break
    return items


async def every(work: Iterable[_Item]) -> list[_Item]:
    """Return all items of an iterable, made in as many turns as it takes."""
    iterator = iter(work)
    items: list[_Item] = []
    while found := await some(iterator):
        items += found
    return items


async def body_of(work: Iterator[bytes]) -> Body:
    """Return a body of pieces: all bytes if two turns make them, else made while they are sent.

    An exception of the first two turns is the caller's; a later one truncates the body.
    """
    first = await some(work)
    second = await some(work)
    if not second:
        return b"".join(first)
    return _joined(b"".join(first + second), work)


async def _joined(first: bytes, work: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    while pieces := await some(work):
        yield b"".join(pieces)
