"""The limit of file descriptors: clients queued before the table is full, and its count."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.listen.running_route import serving
from tests.waiting import PATIENCE
from vsockproxy.admit import descriptors
from vsockproxy.admit import gate as gate_module
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.settings import Policy


@contextmanager
def at_most(connections: int) -> Iterator[None]:
    """Lower the limit of descriptors to room for a number of connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = descriptors.count_open() + 2 * connections
    largest = next(n for n in range(wanted, 4096) if n - descriptors.reserve(n) == wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (largest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_clients_are_queued_before_the_descriptor_table_is_full() -> None:
    """Clients and target are in this process too: a connection has four descriptors."""
    admission = Admission()
    async with serving(Policy(), admission=admission) as route:
        with at_most(30):
            assert admission.descriptors_free() >= 60
            async with AsyncExitStack() as clients:
                with trio.fail_after(PATIENCE):
                    while not route.stats.accept_pauses["descriptors"]:
                        before = route.stats.connections
                        await clients.enter_async_context(route.connect())
                        while (
                            route.stats.connections == before
                            and not route.stats.accept_pauses["descriptors"]
                        ):
                            await trio.lowlevel.checkpoint()
                        admission.recount()  # the test itself has opened some
                assert 1 <= admission.live < 30
                assert not admission.is_open
                assert route.stats.accept_errors == 0
                assert route.stats.dial_failures == {}
                os.close(os.dup(0))  # the reserve is there
            with trio.fail_after(PATIENCE):
                while admission.live or not admission.is_open:
                    await trio.lowlevel.checkpoint()
                    admission.recount()
            assert await route.exchange(b"again") == b"again"


async def test_descriptors_freed_elsewhere_admit_queued_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_module, "_PAUSE", 0.05)
    admission = Admission()
    async with serving(Policy(), admission=admission) as route:
        with ExitStack() as files, at_most(4):
            with suppress(OSError):
                while admission.descriptors_free():
                    os_file = os.dup(0)
                    files.callback(os.close, os_file)
            client = route.connect()
            await client.send_all(b"x")
            await route.queues("descriptors")
            files.close()
            with trio.fail_after(PATIENCE):
                assert await client.receive_some() == b"x"
            await client.aclose()


def test_raise_limit_raises_the_soft_limit_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        before, after = descriptors.raise_limit()
        assert (before, after) == (min(soft, 256), hard)
        assert descriptors.limit() == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_open_descriptors_are_counted() -> None:
    before = descriptors.count_open()
    with socket.socket(), socket.socket():
        assert descriptors.count_open() == before + 2


def test_descriptors_are_counted_without_the_kernels_short_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = descriptors.count_open()
    monkeypatch.setattr(descriptors, "_TABLE", Path("/proc/none"))
    assert descriptors.count_open() == before


def test_a_short_peak_of_descriptors_does_not_close_the_gate_for_long() -> None:
    admission = Admission()
    admission.live = 1  # a connection that stays open
    room = admission.recount()
    with ExitStack() as spike:
        for _ in range(100):
            spike.enter_context(socket.socket())
        assert admission.recount() <= room - 100
    admission.recount()
    assert admission.recount() == room
