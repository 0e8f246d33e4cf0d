"""Many connections at once, bandwidth, counters and descriptors, by every pump."""

from __future__ import annotations

import gc
import random
import resource

import pytest
import trio

from tests.pump.relayed import MEBIBYTE, Relayed, both, relayed, take_socket
from tests.sockets import no_descriptor_left_over, open_descriptors, read_to_end, reset
from tests.waiting import until
from vsockproxy.config.settings import PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Bounds, Meter, Pump


async def test_more_long_streams_than_pipes_all_arrive(pump: Pump) -> None:
    number, size = 150, MEBIBYTE
    data = random.Random(9).randbytes(size)
    before = open_descriptors()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(number):
                run = Relayed(pump, ("tcp", "unix"), Bounds())
                nursery.start_soon(run.run)
                nursery.start_soon(upload, run, data)
        # The spare pipes stay open for a second.
        await until(lambda: not open_descriptors() - before)


@pytest.mark.native
async def test_stalled_long_streams_take_few_descriptors_from_connections() -> None:
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
            await until(lambda: all(run.meter.upstream_bytes for run in runs))
            with trio.move_on_after(0.5):  # by then every stream that may have a pipe has one
                await trio.sleep_forever()
            assert len(open_descriptors()) - before - 4 * streams <= 2 * table // 16
            nursery.cancel_scope.cancel()
        for run in runs:
            run.client.socket.close()
            run.target.socket.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.native
async def test_pipes_of_a_burst_are_closed_while_their_thread_stays_busy() -> None:
    async with open_pump(PumpSettings("native", threads=1)) as pump, trio.open_nursery() as nursery:
        steady = Relayed(pump, ("tcp", "unix"), Bounds())
        nursery.start_soon(steady.run)
        async with trio.open_nursery() as uploading:
            uploading.start_soon(upload, steady, bytes(400 * MEBIBYTE))
            await until(lambda: steady.meter.upstream_bytes)
            before = len(open_descriptors())
            runs = [Relayed(pump, ("tcp", "unix"), Bounds()) for _ in range(20)]
            async with trio.open_nursery() as burst:
                for run in runs:
                    burst.start_soon(run.run)
                    burst.start_soon(upload, run, bytes(4 * MEBIBYTE))
            assert steady.meter.running, "the thread was to stay busy"
            await until(lambda: len(open_descriptors()) <= before + 4)
            assert steady.meter.running, "the thread was to stay busy"
            uploading.cancel_scope.cancel()  # before the transfer, whose end is a reset
        nursery.cancel_scope.cancel()
    await steady.client.aclose()
    await steady.target.aclose()


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


async def test_two_thousand_connections_at_once_each_receive_their_own_bytes(pump: Pump) -> None:
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


async def test_a_connections_bandwidth_limits_each_direction_and_loses_nothing(pump: Pump) -> None:
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
        # A full bucket holds the bytes of a tenth of a second; load only makes it slower.
        assert trio.current_time() - started >= size / rate - 0.11


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
async def test_a_bandwidth_above_what_64_bits_count_in_a_second_limits_nothing(
    pump: Pump, shared: bool
) -> None:
    rate = 2**64 // 100 + 1  # times the milliseconds of a burst: just above 2**64
    bounds = Bounds(bandwidth=rate)
    if shared:
        bounds = Bounds(shared=(pump.share(rate), pump.share(rate)))
    async with relayed(pump, ("tcp", "unix"), bounds) as run:
        with trio.fail_after(30):
            await upload(run, bytes(MEBIBYTE))


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


async def test_a_throttled_connection_ends_when_its_target_resets(pump: Pump) -> None:
    async with relayed(pump, ("tcp", "tcp"), Bounds(bandwidth=1000)) as run:
        await run.client.send_all(bytes(100_000))
        assert await run.target.receive_some()
        reset(take_socket(run.target))
        assert await run.reason() == "target_reset"


async def test_a_meter_never_reads_a_freed_transfer(pump: Pump) -> None:
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
