"""One contract, every pump, every pair of transports: bytes exact, ends as the table says.

The rows with vsock run in a kernel that the tests boot (tests/kernel); the rest here.
"""

from __future__ import annotations

import gc
import hashlib
import random
import resource
import socket
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.sockets import (
    PAIRS,
    ends_by_reset,
    no_descriptor_left_over,
    open_descriptors,
    read_to_end,
    reset,
    stream,
    transports,
)
from vsockproxy.config.settings import PumpChoice, PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Bounds, Meter, Pump, Transfer

Families = tuple[str, str]

every_transport = pytest.mark.parametrize("families", transports())
from_tcp = pytest.mark.parametrize("families", transports(clients=("tcp",)))
MEBIBYTE = 2**20


@pytest.fixture(params=["native", "portable"])
async def pump(request: pytest.FixtureRequest) -> AsyncIterator[Pump]:
    choice: PumpChoice = request.param
    async with open_pump(PumpSettings(choice, threads=2)) as pump:
        yield pump


class Relayed:
    """A transfer under way, seen from both of its outer ends."""

    def __init__(self, pump: Pump, families: Families, bounds: Bounds) -> None:
        client, self._client_side = PAIRS[families[0]]()
        self._target_side, target = PAIRS[families[1]]()
        self.client = stream(client)
        self.target = stream(target)
        self.meter = Meter()
        self.ended = trio.Event()
        self.transfer: Transfer | None = None
        self._pump = pump
        self._bounds = bounds

    async def run(self) -> None:
        try:
            self.transfer = await self._pump.transfer(
                self._client_side.detach(),
                self._target_side.detach(),
                self._bounds,
                self.meter,
            )
        finally:
            self.ended.set()

    async def reason(self) -> str:
        await self.ended.wait()
        assert self.transfer is not None
        assert self.transfer.upstream_bytes == self.meter.upstream_bytes
        assert self.transfer.downstream_bytes == self.meter.downstream_bytes
        return self.transfer.reason


@asynccontextmanager
async def relayed(
    pump: Pump, families: Families, bounds: Bounds | None = None
) -> AsyncIterator[Relayed]:
    run = Relayed(pump, families, bounds or Bounds())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run)
        async with run.client, run.target:
            yield run
        nursery.cancel_scope.cancel()


