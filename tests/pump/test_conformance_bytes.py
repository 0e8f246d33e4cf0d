"""Every byte of a stream arrives, in order and once, by every pump and pair of transports.

The rows with vsock run in a kernel that the tests boot (tests/kernel).
"""

from __future__ import annotations

import hashlib
import random
import resource
import socket
from array import array
from pathlib import Path

import trio

from tests.pump.relayed import MEBIBYTE, Families, both, every_transport, relayed
from tests.sockets import read_to_end
from vsockproxy.pump.transfer import Pump


@every_transport
async def test_64_mebibytes_in_both_directions_at_once_arrive_unchanged(
    pump: Pump, families: Families
) -> None:
    size = 8 * MEBIBYTE if "vsock" in families else 64 * MEBIBYTE
    async with relayed(pump, families) as run:
        ways = [(run.client, run.target, 1), (run.target, run.client, 2)]
        digests: dict[int, tuple[str, str]] = {}

        async def way(source: trio.SocketStream, sink: trio.SocketStream, seed: int) -> None:
            sent, received = hashlib.sha256(), hashlib.sha256()
            block = random.Random(seed).randbytes(MEBIBYTE)

            async def send() -> None:
                for number in range(size // MEBIBYTE):
                    data = number.to_bytes(4, "big") + block[4:]
                    sent.update(data)
                    await source.send_all(data)
                await source.send_eof()

            async def receive() -> None:
                async for chunk in sink:
                    received.update(chunk)

            await both(send, receive)()
            digests[seed] = (sent.hexdigest(), received.hexdigest())

        async with trio.open_nursery() as nursery:
            for arguments in ways:
                nursery.start_soon(way, *arguments)
        assert [one == other for one, other in digests.values()] == [True, True]
        assert await run.reason() == "finished"
        assert run.transfer is not None
        assert run.transfer[:2] == (size, size)


@every_transport
async def test_a_reader_that_stops_blocks_the_sender_and_loses_nothing(
    pump: Pump, families: Families
) -> None:
    # More than the kernel's buffers hold, which for TCP can be 32 MiB at each end.
    total = (256 if families[1] == "tcp" else 32) * MEBIBYTE
    async with relayed(pump, families) as run:
        sent = 0
        moved = trio.Event()

        async def send() -> None:
            nonlocal sent, moved
            block = bytes(65536)
            while sent < total:
                await run.client.send_all(block)
                sent += len(block)
                moved.set()
                moved = trio.Event()
            await run.client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            stalled = False
            while not stalled:
                with trio.move_on_after(0.3) as quiet:
                    await moved.wait()
                stalled = quiet.cancelled_caught
            assert sent < total, "nothing blocked the sender"
            assert sum([len(chunk) async for chunk in run.target]) == total


@every_transport
async def test_a_stalled_reader_costs_less_than_four_mebibytes(
    pump: Pump, families: Families
) -> None:
    data = bytes(MEBIBYTE)  # once: a sanitizer keeps what is freed
    async with relayed(pump, families) as run:
        before = resident_kib()
        with trio.move_on_after(0.5):
            while True:
                await run.client.send_all(data)
        grown = resident_kib() - before
        assert grown < 4 * 1024, f"{grown} KiB for one stalled connection"


@every_transport
async def test_one_byte_at_a_time_arrives_in_order(pump: Pump, families: Families) -> None:
    data = random.Random(3).randbytes(2000)
    async with relayed(pump, families) as run:
        for value in data:
            await run.client.send_all(bytes([value]))
            assert await run.target.receive_some() == bytes([value])
            await run.target.send_all(bytes([value ^ 0xFF]))
            assert await run.client.receive_some() == bytes([value ^ 0xFF])
        await run.client.send_eof()
        await run.target.send_eof()
        assert await run.reason() == "finished"
        assert run.transfer == (len(data), len(data), "finished")


async def test_urgent_data_stays_in_the_stream(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "tcp")) as run:
        client = run.client.socket
        await client.send(b"before")
        await client.send(b"!", socket.MSG_OOB)
        await client.send(b"after")
        await run.client.send_eof()
        received = await read_to_end(run.target)
        assert received in (b"before!after", b"beforeafter")


async def test_bytes_after_urgent_data_arrive_before_the_eof(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "tcp")) as run:
        client = run.client.socket
        await client.send(b"before")
        await client.send(b"!", socket.MSG_OOB)
        await client.send(b"after")
        received = b""
        while not received.endswith(b"after"):
            received += await run.target.receive_some()
        assert received in (b"before!after", b"beforeafter")


async def test_urgent_data_in_a_long_stream_stays_in_it(pump: Pump) -> None:
    piece = random.Random(5).randbytes(700_000).replace(b"!", b"?")
    pieces = 12
    async with relayed(pump, ("tcp", "tcp")) as run, trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(pieces):
                await run.client.send_all(piece)
                await run.client.socket.send(b"!", socket.MSG_OOB)
                await run.client.send_all(b"after")

        nursery.start_soon(send)
        received = b""
        while len(received) < pieces * len(piece + b"after"):
            received += (await run.target.receive_some()).replace(b"!", b"")
        assert received == pieces * (piece + b"after")


async def test_bytes_after_a_passed_descriptor_arrive_before_the_eof(pump: Pump) -> None:
    async with relayed(pump, ("unix", "unix")) as run:
        with socket.socket() as passed:
            rights = array("i", [passed.fileno()])
            for piece in (b"one", b"two"):
                await run.client.socket.sendmsg(
                    [piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                )
            await run.client.send_all(b"three")
        received = b""
        while len(received) < len(b"onetwothree"):
            received += await run.target.receive_some()
        assert received == b"onetwothree"


@every_transport
async def test_a_stream_with_pauses_and_small_messages_arrives_in_order(
    pump: Pump, families: Families
) -> None:
    pieces = [
        random.Random(seed).randbytes(size)
        for seed, size in enumerate((2 * MEBIBYTE, 1, 300_000, 5, 2 * MEBIBYTE, 40_000, 7))
    ]
    async with relayed(pump, families) as run:
        for piece in pieces:
            for source, sink in ((run.client, run.target), (run.target, run.client)):
                received = bytearray()

                async def receive(sink: trio.SocketStream, received: bytearray, size: int) -> None:
                    while len(received) < size:
                        received += await sink.receive_some()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive, sink, received, len(piece))
                    await source.send_all(piece)
                assert received == piece
        await run.client.send_eof()
        await run.target.send_eof()
        assert await run.reason() == "finished"
        size = sum(map(len, pieces))
        assert run.transfer == (size, size, "finished")


def resident_kib() -> int:
    """Return the memory of this process at present: its highest mark would not show one test."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
