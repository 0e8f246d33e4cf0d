"""Dials that are given up before the VMM's answer: their sockets stay open until it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.dial.fake_vmm import AnswersLate
from tests.dial.selecting import PLAIN, WAIT, guest_at, state_of
from tests.fake_services import echo, mux_server, unix_listener
from tests.listen.running_route import serving
from tests.sockets import ends_by_reset, open_descriptors
from tests.waiting import until
from vsockproxy.address.endpoint import MuxEndpoint
from vsockproxy.dial import unanswered
from vsockproxy.dial.dial import dial
from vsockproxy.dial.unanswered import UNANSWERED
from vsockproxy.errors import DialError

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

SHORT = 0.05


async def given_up(path: Path) -> None:
    """Dial a VMM that does not answer in time."""
    with pytest.raises(DialError) as caught:
        await dial(MuxEndpoint(str(path), 80), SHORT)
    assert caught.value.reason == "no_answer"


async def cancelled(path: Path) -> None:
    """Cancel the dial of a VMM while it waits for the answer."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, MuxEndpoint(str(path), 80), 20.0)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught


async def until_none_is_kept() -> None:
    await until(lambda: not len(UNANSWERED.get()))


@pytest.mark.parametrize("give_up", [given_up, cancelled])
async def test_a_late_ok_is_received_by_an_open_socket_which_is_then_closed(
    tmp_path: Path, give_up: object
) -> None:
    assert callable(give_up)
    late = AnswersLate()
    before = open_descriptors()
    async with mux_server(tmp_path / "v", {80: echo}, late):
        await give_up(tmp_path / "v")
        await trio.testing.wait_all_tasks_blocked()
        assert (late.asked, len(UNANSWERED.get())) == (1, 1)
        late.answer.set()
        await until(lambda: late.received)
        await until_none_is_kept()
    assert late.received == [True]
    assert open_descriptors() == before


async def test_the_socket_of_a_given_up_dial_is_closed_when_the_vmm_closes(
    tmp_path: Path,
) -> None:
    before = open_descriptors()
    with unix_listener(tmp_path / "v"):
        await cancelled(tmp_path / "v")
        assert len(UNANSWERED.get()) == 1
    await until_none_is_kept()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "pieces", [(b"OK 1", b"23\n"), (b"x" * 100,), (b"HTTP/1.1 400\n",), (b"OK 1\nbanner",)]
)
async def test_any_late_answer_closes_the_socket_of_a_given_up_dial(
    tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    with unix_listener(tmp_path / "v") as server:
        await given_up(tmp_path / "v")
        vmm, _ = server.accept()
        with vmm:
            for piece in pieces:
                assert len(UNANSWERED.get()) == 1
                vmm.send(piece)
                await trio.testing.wait_all_tasks_blocked(0.01)
            await until_none_is_kept()


async def test_a_dial_given_up_within_an_answer_is_kept_until_its_rest(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "v") as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(given_up, tmp_path / "v")
            await trio.lowlevel.wait_readable(server)
            vmm, _ = server.accept()
            vmm.send(b"OK 1")
        with vmm:
            assert len(UNANSWERED.get()) == 1
            vmm.send(b"23\n")
            await until_none_is_kept()


async def test_beyond_the_bound_the_oldest_socket_of_a_given_up_dial_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unanswered, "_MOST", 2)
    with unix_listener(tmp_path / "v") as server, ExitStack() as vmms:
        accepted = []
        for _ in range(4):
            await cancelled(tmp_path / "v")
            accepted.append(vmms.enter_context(server.accept()[0]))
        await trio.testing.wait_all_tasks_blocked()
        assert len(UNANSWERED.get()) == 2
        for vmm in accepted:
            vmm.setblocking(False)
            assert vmm.recv(100) == b"CONNECT 80\n"
        assert [vmm.recv(1) for vmm in accepted[:2]] == [b"", b""]
        for vmm in accepted[2:]:
            with pytest.raises(BlockingIOError):
                vmm.recv(1)
    await until_none_is_kept()


async def test_the_socket_of_a_given_up_dial_is_closed_after_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unanswered, "_LONGEST", SHORT)
    with unix_listener(tmp_path / "v") as server:
        await cancelled(tmp_path / "v")
        await until_none_is_kept()
        vmm, _ = server.accept()
        with vmm:
            assert (vmm.recv(100), vmm.recv(100)) == (b"CONNECT 80\n", b"")


async def test_a_late_ok_for_a_killed_client_is_received(tmp_path: Path) -> None:
    late = AnswersLate()
    guest = guest_at(tmp_path)
    async with (
        mux_server(Path(guest.path), {80: echo}, late),
        serving(PLAIN, dial_to=guest) as route,
        route.connect() as client,
    ):
        await until(lambda: late.asked)
        [connection] = route.stats.live
        connection.end("killed")
        assert await ends_by_reset(client)
        late.answer.set()
        await until(lambda: late.received)
    assert late.received == [True]


async def test_late_oks_for_held_clients_dials_are_received(tmp_path: Path) -> None:
    late = AnswersLate()
    guest = guest_at(tmp_path)
    async with (
        mux_server(Path(guest.path), {80: echo}, late),
        serving(replace(WAIT, handshake_timeout=SHORT), dial_to=guest) as route,
    ):
        async with route.connect():
            await until(lambda: late.asked >= 3)
            assert state_of(route) == "down"
        await until(lambda: not route.stats.held)
        late.answer.set()
        await until(lambda: len(late.received) == late.asked)
    assert all(late.received)


def test_kept_sockets_are_closed_when_the_run_ends(tmp_path: Path) -> None:
    """The fixture asserts it."""
    with unix_listener(tmp_path / "v"):
        trio.run(cancelled, tmp_path / "v")
