"""Routes to a guest behind a VMM's socket, with the quirks of VMMs."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.dial.fake_vmm import Vmm, never_answers
from tests.fake_services import Service, echo
from tests.listen.running_route import Served, serving
from tests.sockets import ends_by_reset, no_descriptor_left_over, read_to_end
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import MuxEndpoint
from vsockproxy.config.settings import Policy, PumpChoice
from vsockproxy.dial import unanswered
from vsockproxy.dial.dial import dial
from vsockproxy.errors import DialError

PORT = 80
CAPACITY = 1023  # Firecracker's and Cloud Hypervisor's


async def question_and_answer(stream: trio.SocketStream) -> None:
    """Answer a line without waiting for a FIN, and close."""
    question = b""
    while not question.endswith(b"\n"):
        question += await stream.receive_some()
    await trio.testing.wait_all_tasks_blocked(0.01)
    await stream.send_all(b"answer to " + question)


@asynccontextmanager
async def behind(
    folder: Path,
    services: Mapping[int, Service],
    policy: Policy = Policy(),  # noqa: B008 - it is frozen
    **quirks: object,
) -> AsyncIterator[tuple[Vmm, Served]]:
    """Run a VMM, and a route to its guest's port 80."""
    vmm = Vmm(folder / "v.sock", services, **quirks)  # type: ignore[arg-type] # by name
    async with (
        vmm.running(),
        serving(policy, dial_to=MuxEndpoint(str(vmm.path), PORT)) as route,
    ):
        yield vmm, route


async def test_bytes_of_a_client_are_sent_after_the_ok(tmp_path: Path) -> None:
    """A VMM drops a request in two pieces, or loses the bytes after it."""
    async with behind(tmp_path, {PORT: question_and_answer}) as (vmm, route):
        assert await route.exchange(b"hello\n") == b"answer to hello\n"
    assert vmm.requests == [b"CONNECT 80\n"]


async def test_a_proxy_header_is_sent_after_the_ok(tmp_path: Path) -> None:
    policy = Policy(send_proxy="v1", half_close="forward")
    async with behind(tmp_path, {PORT: echo}, policy) as (vmm, route):
        answer = await route.exchange(b"hello")
    assert answer.startswith(b"PROXY TCP4 127.0.0.1 ")
    assert answer.endswith(b"\r\nhello")
    assert vmm.requests == [b"CONNECT 80\n"]


@pytest.mark.parametrize("choice", ["auto", "portable"])
async def test_half_close_hold_keeps_the_answer_of_a_vmm_that_closes_both_halves(
    tmp_path: Path, choice: PumpChoice
) -> None:
    vmm = Vmm(tmp_path / "v", {PORT: question_and_answer}, collapses=True)
    target = MuxEndpoint(str(vmm.path), PORT)
    async with vmm.running(), serving(Policy(), dial_to=target, choice=choice) as route:
        assert await route.exchange(b"question\n") == b"answer to question\n"
        route.reconfigure(Policy(half_close="forward"))  # the remedy
        assert await route.exchange(b"question\n") == b""


async def test_half_close_forward_sends_the_fin_to_the_guest(tmp_path: Path) -> None:
    """A service that answers only what has ended needs the FIN: Cloud Hypervisor of 2026-06."""

    async def count(stream: trio.SocketStream) -> None:
        await stream.send_all(b"%d" % len(await read_to_end(stream)))

    async with behind(tmp_path, {PORT: count}, Policy(half_close="forward")) as (_, route):
        assert await route.exchange(b"question\n") == b"9"


async def test_a_vmm_that_closes_before_ok_resets_the_client(tmp_path: Path) -> None:
    async with behind(tmp_path, {}) as (_, route):
        assert await ends_by_reset(route.connect())
        await route.closed("dial_refused")
    [line] = route.events("dial_failed")
    assert "nothing listens on the guest's port 80" in str(line["error"])


async def test_a_guest_without_its_driver_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unanswered, "_LONGEST", 0.05)
    policy = Policy(connect_timeout=PATIENCE * 10, handshake_timeout=0.05)
    async with behind(tmp_path, {PORT: echo}, policy, answer=never_answers) as (vmm, route):
        with trio.fail_after(PATIENCE):
            assert await ends_by_reset(route.connect())
        await route.closed("dial_no_answer")
        await until(lambda: not vmm.live)  # nothing of it stays at the VMM for longer
    assert route.stats.dial_failures["no_answer"] == 1


async def test_a_full_vmm_is_a_refusal(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path / "v", {PORT: echo}, most=CAPACITY)
    endpoint = MuxEndpoint(str(vmm.path), PORT)
    with no_descriptor_left_over():
        async with vmm.running():
            with ExitStack() as connections:
                for _ in range(CAPACITY):
                    connections.enter_context(await dial(endpoint, PATIENCE))
                with pytest.raises(DialError, match="1023") as caught:
                    await dial(endpoint, PATIENCE)
                assert caught.value.reason == "refused"
            await until(lambda: not vmm.live)
            (await dial(endpoint, PATIENCE)).close()


async def test_a_vmm_restart_ends_connections_and_the_next_client_is_served(tmp_path: Path) -> None:
    """A snapshot's restore looks the same: connections close, the path goes and returns."""
    vmm = Vmm(tmp_path / "v", {PORT: echo})
    async with serving(Policy(), dial_to=MuxEndpoint(str(vmm.path), PORT)) as route:
        async with AsyncExitStack() as clients:
            async with vmm.running():
                lives = [await clients.enter_async_context(await route.live()) for _ in range(5)]
            for client in lives:
                assert await read_to_end(client) == b""
        assert not vmm.path.exists()
        assert await ends_by_reset(route.connect())
        await route.closed("dial_not_found")
        async with vmm.running():
            await (await route.live()).aclose()


async def test_the_socket_file_of_a_crashed_vmm_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "v"))
    async with serving(Policy(), dial_to=MuxEndpoint(str(tmp_path / "v"), PORT)) as route:
        assert await ends_by_reset(route.connect())
        await route.closed("dial_refused")
    [line] = route.events("dial_failed")
    assert "the VMM has ended and left the file" in str(line["error"])
