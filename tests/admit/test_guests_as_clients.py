"""Guests as clients: access rules by CID, and the addresses that targets receive.

Over AF_VSOCK, in a kernel that the tests boot; every client there has CID 1.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.fake_services import echo, echo_or_nothing, unix_listener
from tests.listen.running_route import Served, serving
from tests.sockets import read_to_end
from vsockproxy.address.endpoint import (
    AF_VSOCK,
    CID_ANY,
    CID_LOCAL,
    PORT_ANY,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.access import CidRule, Rule
from vsockproxy.config.settings import Policy
from vsockproxy.relay.proxy_protocol import VsockAddress, parse_header

pytestmark = [
    pytest.mark.vsock,
    pytest.mark.skipif(
        "VSOCKPROXY_TEST_KERNEL" not in os.environ,
        reason="needs a test kernel: install the package user-mode-linux, run `make test`",
    ),
]

ANYWHERE = VsockEndpoint(CID_ANY, PORT_ANY)
HERE: tuple[Rule, ...] = (CidRule(CID_LOCAL, CID_LOCAL),)


async def connect(route: Served) -> trio.SocketStream:
    sock = trio.socket.socket(AF_VSOCK, socket.SOCK_STREAM)
    await sock.connect((CID_LOCAL, route.listener.sockets[0].sock.getsockname()[1]))
    return trio.SocketStream(sock)


async def exchange(route: Served) -> bytes:
    return await echo_or_nothing(await connect(route))


@pytest.fixture
async def route() -> AsyncIterator[Served]:
    async with serving(Policy(), listen_at=ANYWHERE) as served:
        yield served


async def test_a_guest_is_admitted_or_denied_by_its_cid(route: Served) -> None:
    route.reconfigure(Policy(allow=HERE))
    assert await exchange(route) == b"x"
    route.reconfigure(Policy(allow=(CidRule(3, 10),)))
    assert await exchange(route) == b""
    route.reconfigure(Policy(deny=HERE))
    assert await exchange(route) == b""
    await route.rejected("denied", 2)


async def test_max_connections_per_source_counts_guests_by_cid(route: Served) -> None:
    route.reconfigure(Policy(max_connections_per_source=1))
    async with await connect(route) as first:
        await first.send_all(b"x")
        assert await first.receive_some() == b"x"
        assert route.stats.sources == {f"vsock:{CID_LOCAL}": 1}
        assert await exchange(route) == b""
    await route.rejected("max_connections_per_source")


async def test_send_proxy_sends_a_guests_cid_and_port(route: Served) -> None:
    route.reconfigure(Policy(send_proxy="v2"))
    async with await connect(route) as client:
        port = client.socket.getsockname()[1]
        await client.send_all(b"x")
        await client.send_eof()
        answer = await read_to_end(client)
    assert answer[-1:] == b"x"
    assert parse_header(answer[:-1]).source == VsockAddress(CID_LOCAL, port)


async def test_a_guest_over_max_connections_is_queued(route: Served) -> None:
    route.reconfigure(Policy(max_connections=1))
    first = await connect(route)
    await first.send_all(b"x")
    assert await first.receive_some() == b"x"
    async with await connect(route) as second:
        await second.send_all(b"x")
        await route.queues("max_connections")
        await first.aclose()
        assert await second.receive_some() == b"x"


async def test_over_limit_reject_rejects_a_guest(route: Served) -> None:
    route.reconfigure(Policy(max_connections=1, over_limit="reject"))
    async with await connect(route) as first:
        await first.send_all(b"x")
        assert await first.receive_some() == b"x"
        assert await exchange(route) == b""
    await route.rejected("max_connections")


async def test_connection_rate_queues_guests(route: Served) -> None:
    route.reconfigure(Policy(connection_rate=0.01))
    assert await exchange(route) == b"x"
    async with await connect(route) as second:
        await second.send_all(b"x")
        await route.queues("connection_rate")
        route.reconfigure(Policy())
        assert await second.receive_some() == b"x"


async def test_policies_hold_for_a_guest_of_a_unix_service(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "service") as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        service = UnixEndpoint(str(tmp_path / "service"))
        async with (
            trio.open_nursery() as nursery,
            serving(Policy(allow=HERE), listen_at=ANYWHERE, dial_to=service) as route,
        ):
            nursery.start_soon(trio.serve_listeners, echo, [listener])
            assert await exchange(route) == b"x"
            route.reconfigure(Policy(deny=HERE))
            assert await exchange(route) == b""
            await route.rejected("denied")
            route.reconfigure(Policy(max_connections=1))
            async with await connect(route) as first, await connect(route) as second:
                await first.send_all(b"x")
                assert await first.receive_some() == b"x"
                await second.send_all(b"x")
                await route.queues("max_connections")
                await first.aclose()
                assert await second.receive_some() == b"x"
            nursery.cancel_scope.cancel()
