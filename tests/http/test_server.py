"""Tests of accepting: floods, failures of accept(2), and the end."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

import pytest
import structlog
import trio
import trio.testing

from tests.http.serving import GET, HOST, answer_to, server, serving
from tests.rounds import in_one_of_three, short_rounds
from tests.sockets import connected, read_to_end
from vsockproxy.http.loop_share import every
from vsockproxy.http.message import Request, Response, text
from vsockproxy.http.router import Route
from vsockproxy.http.server import MAX_CLIENTS

FLOODS = {
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 50_000,
    "chunks": b"POST / HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"1\r\na\r\n" * 50_000,
    "headers": b"GET / HTTP/1.1\r\n" + HOST + b"a:b\r\n" * 1600,
    "requests": GET * 5000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
@in_one_of_three
async def test_a_flood_leaves_every_round_of_the_loop_short(
    tcp: socket.socket, flood: bytes
) -> None:
    address = tcp.getsockname()

    def send_floods() -> None:
        for _ in range(3):
            clients = [socket.create_connection(address) for _ in range(MAX_CLIENTS - 2)]
            for client in clients:
                client.setblocking(False)
                with suppress(OSError):
                    client.send(flood)
            for client in clients:
                client.close()

    async with serving(tcp, server()):
        await answer_to(tcp, GET)  # what is made once, is made
        with short_rounds():
            await trio.to_thread.run_sync(send_floods)
            assert (await answer_to(tcp, GET)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_one_client_more_than_the_limit_closes_the_oldest(tcp: socket.socket) -> None:
    async with serving(tcp, server(max_clients=2)):
        clients = []
        for _ in range(3):
            clients.append(await connected(tcp))
            await trio.testing.wait_all_tasks_blocked()
        assert await clients[0].receive_some() == b""
        await clients[1].send_all(GET)
        assert (await read_to_end(clients[1])).startswith(b"HTTP/1.1 200")
        for client in clients:
            await client.aclose()


class FailingListener(socket.socket):
    """A listening socket that fails to accept at first: a fake of a full descriptor table."""

    failures = 2

    def accept(self) -> tuple[socket.socket, object]:
        """Raise EMFILE twice, then accept."""
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_a_server_that_cannot_accept_logs_it_and_serves_once_it_can() -> None:
    with (
        FailingListener() as sock,
        structlog.testing.capture_logs() as logs,
    ):
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        async with serving(sock, server()):
            answer = await answer_to(sock, GET)
    assert answer.startswith(b"HTTP/1.1 200")
    assert [(entry["event"], entry["server"], entry["reason"]) for entry in logs] == [
        ("http_server_failed", "test", "EMFILE")
    ]


async def test_a_client_in_another_nursery_gets_its_answer_after_the_end_of_accepting(
    tcp: socket.socket,
) -> None:
    asked, may_answer = trio.Event(), trio.Event()

    async def wait(_request: Request) -> Response:
        asked.set()
        await may_answer.wait()
        return text("late")

    http = server([Route("/", wait)])
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as accepting:
            await accepting.start(http.serve, [tcp], clients)
            client = await connected(tcp)
            await client.send_all(GET)
            await asked.wait()
            accepting.cancel_scope.cancel()
        async with trio.open_nursery() as finishing:
            finishing.start_soon(http.finish)
            await trio.testing.wait_all_tasks_blocked()
            assert finishing.child_tasks
            may_answer.set()
        assert (await read_to_end(client)).endswith(b"late")
        await client.aclose()


@in_one_of_three
async def test_work_in_turns_is_complete_and_leaves_rounds_short() -> None:
    with short_rounds():
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(every, (sum(range(1000)) for _ in range(2000)))
            assert await every(iter(range(100_000))) == list(range(100_000))