def both(*jobs: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    return run


# ---- a stream like any other ----


@every_transport
async def test_a_relayed_connection_is_a_half_closeable_stream(
    pump: Pump, families: Families
) -> None:
    async with trio.open_nursery() as nursery:

        async def make() -> tuple[trio.SocketStream, trio.SocketStream]:
            run = Relayed(pump, families, Bounds())
            nursery.start_soon(run.run)
            return run.client, run.target

        await trio.testing.check_half_closeable_stream(make, None)


# ---- how a connection ends, row by row of docs/design.md ----


@every_transport
async def test_an_answer_that_waits_for_the_clients_eof_arrives_whole(
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
async def test_upstream_goes_on_after_the_targets_eof(pump: Pump, families: Families) -> None:
    async with relayed(pump, families) as run:
        await run.target.send_all(b"banner")
        await run.target.send_eof()
        assert await read_to_end(run.client) == b"banner"
        await run.client.send_all(b"still here")
        await run.client.send_eof()
        assert await read_to_end(run.target) == b"still here"
        assert await run.reason() == "finished"


@every_transport
async def test_a_held_half_close_keeps_the_target_open_until_it_has_answered(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, Bounds(hold_half_close=True)) as run:
        await run.client.send_all(b"question")
        await run.client.send_eof()
        assert await run.target.receive_some() == b"question"
        with trio.move_on_after(0.05) as eof:
            await run.target.receive_some()
        assert eof.cancelled_caught, "the client's EOF was passed on"
        await run.target.send_all(b"answer")
        await run.target.aclose()
        assert await read_to_end(run.client) == b"answer"
        assert await run.reason() == "finished"


@every_transport
async def test_a_client_that_has_had_its_answer_is_not_held(pump: Pump, families: Families) -> None:
    async with relayed(pump, families, Bounds(hold_half_close=True)) as run:
        await run.client.send_all(b"request")
        assert await run.target.receive_some() == b"request"
        await run.target.send_all(b"answer")
        assert await run.client.receive_some() == b"answer"
        await run.client.aclose()
        assert await read_to_end(run.target) == b""  # as a server that keeps connections waits
        await run.target.aclose()
        assert await run.reason() == "finished"


@every_transport
async def test_silence_after_one_eof_ends_at_the_half_close_timeout(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, Bounds(half_close_timeout=0.05)) as run:
        await run.client.send_eof()
        assert await read_to_end(run.target) == b""
        assert await run.reason() == "half_close_timeout"


@every_transport
async def test_the_half_close_timeout_is_put_off_by_every_byte(
    pump: Pump, families: Families
) -> None:
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
async def test_no_byte_either_way_ends_at_the_idle_timeout(pump: Pump, families: Families) -> None:
    async with relayed(pump, families, Bounds(idle_timeout=0.1)) as run:
        await run.client.send_all(b"x")
        assert await run.target.receive_some() == b"x"
        assert await run.reason() == "idle_timeout"
        assert await read_to_end(run.target) == b""


@from_tcp  # nothing else has a reset that its peer can see
async def test_a_client_that_resets_ends_the_target_at_once(pump: Pump, families: Families) -> None:
    async with relayed(pump, families) as run:
        await run.client.send_all(b"x")
        assert await run.target.receive_some() == b"x"
        reset(_take(run.client))
        assert await run.reason() == "client_reset"
        assert await ends_by_reset(run.target) == (families[1] == "tcp")


@every_transport
async def test_a_target_that_resets_resets_the_client(pump: Pump, families: Families) -> None:
    async with relayed(pump, families) as run:
        await run.target.send_all(b"part")
        assert await run.client.receive_some() == b"part"
        await run.client.send_all(b"unread")  # a Unix socket resets when it closes over data
        with trio.fail_after(5):
            while run.meter.upstream_bytes < 6:
                await trio.lowlevel.checkpoint()
        if families[1] == "vsock":
            # A vsock close is never seen as a reset, until something is sent to it.
            await run.target.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await _send_for_ever(run.client)
        else:
            reset(_take(run.target))
            if families[0] == "tcp":
                assert await ends_by_reset(run.client)
        assert await run.reason() == "target_reset"


@every_transport
async def test_cancelling_resets_the_client_and_closes_the_target(
    pump: Pump, families: Families
) -> None:
    run = Relayed(pump, families, Bounds())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.run)
        await run.client.send_all(b"x")
        assert await run.target.receive_some() == b"x"
        nursery.cancel_scope.cancel()
    assert run.meter.upstream_bytes == 1
    async with run.client, run.target:
        assert await ends_by_reset(run.client) == (families[0] == "tcp")
        assert await read_to_end(run.target) == b""


async def test_a_unix_target_that_has_closed_for_good_ends_the_connection(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "unix")) as run:
        await run.target.send_all(b"all there is")
        await run.target.aclose()
        assert await read_to_end(run.client) == b"all there is"
        assert await run.reason() == "finished"


