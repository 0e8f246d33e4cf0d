"""One transfer under test: a pump of each kind, and both outer ends of a relayed connection."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.pump.direct_pump import join
from tests.sockets import stream, transports
from tests.waiting import until
from vsockproxy.pump.transfer import Bounds, Meter, Pump, Transfer

Families = tuple[str, str]

every_transport = pytest.mark.parametrize("families", transports())
MEBIBYTE = 2**20
FULL = 20
"""Milliseconds without room for a byte; with fewer of them a test would only test less."""


class Relayed:
    """A transfer under way, with both of its outer ends."""

    def __init__(self, pump: Pump, families: Families, bounds: Bounds) -> None:
        self.meter = Meter()
        client, target, self._transfer = join(pump, families, bounds, self.meter)
        self.client = stream(client)
        self.target = stream(target)
        self.ended = trio.Event()
        self.transfer: Transfer | None = None

    async def run(self) -> None:
        """Relay until the transfer has ended."""
        try:
            self.transfer = await self._transfer()
        finally:
            self.ended.set()

    async def bytes_upstream(self) -> None:
        """Wait until the target's socket has taken bytes."""
        await until(lambda: self.meter.upstream_bytes)

    async def reason(self) -> str:
        """Wait for the end and return its reason; the meter must have the final numbers."""
        await self.ended.wait()
        assert self.transfer is not None
        assert self.transfer.upstream_bytes == self.meter.upstream_bytes
        assert self.transfer.downstream_bytes == self.meter.downstream_bytes
        return self.transfer.reason


@asynccontextmanager
async def relayed(
    pump: Pump, families: Families, bounds: Bounds | None = None
) -> AsyncIterator[Relayed]:
    """Run a transfer between new socket pairs until the block is left."""
    run = Relayed(pump, families, bounds or Bounds())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run)
        async with run.client, run.target:
            yield run
        nursery.cancel_scope.cancel()


def publish(pump: Any) -> None:
    """Have the threads of a native pump publish all their news, in one turn of the event loop."""
    from vsockproxy.pump._native._pump import lib  # noqa: PLC0415 - where it is compiled

    lib.vsp_pump_ask(pump._pump)
    while lib.vsp_pump_silent(pump._pump):
        os.sched_yield()


async def fill(sink: trio.SocketStream) -> int:
    """Send until every buffer on the way is full; return the number of bytes."""
    sent = 0
    silent = 0
    while silent < FULL:
        try:
            sent += sink.socket._sock.send(bytes(65536))  # type: ignore[attr-defined] # never waits
            silent = 0
        except BlockingIOError:
            silent += 1
            await trio.sleep(0.001)
    return sent


def both(*jobs: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    """Return a function that runs all jobs at once."""

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    return run


def take_socket(owner: trio.SocketStream) -> socket.socket:
    """Return the stdlib socket of a stream, which no longer owns it."""
    return socket.socket(fileno=owner.socket.detach())
