"""How sockets are closed: a truncated stream never looks whole, and a whole one arrives whole."""

from __future__ import annotations

import itertools
import random
import socket
from typing import get_args

import pytest
import trio

from tests.pump.relayed import (
    Families,
    Relayed,
    every_transport,
    fill,
    relayed,
    take_socket,
)
from tests.sockets import (
    ends_by_reset,
    queued_bytes,
    read_to_end,
    read_to_reset,
    reset,
    unread_bytes,
)
from tests.waiting import PATIENCE, until
from vsockproxy.pump.closing import Closing, _drop_input, closing_of
from vsockproxy.pump.transfer import Bounds, EndReason, Pump

ANSWER = random.Random(11).randbytes(20_000)
TCP: Families = ("tcp", "tcp")
AGAIN = 20  # a race is lost by some of them


def test_a_peer_that_sends_on_for_ever_does_not_hold_the_event_loop() -> None:
    class Endless(socket.socket):
        """A fake whose peer is always faster."""

        reads = 0

        def recv(self, size: int, _: int = 0) -> bytes:
            self.reads += 1
            assert self.reads < 1000
            return bytes(size)

    with Endless() as sock:
        assert not _drop_input(sock)


# ---- the rule ----


@pytest.mark.native
def test_the_rule_in_c_is_the_rule_in_python() -> None:
    from vsockproxy.pump._native._pump import lib  # noqa: PLC0415 - where it is compiled
    from vsockproxy.pump.native_relay import REASONS  # noqa: PLC0415

    names: dict[int, Closing] = {
        lib.VSP_CLOSE: "close",
        lib.VSP_LINGER: "linger",
        lib.VSP_RESET: "reset",
        lib.VSP_DELIVER: "deliver",
    }
    seen = set()
    for number, reason in REASONS.items():
        for client, whole, ended, tcp in itertools.product((False, True), repeat=4):
            native = names[lib.vsp_close_of(number, client, whole, ended, tcp)]
            seen.add(native)
            assert native == closing_of(reason, client=client, whole=whole, ended=ended, tcp=tcp)
    assert seen == set(get_args(Closing))


def test_tcp_that_received_a_truncated_direction_is_reset_whatever_the_reason() -> None:
    for reason in get_args(EndReason):
        for client, ended in itertools.product((False, True), repeat=2):
            how = closing_of(reason, client=client, whole=False, ended=ended, tcp=True)
            assert how in ("reset", "deliver")


# ---- a FIN, and a reset right behind it ----


async def test_an_answer_is_whole_when_the_target_half_closes_and_resets_over_unread_input(
    pump: Pump,
) -> None:
    for _ in range(AGAIN):
        async with relayed(pump, TCP) as run:
            await run.client.send_all(b"a body that the service does not read")
            await run.target.send_all(ANSWER)
            await run.target.send_eof()
            await run.bytes_upstream()
            await run.target.aclose()
            assert await read_to_end(run.client) == ANSWER


@pytest.mark.parametrize("seen", ["in one wake", "in two"])
async def test_an_upload_is_whole_when_the_client_half_closes_and_resets(
    pump: Pump, seen: str
) -> None:
    for _ in range(AGAIN):
        run = Relayed(pump, TCP, Bounds())
        async with trio.open_nursery() as nursery:
            if seen == "in two":
                nursery.start_soon(run.run)
            await run.client.send_all(ANSWER)
            await run.client.send_eof()
            await delivered(run.client.socket)
            reset(take_socket(run.client))
            if seen == "in one wake":
                nursery.start_soon(run.run)
            assert await read_to_end(run.target) == ANSWER
            await run.target.aclose()


async def test_an_upload_to_a_target_that_reads_late_is_whole_when_the_client_resets_after_its_fin(
    pump: Pump,
) -> None:
    async with relayed(pump, TCP) as run:
        sent = await fill(run.client)
        await run.client.send_eof()
        received = bytearray()
        while queued_bytes(run.client.socket):  # until the pump's socket has the rest and the FIN
            received += await run.target.receive_some()
        reset(take_socket(run.client))
        received += await read_to_end(run.target)
        assert len(received) == sent


async def delivered(sock: trio.socket.SocketType) -> None:
    """Wait until the other side's kernel has every byte, and the FIN."""
    await until(lambda: not queued_bytes(sock))


# ---- the target resets with its answer under way ----


async def test_what_the_target_sent_before_its_reset_reaches_a_slow_client_and_then_the_reset(
    pump: Pump,
) -> None:
    async with relayed(pump, TCP) as run:
        sent = await fill(run.target)
        received = bytearray()
        while queued_bytes(run.target.socket):
            received += await run.client.receive_some()
        reset(take_socket(run.target))
        with trio.fail_after(PATIENCE):
            while run.meter.running is not None and not run.meter.running.downstream_done():
                if unread_bytes(run.client.socket):  # a byte of them may keep the window shut
                    received += await run.client.receive_some()
                await trio.lowlevel.checkpoint()
        received += await read_to_reset(run.client)
        assert len(received) == sent
        assert await run.reason() == "target_reset"


# ---- a bound or an operator, with bytes under way ----


@pytest.mark.parametrize("stalled", ["client", "target"])
@pytest.mark.parametrize("bound", ["idle_timeout", "half_close_timeout", "max_lifetime"])
async def test_a_bound_with_undelivered_bytes_resets_their_receiver(
    pump: Pump, bound: str, stalled: str
) -> None:
    bounds = Bounds(**{bound: 0.2}, linger_timeout=0.05)  # type: ignore[arg-type] # see bounds
    async with relayed(pump, TCP, bounds) as run:
        late, sender = getattr(run, stalled), getattr(run, other(stalled))
        await fill(sender)
        if bound == "half_close_timeout":
            await late.send_eof()
        assert await run.reason() == bound
        assert await ends_by_reset(late)


def other(side: str) -> str:
    return {"client": "target", "target": "client"}[side]


async def test_ending_an_upload_on_request_resets_the_target(pump: Pump) -> None:
    async with relayed(pump, TCP) as run:
        await run.client.send_all(b"half of the up")
        assert await run.target.receive_some() == b"half of the up"
        assert run.meter.running is not None
        run.meter.running.stop()
        assert await run.reason() == "killed"
        assert await ends_by_reset(run.target)
        assert await ends_by_reset(run.client)


@every_transport
async def test_a_second_request_to_end_does_not_wait_for_a_client_that_takes_nothing(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, Bounds(linger_timeout=1000)) as run:
        await fill(run.target)
        await run.target.send_eof()
        assert run.meter.running is not None
        run.meter.running.stop()
        run.meter.running.stop()
        with trio.fail_after(5):
            assert await run.reason() == "killed"


async def test_a_client_that_has_its_whole_answer_gets_it_to_the_last_byte_when_it_reads_late(
    pump: Pump,
) -> None:
    async with relayed(pump, TCP, Bounds(idle_timeout=0.1, linger_timeout=1000)) as run:
        await run.target.send_all(ANSWER)
        await run.target.send_eof()
        await run.client.send_all(b"more that the service does not want")
        assert await run.reason() == "idle_timeout"
        assert await read_to_end(run.client) == ANSWER
