"""The task that tells the ends of transfers survives its errors: else nothing would end."""

from __future__ import annotations

import errno
import select
import socket
from typing import Any

import pytest
import trio
import trio.testing

from tests.daemon_process import PATIENCE
from tests.pump.relayed import Relayed, publish, relayed
from vsockproxy.config.settings import PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Bounds, Transfer

pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    native = pytest.importorskip("vsockproxy.pump.native")
    monkeypatch.setattr(native, "_AFTER_ERROR", 0.0)


async def end(*runs: Relayed) -> None:
    for run in runs:
        await run.client.aclose()
        await run.target.aclose()
        assert await run.reason() in ("finished", "client_reset", "target_reset")


async def test_an_end_that_cannot_be_told_is_told_later_and_no_other_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = 0

    def fail_once(*arguments: Any) -> Transfer:
        nonlocal failures
        failures += 1
        if failures == 2:  # of three ends, which one call may have reaped
            raise MemoryError
        return Transfer(*arguments)

    monkeypatch.setattr("vsockproxy.pump.native.Transfer", fail_once)
    with trio.fail_after(10):
        async with open_pump(PumpSettings("native")) as pump, trio.open_nursery() as nursery:
            runs = [Relayed(pump, ("tcp", "unix"), Bounds()) for _ in range(3)]
            for run in runs:
                nursery.start_soon(run.run)
            await end(*runs)
    assert failures == 4


async def test_more_ends_than_a_batch_are_told_although_one_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them are waiting when the first is told: no thread says again that there are some."""
    monkeypatch.setattr("vsockproxy.pump.native._REAP", 2)
    async with open_pump(PumpSettings("native")) as pump, trio.open_nursery() as nursery:
        runs = [Relayed(pump, ("tcp", "unix"), Bounds()) for _ in range(9)]
        for run in runs:
            nursery.start_soon(run.run)
        await trio.testing.wait_all_tasks_blocked()
        cannot_be_told_once(monkeypatch, after=1)  # the rest of its batch is shorter than one
        for run in runs:
            has_ended_in_the_kernel(run)
        publish(pump)
        with trio.fail_after(PATIENCE):
            for run in runs:
                assert await run.reason() == "finished"
        await end(*runs)


async def test_ends_that_cannot_be_read_are_told_later_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vsockproxy.pump.native_relay import News, NewsRoom  # noqa: PLC0415 - where it is compiled

    failures = 0
    read = NewsRoom.read

    def fail_at_times(room: NewsRoom, number: int) -> list[News]:
        nonlocal failures
        failures += 1
        if failures % 2:
            raise MemoryError
        return read(room, number)

    monkeypatch.setattr(NewsRoom, "read", fail_at_times)
    with trio.fail_after(10):
        async with open_pump(PumpSettings("native")) as pump, trio.open_nursery() as nursery:
            for _ in range(3):  # another batch each
                run = Relayed(pump, ("tcp", "unix"), Bounds())
                nursery.start_soon(run.run)
                await end(run)
    assert failures >= 6


async def test_ends_that_a_look_for_life_cannot_tell_are_told_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with trio.fail_after(10):
        async with open_pump(PumpSettings("native")) as pump, relayed(pump, ("tcp", "unix")) as run:
            await trio.testing.wait_all_tasks_blocked()
            cannot_be_told_once(monkeypatch)
            has_ended_in_the_kernel(run)
            await pump.alive()
            assert await run.reason() == "finished"


async def test_a_transfer_whose_end_is_not_told_yet_can_be_read_and_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with trio.fail_after(10):
        async with (
            open_pump(PumpSettings("native")) as pump,
            relayed(pump, ("tcp", "unix")) as first,
            relayed(pump, ("tcp", "unix")) as second,
        ):
            await trio.testing.wait_all_tasks_blocked()
            cannot_be_told_once(monkeypatch)
            has_ended_in_the_kernel(first)
            has_ended_in_the_kernel(second)
            publish(pump)
            try:
                with pytest.raises(MemoryError):
                    pump._reap()  # type: ignore[attr-defined] # before the event loop does
                untold = [run.meter.running for run in (first, second) if run.meter.running]
                assert untold
                for running in untold:
                    assert running.upstream_bytes() == 0
                    running.stop()  # as a kill does
            finally:
                await pump.alive()  # nothing else has them told now
            assert await first.reason() == await second.reason() == "finished"


def cannot_be_told_once(monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Have the next end that is told fail, or the one ``after`` as many others."""

    def fail(*arguments: Any) -> Transfer:
        nonlocal after
        after -= 1
        if after >= 0:
            return Transfer(*arguments)
        monkeypatch.setattr("vsockproxy.pump.native.Transfer", Transfer)
        raise MemoryError

    monkeypatch.setattr("vsockproxy.pump.native.Transfer", fail)


def has_ended_in_the_kernel(run: Relayed) -> None:
    """Send both ends' FIN without a turn of the event loop."""
    client = run.client.socket._sock  # type: ignore[attr-defined] # without a checkpoint
    target = run.target.socket._sock  # type: ignore[attr-defined]
    client.shutdown(socket.SHUT_WR)
    target.shutdown(socket.SHUT_WR)
    assert select.select([client], [], [], PATIENCE)[0]


async def test_a_task_whose_transfer_has_ended_has_run_when_the_pump_has_shown_its_life() -> None:
    async with open_pump(PumpSettings("native")) as pump:
        for _ in range(50):  # trio runs tasks that are ready in any order
            async with relayed(pump, ("tcp", "unix")) as run:
                await trio.testing.wait_all_tasks_blocked()
                has_ended_in_the_kernel(run)
                await pump.alive()
                assert run.ended.is_set()


async def test_a_shutdown_ends_although_waiting_for_the_ends_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_readable = trio.lowlevel.wait_readable
    failed = trio.Event()

    async def fail_once(at: Any) -> None:
        monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)
        failed.set()
        raise OSError(errno.EBADF, "Bad file descriptor")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(trio.lowlevel, "wait_readable", fail_once)
            async with open_pump(PumpSettings("native")) as pump:
                await failed.wait()
                run = Relayed(pump, ("tcp", "unix"), Bounds())
                nursery.start_soon(run.run)
                await end(run)


async def test_a_transfer_that_memory_is_short_for_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch, nothing_stays_open: None
) -> None:
    async with open_pump(PumpSettings("native")) as pump:
        run = Relayed(pump, ("tcp", "unix"), Bounds())
        with monkeypatch.context() as patch:
            patch.setattr("vsockproxy.pump.native.fill_policy", _no_memory)
            with pytest.raises(MemoryError):
                await run.run()
        await run.client.aclose()
        await run.target.aclose()


def _no_memory(*_: object) -> None:
    raise MemoryError
