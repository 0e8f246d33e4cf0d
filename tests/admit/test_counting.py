"""Counting many descriptors where the kernel does not tell their number (before Linux 6.2)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from tests.waiting import until
from vsockproxy.admit import descriptors
from vsockproxy.admit import process_limits as admission_module
from vsockproxy.admit.process_limits import Admission


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Take the kernel's short answer away; return the threads that have listed a folder."""
    threads: list[threading.Thread] = []
    count_open = descriptors.count_open

    def counted() -> int:
        threads.append(threading.current_thread())
        return count_open()

    monkeypatch.setattr(descriptors, "_TABLE", Path("/proc/none"))
    monkeypatch.setattr(descriptors, "count_open", counted)
    monkeypatch.setattr(admission_module, "_PERIOD", 0.0)
    return threads


async def test_many_descriptors_are_counted_in_a_thread_alone(
    listings: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = Admission()
    room = admission.recount()
    monkeypatch.setattr(admission_module, "_MANY", 0)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            assert admission.recount() == room
            assert admission.descriptors_free() <= room
        assert listings == [threading.main_thread()]
        nursery.start_soon(admission.count_aside)
        await until(lambda: len(listings) > 3)
        nursery.cancel_scope.cancel()
    assert threading.main_thread() not in listings[1:]
    assert abs(admission.recount() - room) < 10  # trio's thread and its wake-up


async def test_few_descriptors_are_counted_at_each_question(
    listings: list[threading.Thread],
) -> None:
    admission = Admission()
    admission.recount()
    admission.recount()
    assert listings == [threading.main_thread()] * 2
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.count_aside)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert len(listings) == 2


async def test_no_thread_leaves_the_last_count(
    listings: list[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = Admission()
    room = admission.recount()
    tried = trio.Event()

    async def fail(*_: object, **__: object) -> int:
        tried.set()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(admission_module, "_MANY", 0)
    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.count_aside)
        await tried.wait()
        assert admission.recount() == room
        nursery.cancel_scope.cancel()


async def test_a_kernel_that_tells_their_number_needs_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descriptors, "count_quickly", lambda: 7)
    await Admission().count_aside()
