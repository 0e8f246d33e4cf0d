"""Tests of invalid requests and of hostile clients of the control socket."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from tests.admin.fake_daemon import FakeDaemon
from tests.admin.running_daemon import controlled_daemon
from vsockproxy.admin.openapi import OPERATIONS, Operation
from vsockproxy.admin.probes import read_only_routes


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/routes/missing", 404),
        ("POST", "/v1/routes/missing/pause", 404),
        ("GET", "/v1/connections/12345", 404),
        ("GET", "/v1/connections?sort=luck", 400),
        ("GET", "/v1/connections?limit=0", 400),
        ("GET", "/v1/connections?colour=red", 400),
        ("GET", "/v1/connections?after=%5B%22x%22,1%5D", 400),
        ("GET", "/v1/connections?after=%5B%5B%5B", 400),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v2/status", 404),
    ],
)
async def test_an_invalid_request_is_answered_with_an_error_and_a_remedy(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "remedy"}
    assert all(answer.json().values())


async def test_with_a_thousand_idle_clients_a_new_client_is_served(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        idle = [await trio.open_unix_socket(str(daemon.socket)) for _ in range(1000)]
        assert (await daemon.get("/v1/status"))["live"] == 1
        await client.send_all(b"y")
        assert await client.receive_some() == b"y"
        for stream in (client, *idle):
            await stream.aclose()


async def test_a_request_with_an_unneeded_body_is_answered_after_the_body(
    tmp_path: Path,
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        stream = await trio.open_unix_socket(str(daemon.socket))
        head = b"POST /v1/routes/web/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
        await stream.send_all(head)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.send_all(b"{}")
        answer = b"".join([bytes(piece) async for piece in stream])
        await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 200")


async def test_an_oversized_body_is_answered_with_413(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask("POST", "/v1/connections/end", {"route": "x" * 100_000})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b'{"route": 7}', b"[" * 60_000])
async def test_a_malformed_body_is_answered_with_400(tmp_path: Path, body: bytes) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.send("/v1/connections/end", body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "remedy"}


PARAMETERS = [
    (operation, name)
    for operation in OPERATIONS
    for model in (operation.query, operation.body)
    for name in (model.model_fields if model else ())
]


@pytest.mark.parametrize(
    ("operation", "name"), PARAMETERS, ids=[f"{one.name}-{name}" for one, name in PARAMETERS]
)
@pytest.mark.parametrize("value", ["no such", "300.1.1.1", ""])
async def test_a_parameter_that_can_mean_nothing_is_an_error_in_our_words(
    tmp_path: Path, operation: Operation, name: str, value: str
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        path = operation.published_path
        if operation.body:
            answer = await daemon.ask(operation.method, path, {name: value})
        else:
            answer = await daemon.ask(operation.method, path, **{name: value})
        assert (await daemon.get("/v1/status"))["live"] == 1
        await client.aclose()
    assert answer.status_code in (400, 404), answer.text
    assert not re.search("Input should|valid (dict|int|bool|str)|type=", answer.text)
    assert all(answer.json().values())


@pytest.mark.parametrize(
    "client", ["127.0.0.1", "127.0.0.1:5000", "[::1]:5000", "10.0.0.0/8", "3", "3-9", "vsock:3:5"]
)
async def test_a_client_that_has_no_connection_is_no_error(tmp_path: Path, client: str) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        assert (await daemon.get("/v1/connections", client=client))["total"] == 0


@pytest.mark.parametrize("number", [2, 100, 500])
async def test_of_pipelined_requests_at_most_one_is_answered(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        stream = await trio.open_unix_socket(str(daemon.socket))
        await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * number)
        answer = b""
        with suppress(trio.BrokenResourceError):
            async for piece in stream:
                answer += bytes(piece)
        await stream.aclose()
        assert (await daemon.get("/v1/status"))["ready"]
    assert answer.count(b"HTTP/1.1 ") <= 1  # or 431, for the requests behind it
    assert not caplog.records


def test_the_metrics_listener_has_only_read_only_routes() -> None:
    routes = read_only_routes(CollectorRegistry(), FakeDaemon())
    assert {method for route in routes for method in route.methods or ()} == {"GET", "HEAD"}
