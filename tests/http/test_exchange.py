"""Tests of one request and its response: methods, bodies, bounds and malformed requests."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator

import pytest
import structlog
import trio
import trio.testing

from tests.http.serving import GET, HOST, answer_to, hello, server, serving
from tests.sockets import connected, read_to_end
from vsockproxy.http.exchange import MAX_BODY, MAX_HEAD, REQUEST_TIMEOUT
from vsockproxy.http.message import Request, Response
from vsockproxy.http.router import Route

POST = b"POST / HTTP/1.1\r\n" + HOST


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_head_has_the_headers_of_get_and_no_body(tcp: socket.socket) -> None:
    async with serving(tcp, server()):
        got = await answer_to(tcp, GET)
        head = await answer_to(tcp, GET.replace(b"GET", b"HEAD"))
    assert body(got) == b"hello  {}"
    assert b"content-length: 9\r\n" in got
    assert body(head) == b""
    assert _headers(head) == _headers(got)


def _headers(answer: bytes) -> list[bytes]:
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return [line for line in lines if not line.startswith(b"date:")]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" * 1000, 505),
        (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"GET /?" + b"&".join([b"a=b"] * 1000) + b" HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://[x/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD + 8192), 431),
        (POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked, x\r\n\r\n", 501),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nx\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + b"\r\n", 404),
        (b"PUT / HTTP/1.1\r\n" + HOST + b"\r\n", 405),
    ],
)
async def test_a_request_that_cannot_be_served_is_answered_with_its_status(
    tcp: socket.socket, request_: bytes, expected: int
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(tcp, server()):
            answer = await answer_to(tcp, request_)
    assert status(answer) == expected
    assert b"connection: close\r\n" in answer
    assert logs == []


async def test_http_1_0_and_an_absolute_target_are_served(tcp: socket.socket) -> None:
    async with serving(tcp, server()):
        old = await answer_to(tcp, b"GET / HTTP/1.0\r\n\r\n")
        absolute = await answer_to(tcp, b"GET http://x/?a=1&a=2 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert status(old) == 200
    assert body(absolute) == b"hello  {'a': ['1', '2']}"


async def test_a_body_is_read_with_a_length_in_chunks_and_after_100_continue(
    tcp: socket.socket,
) -> None:
    async with serving(tcp, server()):
        whole = await answer_to(tcp, POST + b"Content-Length: 2\r\n\r\nab")
        chunked = await answer_to(
            tcp, POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
        )
        async with await connected(tcp) as client:
            await client.send_all(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
            proceed = await client.receive_some()
            await client.send_all(b"ab")
            continued = await read_to_end(client)
    assert body(whole) == body(chunked) == body(continued) == b"hello ab {}"
    assert proceed == b"HTTP/1.1 100 Continue\r\n\r\n"


async def test_a_body_that_grows_too_long_is_refused_and_the_answer_survives_its_rest(
    tcp: socket.socket,
) -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    async with serving(tcp, server()):
        answer = await answer_to(tcp, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 200)
    assert status(answer) == 413


async def test_an_incomplete_request_is_answered_with_408_after_the_time_for_one(
    tcp: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tcp, server()):
        before = trio.current_time()
        answer = await answer_to(tcp, GET[:-1])
    assert status(answer) == 408
    assert trio.current_time() - before >= REQUEST_TIMEOUT


async def test_a_client_that_closes_without_a_request_is_closed(tcp: socket.socket) -> None:
    async with serving(tcp, server()), await connected(tcp) as client:
        await client.send_eof()
        assert await read_to_end(client) == b""


async def streamed(_request: Request) -> Response:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for piece in (b"one", b"two"):
            yield piece

    return Response(pieces())


async def test_a_stream_is_chunked_and_for_http_1_0_ends_with_the_connection(
    tcp: socket.socket,
) -> None:
    async with serving(tcp, server([Route("/", streamed)])):
        chunked = await answer_to(tcp, GET)
        plain = await answer_to(tcp, b"GET / HTTP/1.0\r\n\r\n")
        head = await answer_to(tcp, GET.replace(b"GET", b"HEAD"))
    assert body(chunked) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert body(plain) == b"onetwo"
    assert (status(head), body(head)) == (200, b"")


async def failing(_request: Request) -> Response:
    raise ZeroDivisionError("a defect")


async def failing_in_the_middle(_request: Request) -> Response:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise ZeroDivisionError("a defect")

    return Response(pieces())


async def test_a_defect_in_an_answer_is_500_and_a_log_line_and_the_server_goes_on(
    tcp: socket.socket,
) -> None:
    routes = [Route("/", hello), Route("/bad", failing), Route("/cut", failing_in_the_middle)]
    with structlog.testing.capture_logs() as logs:
        async with serving(tcp, server(routes)):
            failed = await answer_to(tcp, GET.replace(b" / ", b" /bad "))
            cut = await answer_to(tcp, GET.replace(b" / ", b" /cut "))
            well = await answer_to(tcp, GET)
    assert (status(failed), body(failed)) == (500, b"internal error: see the daemon's log")
    assert body(cut) == b"3\r\none\r\n"  # without the last chunk: the client sees the cut
    assert status(well) == 200
    assert [(entry["event"], entry.get("request")) for entry in logs] == [
        ("http_request_failed", "GET /bad")
    ]  # the second one is throttled
