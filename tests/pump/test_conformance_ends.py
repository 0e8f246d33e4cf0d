"""How a connection ends, by every pump and pair of transports, row by row of docs/design.md.

The rows with vsock run in a kernel that the tests boot (tests/kernel).
"""

from __future__ import annotations

import random
import socket

import pytest
import trio
import trio.testing

from tests.pump.relayed import (
    MEBIBYTE,
    Families,
    Relayed,
    both,
    every_transport,
    relayed,
    take_socket,
)
from tests.sockets import ends_by_reset, read_to_end, reset, transports
from tests.waiting import until
from vsockproxy.pump.transfer import Bounds, Pump

from_tcp = pytest.mark.parametrize("families", transports(clients=("tcp",)))


@every_transport
async def test_a_relayed_connection_is_a_half_closeable_stream(
    pump: Pump, families: Families
) -> None:
    async with trio.open_nursery() as nursery:

        async def make() -> tuple[trio.SocketStream, trio.SocketStream]:
            run = Relayed(pump, families, Bounds(linger_timeout=0.05))
            nursery.start_soon(run.run)
            return run.client, run.target

        await trio.testing.check_half_closeable_stream(make, None)


@every_transport
async def test_an_answer_sent_after_the_clients_eof_arrives_whole(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families) as run:
        await run.client.send_all(b"question")
        await run.client.send_eof()
        assert await read_to_end(run.target) == b"question"
        await run.target.send_all(b"answer")
        await run.target.send_eof()
        assert await read_to_end(run.client) == b"answer"
        assert await run.reason() == "finished"
        assert run.transfer == (8, 6, "finished")


@every_transport
async def test_upstream_continues_after_the_targets_eof(pump: Pump, families: Families) -> None:
    async with relayed(pump, families) as run:
        await run.target.send_all(b"banner")
        await run.target.send_eof()
        assert await read_to_end(run.client) == b"banner"
        await run.client.send_all(b"more bytes")
        await run.client.send_eof()
        assert await read_to_end(run.target) == b"more bytes"
        assert await run.reason() == "finished"


@every_transport
async def test_silence_after_one_eof_ends_the_connection_at_the_half_close_timeout(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, Bounds(half_close_timeout=0.05)) as run:
        await run.client.send_eof()
        assert await read_to_end(run.target) == b""
        assert await ends_by_reset(run.client) == (families[0] == "tcp"), "no EOF was sent to it"
        assert await run.reason() == "half_close_timeout"


@every_transport
async def test_every_byte_restarts_the_half_close_timeout(pump: Pump, families: Families) -> None:
    async with relayed(pump, families, Bounds(half_close_timeout=0.3)) as run:
        await run.client.send_eof()
        for _ in range(8):
            with trio.move_on_after(0.1):
                await run.ended.wait()
            await run.target.send_all(b"x")
        await run.target.send_eof()
        assert await read_to_end(run.client) == b"x" * 8
        assert await run.reason() == "finished"


@every_transport
async def test_silence_both_ways_ends_the_connection_at_the_idle_timeout(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, Bounds(idle_timeout=0.1)) as run:
        await run.client.send_all(b"x")
        assert await run.target.receive_some() == b"x"
        assert await run.reason() == "idle_timeout"
        for family, end in zip(families, (run.client, run.target), strict=True):
            assert await ends_by_reset(end) == (family == "tcp")


@every_transport
async def test_equal_idle_and_half_close_timeouts_end_as_half_close_timeout(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, Bounds(idle_timeout=0.05, half_close_timeout=0.05)) as run:
        await run.client.send_eof()
        assert await run.reason() == "half_close_timeout"


@from_tcp  # a peer sees a reset only on TCP
async def test_a_reset_by_the_client_resets_the_target_immediately(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families) as run:
        await run.client.send_all(b"x")
        assert await run.target.receive_some() == b"x"
        reset(take_socket(run.client))
        assert await run.reason() == "client_reset"
        assert await ends_by_reset(run.target) == (families[1] == "tcp")


@every_transport
async def test_a_reset_by_the_target_resets_the_client(pump: Pump, families: Families) -> None:
    async with relayed(pump, families) as run:
        await run.target.send_all(b"part")
        assert await run.client.receive_some() == b"part"
        await run.client.send_all(b"unread")  # a Unix socket resets when it closes over data
        await until(lambda: run.meter.upstream_bytes >= 6)
        if families[1] == "vsock":
            # A vsock peer's close is seen as a reset only when something is sent to it.
            await run.target.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await send_until_broken(run.client)
        else:
            reset(take_socket(run.target))
            if families[0] == "tcp":
                assert await ends_by_reset(run.client)
        assert await run.reason() == "target_reset"


@every_transport
async def test_cancelling_resets_both_sides_that_are_tcp(pump: Pump, families: Families) -> None:
    run = Relayed(pump, families, Bounds())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run)
        await run.client.send_all(b"x")
        assert await run.target.receive_some() == b"x"
        nursery.cancel_scope.cancel()
    assert run.meter.upstream_bytes == 1
    for family, end in zip(families, (run.client, run.target), strict=True):
        assert await ends_by_reset(end) == (family == "tcp")


async def test_a_unix_target_that_closes_ends_the_connection(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "unix")) as run:
        await run.target.send_all(b"all there is")
        await run.target.aclose()
        assert await read_to_end(run.client) == b"all there is"
        assert await run.reason() == "finished"


@every_transport
async def test_a_client_that_sends_and_closes_has_all_bytes_delivered(
    pump: Pump, families: Families
) -> None:
    data = random.Random(1).randbytes(4 * MEBIBYTE)
    async with relayed(pump, families) as run:
        received = bytearray()

        async def send() -> None:
            await run.client.send_all(data)
            await run.client.aclose()

        async def receive() -> None:
            async for chunk in run.target:
                received.extend(chunk)

        await both(send, receive)()
        assert received == data


async def test_an_answer_arrives_when_the_target_stops_receiving_after_a_long_silence(
    pump: Pump,
) -> None:
    async with relayed(pump, ("unix", "unix"), Bounds(half_close_timeout=0.3)) as run:
        with trio.move_on_after(0.5):
            await run.ended.wait()  # silent for longer than half_close_timeout
        run.target.socket.shutdown(socket.SHUT_RD)
        await run.client.send_all(b"unread")
        with trio.move_on_after(0.1):
            await run.ended.wait()
        await run.target.send_all(b"answer")
        assert await run.client.receive_some() == b"answer"
        await run.target.aclose()
        assert await run.reason() == "target_reset"


async def send_until_broken(sink: trio.SocketStream) -> None:
    while True:
        await sink.send_all(bytes(65536))
