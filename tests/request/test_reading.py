"""Requests read from sockets, within bounds of bytes and time."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import pytest
import trio
import trio.testing

from tests.request.reading import client_hello
from tests.sockets import PAIRS, Pair, unix_pair
from tests.waiting import PATIENCE
from vsockproxy.config.request import By, Request
from vsockproxy.request.reader import MOST, Asked, Reader
from vsockproxy.request.reading import Check, NoRequestError, read_request

FAMILIES = pytest.mark.parametrize(
    "family",
    ["tcp", "unix", pytest.param("vsock", marks=pytest.mark.vsock)],
)
REQUESTS: dict[By, bytes] = {
    "socks5": b"\5\1\0\5\1\0\3\7web.vmx\0\x50",
    "http-connect": b"CONNECT web.vmx:80 HTTP/1.1\r\nHost: web.vmx\r\n\r\n",
    "proxy": b"\5\1\0\5\1\0\3\7web.vmx\0\x50",
    "sni": client_hello("web.vmx"),
    "http-host": b"GET / HTTP/1.1\r\nHost: web.vmx:80\r\n\r\n",
    "mux": b"CONNECT web 80\n",
}


class Client:
    """A client, and the task that reads its request."""

    def __init__(self, near: socket.socket) -> None:
        self.sock = near
        self.ended = trio.Event()
        self.asked: Asked | None = None
        self.reader: Reader | None = None
        self.error: NoRequestError | None = None

    def send(self, data: bytes) -> None:
        self.sock.send(data)

    def received(self) -> bytes:
        try:
            return self.sock.recv(4096)
        except BlockingIOError:
            return b""

    async def done(self) -> Client:
        with trio.fail_after(PATIENCE):
            await self.ended.wait()
        return self

    async def run(self, far: socket.socket, by: By, timeout: float, check: Check | None) -> None:
        try:
            found = await read_request(far, by, timeout, check=check, guest=None)
            self.reader, self.asked = found
        except NoRequestError as error:
            self.error = error
        self.ended.set()


@asynccontextmanager
async def reading(
    by: By,
    *,
    make_pair: Callable[[], Pair] = unix_pair,
    timeout: float = inf,
    check: Check | None = None,
) -> AsyncIterator[Client]:
    near, far = make_pair()
    with near, far:
        client = Client(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run, far, by, timeout, check)
            yield client
            nursery.cancel_scope.cancel()


@FAMILIES
@pytest.mark.parametrize("by", REQUESTS)
async def test_a_request_is_read_from_a_socket_in_two_pieces(by: By, family: str) -> None:
    async with reading(by, make_pair=PAIRS[family]) as client:
        client.send(REQUESTS[by][:4])
        await trio.testing.wait_all_tasks_blocked()
        client.send(REQUESTS[by][4:])
        await client.done()
    assert client.asked is not None
    assert client.asked.request.name.startswith("web")


async def test_proxy_tells_http_from_socks_by_the_first_byte() -> None:
    for first in (b"C", b"CONNECT web:1"):
        async with reading("proxy") as client:
            client.send(first)
            await trio.testing.wait_all_tasks_blocked()
            client.send(b"CONNECT web:1 HTTP/1.1\r\nHost: x\r\n\r\n"[len(first) :])
            assert (await client.done()).asked == Asked(Request("web", 1), b"")


async def test_the_method_of_socks_is_sent_before_the_request_comes() -> None:
    async with reading("socks5") as client:
        client.send(b"\5\1\0")
        await trio.testing.wait_all_tasks_blocked()
        assert client.received() == b"\5\0"
        client.send(REQUESTS["socks5"][3:] + b"more")
        assert (await client.done()).asked == Asked(Request("web.vmx", 80), b"more")


async def test_bytes_beyond_the_bound_stay_in_the_socket() -> None:
    async with reading("mux") as client:
        client.send(b"CONNECT web 80\n" + bytes(2 * MOST))
        await client.done()
        assert client.asked is not None
        assert len(client.asked.replay) == MOST - len(b"CONNECT web 80\n")


async def test_a_byte_a_second_is_too_slow(autojump_clock: trio.testing.MockClock) -> None:
    async with reading("http-host", timeout=5) as client:
        for byte in b"GET / ":
            client.send(bytes([byte]))
            await trio.sleep(1)
        await client.done()
    assert client.error is not None
    assert client.error.reason == "timeout"


@pytest.mark.parametrize("by", ["http-host", "http-connect"])
async def test_a_head_that_is_too_long_is_malformed_and_answered(by: By) -> None:
    async with reading(by) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * (MOST + 1))
        await client.done()
    assert client.error is not None
    assert client.error.reason == "malformed"
    assert client.error.reply.startswith(b"HTTP/1.1 431 ")


async def test_a_hello_that_never_ends_is_malformed() -> None:
    async with reading("sni") as client:
        client.send(b"\x16\x03\x01\x40\x00\x01\x01\x00\x00\x03\x03" + bytes(MOST))
        await client.done()
    assert client.error is not None
    assert client.error.reason == "malformed"


@pytest.mark.parametrize(("sent", "reason"), [(b"", "left"), (b"CONN", "malformed")])
async def test_a_client_that_ends_too_early_has_left_or_is_malformed(
    sent: bytes, reason: str
) -> None:
    async with reading("mux") as client:
        client.send(sent)
        client.sock.shutdown(socket.SHUT_WR)
        await client.done()
    assert client.error is not None
    assert client.error.reason == reason


async def test_wrong_credentials_are_answered_and_right_ones_read_on() -> None:
    asked: list[tuple[str, str]] = []

    def accepts(user: str) -> Check:
        async def check(asking: str, password: str) -> bool:
            asked.append((asking, password))
            return asking == user

        return check

    message = b"\5\1\2\1\5alice\6secret" + REQUESTS["socks5"][3:]
    async with reading("socks5", check=accepts("alice")) as client:
        client.send(message)
        assert (await client.done()).asked == Asked(Request("web.vmx", 80, "alice"), b"")
        assert client.received() == b"\5\2\1\0"
    async with reading("socks5", check=accepts("bob")) as client:
        client.send(message)
        await client.done()
        assert client.error is not None
        assert (client.error.reason, client.error.reply) == ("unauthenticated", b"\5\2\1\1")
    assert asked == [("alice", "secret")] * 2


async def test_missing_credentials_of_http_are_answered_407() -> None:
    async def check(user: str, password: str) -> bool:
        return (user, password) != ("", "")

    async with reading("http-connect", check=check) as client:
        client.send(REQUESTS["http-connect"])
        await client.done()
    assert client.error is not None
    assert client.error.reply.startswith(b"HTTP/1.1 407 ")
