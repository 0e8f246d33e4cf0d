"""A client's FIN towards a VMM that takes a half-close for a close: held while anything moves.

Each case has a service that answers at once, after half the hold, or not before the FIN has
come, which is after the hold at the earliest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.pump.relayed import Families, Relayed, relayed, take_socket
from tests.sockets import read_to_end, transports
from tests.waiting import until
from vsockproxy.pump.transfer import Bounds, Pump

HOLD = 0.6
HELD = Bounds(half_close_hold=HOLD, linger_timeout=0.05)
FOR_EVER = Bounds(half_close_hold=1000)
ANSWER = bytes(range(256)) * 40_000  # 10 MB

to_vmm = pytest.mark.parametrize("families", [("tcp", "unix"), ("unix", "unix")], ids="-".join)
before_the_hold = pytest.mark.parametrize("delay", [0, HOLD / 2], ids=["at once", "half the hold"])


class FakeVmm:
    """Not a VMM: a target that closes both ways when a FIN comes, and drops what it had to send."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.received = bytearray()
        self.fin = trio.Event()

    async def run(self) -> None:
        """Receive until the FIN, then close."""
        try:
            async for data in self._stream:
                self.received += data
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return  # `finish`, or the pump has closed
        self.fin.set()
        await self._stream.aclose()

    async def answer(self, data: bytes) -> None:
        """Send as the guest's service, unless the VMM has closed."""
        try:
            await self._stream.send_all(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            assert self.fin.is_set()

    async def finish(self) -> None:
        """Close as the guest's service does."""
        await self._stream.aclose()


@asynccontextmanager
async def through_a_vmm(
    pump: Pump, families: Families, bounds: Bounds = HELD
) -> AsyncIterator[tuple[Relayed, FakeVmm]]:
    async with relayed(pump, families, bounds) as run, trio.open_nursery() as nursery:
        vmm = FakeVmm(run.target)
        nursery.start_soon(vmm.run)
        yield run, vmm
        nursery.cancel_scope.cancel()


# ---- a request, the FIN at once, an answer and the service's end ----


@to_vmm
@before_the_hold
async def test_an_answer_that_begins_within_the_hold_is_whole_after_an_early_fin(
    pump: Pump, families: Families, delay: float
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm):
        await run.client.send_all(b"request")
        await run.client.send_eof()
        await trio.sleep(delay)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_and_finish, vmm)
            assert await read_to_end(run.client) == ANSWER
        assert not vmm.fin.is_set()
        assert await run.reason() == "finished"


async def answer_and_finish(vmm: FakeVmm) -> None:
    await vmm.answer(ANSWER)
    await vmm.finish()


# ---- a service that says nothing before the hold is over ----


@to_vmm
@pytest.mark.parametrize(
    ("request_", "answer"),
    [(b"request", ANSWER), (b"", b"SSH-2.0-guest\r\n"), (b"PING\r\n", b"+PONG\r\n")],
    ids=["answer", "banner", "keep-alive"],
)
async def test_what_a_service_sends_first_after_the_hold_is_lost_with_a_clean_end(
    pump: Pump, families: Families, request_: bytes, answer: bytes
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm):
        await run.client.send_all(request_)
        await run.client.send_eof()
        await vmm.fin.wait()
        await vmm.answer(answer)
        assert await read_to_end(run.client) == b""
        assert await run.reason() == "finished"


# ---- the FIN in the midst of the answer: `(echo request; sleep D) | nc -N` ----


@to_vmm
@before_the_hold
async def test_a_fin_after_the_answer_has_begun_truncates_nothing(
    pump: Pump, families: Families, delay: float
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm):
        await run.client.send_all(b"request")
        await until(lambda: vmm.received == b"request")
        await vmm.answer(ANSWER[:1000])
        received = bytearray(await run.client.receive_some())
        await run.client.send_eof()
        await trio.sleep(delay)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_and_finish, vmm)
            received += await read_to_end(run.client)
        assert received == ANSWER[:1000] + ANSWER
        assert await run.reason() == "finished"


@to_vmm
async def test_a_fin_is_held_while_the_client_does_not_take_its_answer(
    pump: Pump, families: Families
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm), trio.open_nursery() as nursery:
        await run.client.send_all(b"request")
        await run.client.send_eof()
        nursery.start_soon(answer_and_finish, vmm)
        with trio.move_on_after(2 * HOLD):
            await vmm.fin.wait()
        assert await read_to_end(run.client) == ANSWER
        assert not vmm.fin.is_set()


