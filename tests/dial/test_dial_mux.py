"""Dialling through a VMM's vsock socket: the handshake over real bytes, and its failures."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fake_services import (
    HOST_PORT,
    answers,
    answers_nothing,
    echo,
    full_unix_listener,
    hold,
    mux_server,
    says,
    unix_listener,
)
from tests.sockets import read_to_end, stream
from vsockproxy.address.endpoint import (
    MuxEndpoint,
)
from vsockproxy.dial.dial import dial
from vsockproxy.errors import DialError

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

TIMEOUT = 20.0
SHORT = 0.05


async def fails(path: Path, port: int, timeout: float = TIMEOUT) -> DialError:
    """Return the error of a dial that must fail."""
    with pytest.raises(DialError) as caught:
        await dial(MuxEndpoint(str(path), port), timeout)
    return caught.value


async def test_a_guests_port_is_reached_through_the_handshake(tmp_path: Path) -> None:
    numbers: list[int] = []
    async with mux_server(tmp_path / "v", {80: echo}) as server:
        endpoint = MuxEndpoint(str(server.path), 80)
        async with stream(await dial(endpoint, TIMEOUT, assigned=numbers.append)) as guest:
            await guest.send_all(b"hello")
            await guest.send_eof()
            assert await read_to_end(guest) == b"hello"
    assert numbers == [HOST_PORT]
    assert server.requests == [b"CONNECT 80\n"]  # one write, and nothing after it


@pytest.mark.parametrize(
    "pieces",
    [
        (b"OK 1073741824\nSSH-2.0-x\n",),
        (b"OK 1", b"0737", b"41824\nSSH-2.0", b"-x\n"),
        tuple(bytes([byte]) for byte in b"OK 5001\nSSH-2.0-x\n"),
    ],
)
async def test_no_byte_beyond_the_replys_newline_is_read(
    tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    async with (
        mux_server(tmp_path / "v", {22: says(b"")}, answers(*pieces)) as server,
        stream(await dial(MuxEndpoint(str(server.path), 22), TIMEOUT)) as guest,
    ):
        assert await read_to_end(guest) == b"SSH-2.0-x\n"


async def test_a_close_before_ok_is_refused_with_the_port(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {}) as server:
        error = await fails(server.path, 23)
    assert error.reason == "refused"
    assert "nothing listens on the guest's port 23" in str(error)


@pytest.mark.parametrize("reads", [0, 1])
async def test_a_reset_before_ok_is_refused_too(tmp_path: Path, reads: int) -> None:
    """A Unix socket that is closed with unread bytes resets its peer."""
    with unix_listener(tmp_path / "v") as server:

        async def accept_and_drop() -> None:
            await trio.lowlevel.wait_readable(server)
            client, _ = server.accept()
            await trio.lowlevel.wait_readable(client)
            client.recv(reads)
            client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_and_drop)
            error = await fails(tmp_path / "v", 80)
    assert (error.reason, error.errno) == ("refused", errno.ECONNRESET)
    assert "guest's port 80" in str(error)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n", b"OK\n", b"x" * 5000, b"NO 1\n", b"OK 12"]
)
async def test_an_answer_other_than_ok_is_quoted_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.chdir(tmp_path)  # the bound must not depend on how long this path is
    async with mux_server(Path("v"), {80: says(b"")}, answers(answer)) as server:
        error = await fails(server.path, 80)
    assert error.reason == "protocol"
    assert repr(answer[:32]) in str(error)
    assert len(str(error)) < 175


async def test_a_guest_that_does_not_answer_times_out(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: hold}, answers_nothing) as server:
        error = await fails(server.path, 80, SHORT)
    assert (error.reason, error.errno) == ("no_answer", errno.ETIMEDOUT)
    assert "booting" in str(error)


async def test_handshake_timeout_ends_a_dial_before_connect_timeout(tmp_path: Path) -> None:
    """Without it, a guest that is not up would hold its client for connect_timeout."""
    async with mux_server(tmp_path / "v", {80: hold}, answers_nothing) as server:
        with trio.fail_after(TIMEOUT / 2), pytest.raises(DialError) as caught:
            await dial(MuxEndpoint(str(server.path), 80), TIMEOUT, handshake_timeout=SHORT)
    assert caught.value.reason == "no_answer"


async def test_handshake_timeout_does_not_extend_connect_timeout(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: hold}, answers_nothing) as server:
        with trio.fail_after(TIMEOUT / 2), pytest.raises(DialError) as caught:
            await dial(MuxEndpoint(str(server.path), 80), SHORT, handshake_timeout=TIMEOUT)
    assert caught.value.reason == "no_answer"


async def test_without_handshake_the_stream_begins_after_the_request(tmp_path: Path) -> None:
    """The guest's first bytes are the client's, even those of a line that looks like OK."""
    async with mux_server(tmp_path / "v", {80: says(b"OK 1\nhello")}, answers()) as server:
        endpoint = MuxEndpoint(str(server.path), 80, "none")
        async with stream(await dial(endpoint, TIMEOUT)) as guest:
            assert await read_to_end(guest) == b"OK 1\nhello"
    assert server.requests == [b"CONNECT 80\n"]


async def test_half_an_answer_times_out_like_none(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: hold}, answers(b"OK 10")) as server:
        assert (await fails(server.path, 80, SHORT)).reason == "no_answer"


async def test_a_full_vmm_is_busy(tmp_path: Path) -> None:
    with full_unix_listener(tmp_path / "v"):
        assert (await fails(tmp_path / "v", 80, SHORT)).reason == "busy"