@every_transport
async def test_a_client_that_sends_and_leaves_has_all_of_it_delivered(
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


# ---- bytes ----


@every_transport
async def test_sixty_four_mebibytes_each_way_at_once_arrive_unchanged(
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
async def test_a_reader_that_stops_holds_the_sender_and_loses_nothing(
    pump: Pump, families: Families
) -> None:
    # More than the kernels' buffers take, which for TCP can be 32 MiB at each end.
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
            assert sent < total, "nothing held the sender"
            assert sum([len(chunk) async for chunk in run.target]) == total


@every_transport
async def test_a_stalled_reader_costs_no_memory(pump: Pump, families: Families) -> None:
    async with relayed(pump, families) as run:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with trio.move_on_after(0.5):
            while True:
                await run.client.send_all(bytes(MEBIBYTE))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 8 * 1024, f"{grown} KiB for one stalled connection"


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


async def test_what_follows_urgent_data_needs_no_eof_to_arrive(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "tcp")) as run:
        client = run.client.socket
        await client.send(b"before")
        await client.send(b"!", socket.MSG_OOB)
        await client.send(b"after")
        received = b""
        while not received.endswith(b"after"):
            received += await run.target.receive_some()
        assert received in (b"before!after", b"beforeafter")


async def test_bytes_behind_a_passed_descriptor_need_no_eof_to_arrive(pump: Pump) -> None:
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
async def test_a_stream_that_pauses_and_goes_on_with_small_messages_arrives_in_order(
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


async def test_more_long_streams_than_there_are_pipes_all_arrive(pump: Pump) -> None:
    number, size = 150, MEBIBYTE
    data = random.Random(9).randbytes(size)
    before = open_descriptors()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                run = Relayed(pump, ("tcp", "unix"), Bounds())
                nursery.start_soon(run.run)
                nursery.start_soon(upload, run, data)
        while open_descriptors() - before:  # the pipes, which are kept for a while
            await trio.lowlevel.checkpoint()


@pytest.mark.native
async def test_long_streams_that_stall_take_few_descriptors_from_connections() -> None:
    streams, table = 40, 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (table, hard))
    try:
        async with open_pump(PumpSettings("native")) as pump, trio.open_nursery() as nursery:
            before = len(open_descriptors())
            runs = [Relayed(pump, ("tcp", "unix"), Bounds()) for _ in range(streams)]
            for run in runs:
                nursery.start_soon(run.run)
                nursery.start_soon(run.client.send_all, bytes(64 * MEBIBYTE))
            while not all(run.meter.upstream_bytes for run in runs):
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(0.5):  # by then whoever could has a pipe
                await trio.sleep_forever()
            assert len(open_descriptors()) - before - 4 * streams <= 2 * table // 16
            nursery.cancel_scope.cancel()
        for run in runs:
            run.client.socket.close()
            run.target.socket.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def upload(run: Relayed, data: bytes) -> None:
    received = bytearray()

    async def send() -> None:
        await run.client.send_all(data)
        await run.client.send_eof()

    async def receive() -> None:
        async for chunk in run.target:
            received.extend(chunk)
            await trio.lowlevel.checkpoint()
        await run.target.aclose()

    await both(send, receive)()
    assert received == data
    assert await read_to_end(run.client) == b""
    await run.client.aclose()


async def test_two_thousand_connections_at_once_each_get_their_own_bytes(pump: Pump) -> None:
    number = 2000
    with no_descriptor_left_over():
        async with trio.open_nursery() as nursery:
            runs = [Relayed(pump, ("tcp", "unix"), Bounds()) for _ in range(number)]
            for run in runs:
                nursery.start_soon(run.run)
            for index, run in enumerate(runs):
                await run.client.send_all(index.to_bytes(4, "big"))
                await run.client.send_eof()
            for index, run in enumerate(runs):
                assert await read_to_end(run.target) == index.to_bytes(4, "big")
                await run.target.aclose()
            for run in runs:
                assert await read_to_end(run.client) == b""
                assert await run.reason() == "finished"
                await run.client.aclose()


# ---- bandwidth ----


async def test_a_connections_bandwidth_bounds_each_way_and_loses_nothing(pump: Pump) -> None:
    size, rate = 300_000, 1_000_000
    data = random.Random(4).randbytes(size)
    async with relayed(pump, ("tcp", "unix"), Bounds(bandwidth=rate)) as run:
        started = trio.current_time()

        async def way(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(source.send_all, data)
                received = b""
                while len(received) < size:
                    received += await sink.receive_some()
                assert received == data

        async with trio.open_nursery() as nursery:
            nursery.start_soon(way, run.client, run.target)
            nursery.start_soon(way, run.target, run.client)
        # A tenth of a second's bytes may go at once; a limit makes late, never early.
        assert trio.current_time() - started >= size / rate - 0.11


async def test_connections_share_a_routes_bandwidth(pump: Pump) -> None:
    size, rate = 100_000, 1_000_000
    bounds = Bounds(shared=(pump.share(rate), pump.share(rate)))
    async with (
        relayed(pump, ("tcp", "tcp"), bounds) as one,
        relayed(pump, ("unix", "tcp"), bounds) as two,
        relayed(pump, ("tcp", "unix"), bounds) as three,
    ):
        started = trio.current_time()

        async def upload(run: Relayed) -> None:
            await run.client.send_all(bytes(size))
            await run.client.send_eof()
            assert len(await read_to_end(run.target)) == size

        async with trio.open_nursery() as nursery:
            for run in (one, two, three):
                nursery.start_soon(upload, run)
        assert trio.current_time() - started >= 3 * size / rate - 0.11


async def test_a_throttled_connection_still_ends_when_its_target_leaves(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "tcp"), Bounds(bandwidth=1000)) as run:
        await run.client.send_all(bytes(100_000))
        assert await run.target.receive_some()
        reset(_take(run.target))
        assert await run.reason() == "target_reset"


async def test_an_answer_comes_through_when_the_target_stops_taking_after_a_long_quiet(
    pump: Pump,
) -> None:
    async with relayed(pump, ("unix", "unix"), Bounds(half_close_timeout=0.3)) as run:
        with trio.move_on_after(0.5):
            await run.ended.wait()  # quiet for longer than the half-close may be
        run.target.socket.shutdown(socket.SHUT_RD)
        await run.client.send_all(b"for nobody")
        with trio.move_on_after(0.1):
            await run.ended.wait()
        await run.target.send_all(b"answer")
        assert await run.client.receive_some() == b"answer"
        await run.target.aclose()
        assert await run.reason() == "target_reset"


async def test_a_meter_never_reads_a_transfer_that_is_gone(pump: Pump) -> None:
    read = 0

    async def watch(meter: Meter) -> None:
        nonlocal read
        while True:
            read = max(read, meter.upstream_bytes)
            assert meter.upstream_bytes >= read, "a counter fell"
            await trio.lowlevel.checkpoint()

    for _ in range(50):
        read = 0
        async with relayed(pump, ("unix", "unix")) as run, trio.open_nursery() as nursery:
            nursery.start_soon(watch, run.meter)
            await run.client.send_all(bytes(1000))
            await run.client.send_eof()
            await read_to_end(run.target)
            await run.target.send_eof()
            assert await run.reason() == "finished"
            assert run.meter.upstream_bytes == 1000
            nursery.cancel_scope.cancel()


# ---- nothing stays behind ----


async def test_cancelling_at_any_moment_leaves_no_descriptor_and_no_task(pump: Pump) -> None:
    gc.collect()
    with no_descriptor_left_over():
        for steps in range(40):
            run = Relayed(pump, ("tcp", "unix"), Bounds(idle_timeout=5))
            async with run.client, run.target, trio.open_nursery() as nursery:
                nursery.start_soon(run.run)
                if steps % 2:
                    await run.client.send_all(bytes(steps * 1000))
                if steps % 3:
                    await run.target.send_eof()
                for _ in range(steps // 4):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert run.ended.is_set()
    assert trio.lowlevel.current_statistics().tasks_living < 20


async def _send_for_ever(sink: trio.SocketStream) -> None:
    while True:
        await sink.send_all(bytes(65536))


def _take(owner: trio.SocketStream) -> socket.socket:
    """The stdlib socket out of a stream, which is then no more its owner."""
    return socket.socket(fileno=owner.socket.detach())