# ---- a service that speaks first, and a client without input ----


@to_vmm
@before_the_hold
async def test_the_banner_of_a_service_that_speaks_within_the_hold_reaches_a_client_without_input(
    pump: Pump, families: Families, delay: float
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm):
        await run.client.send_eof()
        await trio.sleep(delay)
        await vmm.answer(b"SSH-2.0-guest\r\n")
        assert await read_to_end(run.client) == b"SSH-2.0-guest\r\n"
        assert vmm.fin.is_set()


# ---- a service that keeps the connection open: redis, HTTP ----


@to_vmm
@before_the_hold
async def test_a_keep_alive_service_gets_the_fin_once_its_answer_was_followed_by_silence(
    pump: Pump, families: Families, delay: float
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm):
        await run.client.send_all(b"PING\r\n")
        await run.client.send_eof()
        await trio.sleep(delay)
        await vmm.answer(b"+PONG\r\n")
        assert await run.client.receive_some() == b"+PONG\r\n"
        assert not vmm.fin.is_set()
        assert await run.client.receive_some() == b""
        assert vmm.fin.is_set()
        assert await run.reason() == "finished"


# ---- a client that sends and closes: a health check ----


async def test_the_close_of_a_unix_client_ends_its_hold_at_once(pump: Pump) -> None:
    async with through_a_vmm(pump, ("unix", "unix"), FOR_EVER) as (run, vmm):
        await run.client.send_all(b"request")
        await run.client.aclose()
        await vmm.fin.wait()
        assert vmm.received == b"request"
        assert await run.reason() == "finished"


async def test_the_close_of_a_unix_client_that_had_half_closed_ends_its_hold_at_once(
    pump: Pump,
) -> None:
    async with through_a_vmm(pump, ("unix", "unix"), FOR_EVER) as (run, vmm):
        await run.client.send_all(b"request")
        await run.client.send_eof()
        await until(lambda: run.meter.running and run.meter.running.upstream_done())
        assert not vmm.fin.is_set()
        await run.client.aclose()
        await vmm.fin.wait()
        assert await run.reason() == "finished"


async def test_the_close_of_a_tcp_client_that_takes_no_answer_is_seen_by_its_reset(
    pump: Pump,
) -> None:
    async with through_a_vmm(pump, ("tcp", "unix"), FOR_EVER) as (run, vmm):
        await run.client.send_all(b"request")
        await run.client.aclose()
        await until(lambda: vmm.received == b"request")
        await vmm.answer(ANSWER)  # the client's kernel answers with an RST
        assert await run.reason() == "client_reset"


async def test_the_close_of_a_tcp_client_without_an_answer_is_passed_on_after_the_hold(
    pump: Pump,
) -> None:
    async with through_a_vmm(pump, ("tcp", "unix")) as (run, vmm):
        await run.client.send_all(b"request")
        await run.client.aclose()
        await vmm.fin.wait()
        assert await run.reason() == "finished"


# ---- a service that answers only at EOF, and an upload that wants no answer ----


@pytest.mark.parametrize("families", transports(clients=("tcp", "unix")))
async def test_a_service_that_answers_at_eof_behind_a_vmm_that_knows_half_closes_is_heard(
    pump: Pump, families: Families
) -> None:
    async with relayed(pump, families, HELD) as run:
        await run.client.send_all(b"tail: a, b")
        await run.client.send_eof()
        assert await read_to_end(run.target) == b"tail: a, b"
        await run.target.send_all(b"b")
        await run.target.aclose()
        assert await read_to_end(run.client) == b"b"


@to_vmm
async def test_an_upload_that_wants_no_answer_ends_after_the_hold(
    pump: Pump, families: Families
) -> None:
    async with through_a_vmm(pump, families) as (run, vmm):
        await run.client.send_all(ANSWER)
        await run.client.send_eof()
        assert await read_to_end(run.client) == b""
        assert vmm.received == ANSWER
        assert await run.reason() == "finished"


async def test_a_reset_behind_a_held_fin_ends_the_connection_at_once(pump: Pump) -> None:
    async with through_a_vmm(pump, ("tcp", "unix"), FOR_EVER) as (run, vmm):
        await run.client.send_all(b"request")
        await run.client.send_eof()
        await until(lambda: run.meter.running and run.meter.running.upstream_done())
        take_socket(run.client).close()
        await vmm.answer(b"answer")
        await vmm.fin.wait()
        assert vmm.received == b"request"
