"""PROXY headers on routes: sent to targets, and accepted from trusted peers."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from time import monotonic

import pytest
import trio
import trio.testing

from tests.fake_services import answers_ok, hold, mux_server, says
from tests.listen.running_route import Served, serving, unix_at
from tests.pump.relayed import take_socket
from tests.sockets import ends_by_reset, read_to_end, reset
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint
from vsockproxy.config.access import parse_rule
from vsockproxy.config.settings import Policy, PumpChoice
from vsockproxy.errors import DialError
from vsockproxy.relay.preamble import send_header
from vsockproxy.relay.proxy_protocol import (
    SIGNATURE,
    Header,
    InetAddress,
    UnixAddress,
    Version,
    VsockAddress,
    build_header,
)

LOOPBACK = (parse_rule("127.0.0.1"),)
TRUSTING = Policy(accept_proxy=True, proxy_trusted=LOOPBACK, connect_timeout=PATIENCE)
CLIENT = Header(
    InetAddress(ip_address("192.0.2.7"), 4711), InetAddress(ip_address("192.0.2.1"), 443)
)
GUEST = Header(VsockAddress(7, 1025))
UNIX = Header(UnixAddress(b"/run/\xff.sock"), UnixAddress(b"/run/server.sock"))
ABSTRACT = Header(UnixAddress(b"\0client"), UnixAddress(b"/run/server.sock"))
UNNAMED = Header(UnixAddress(b""), UnixAddress(b"/run/server.sock"))


# ---- sent to the target ----


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_send_proxy_sends_the_clients_address(version: Version, choice: PumpChoice) -> None:
    async with serving(Policy(send_proxy=version), choice=choice) as route:
        client = route.connect("127.0.0.5")
        own, theirs = client.socket.getsockname(), client.socket.getpeername()
        async with client:
            await client.send_all(b"hello")
            await client.send_eof()
            answer = await read_to_end(client)
        expected = Header(
            InetAddress(ip_address(own[0]), own[1]), InetAddress(ip_address(theirs[0]), theirs[1])
        )
        assert answer == build_header(version, expected) + b"hello"
        await route.closed("finished")
        assert route.stats.upstream_bytes == len(b"hello"), "the header is not the client's"


async def test_a_target_that_speaks_first_has_received_the_header() -> None:
    async def service(stream: trio.SocketStream) -> None:
        header = await stream.receive_some()
        await stream.send_all(b"220 ready " + header)

    async with (
        serving(Policy(send_proxy="v1"), service=service) as route,
        route.connect() as client,
    ):
        assert (await read_to_end(client)).startswith(b"220 ready PROXY TCP4 127.0.0.1 ")


async def test_a_header_to_a_target_has_the_time_that_its_dial_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[float] = []
    passed = 0.0

    async def takes_no_time(
        _sock: socket.socket, _endpoint: object, _header: bytes, deadline: float
    ) -> None:
        """A fake of `send_header` that sends nothing."""
        left.append(deadline - trio.current_time())

    async def answers_after_a_second(host: trio.SocketStream, port: int) -> bool:
        nonlocal passed
        passed = 1.0
        return await answers_ok(host, port)

    monkeypatch.setattr("vsockproxy.relay.relay.send_header", takes_no_time)
    monkeypatch.setattr("vsockproxy.relay.relay.monotonic", lambda: monotonic() + passed)
    policy = Policy(send_proxy="v1", connect_timeout=PATIENCE)
    target = MuxEndpoint(str(tmp_path / "v"), 80)
    async with (
        mux_server(tmp_path / "v", {80: says(b"up")}, answers_after_a_second),
        serving(policy, dial_to=target) as route,
    ):
        assert await route.exchange(b"") == b"up"
    assert 0 < left[0] <= PATIENCE - 1


async def test_a_client_that_resets_while_its_target_is_dialled_ends_as_its_own_reset(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async def resets_before_ok(host: trio.SocketStream, port: int) -> bool:
        reset(take_socket(client))
        return await answers_ok(host, port)

    target = MuxEndpoint(str(tmp_path / "v"), 80)
    async with (
        mux_server(tmp_path / "v", {80: hold}, resets_before_ok),
        serving(Policy(send_proxy="v1"), dial_to=target, choice=choice) as route,
    ):
        client = route.connect()
        await route.closed("client_reset")
        assert not route.events("connection_error")


@pytest.mark.parametrize(
    ("version", "header"), [("v1", b"PROXY UNKNOWN\r\n"), ("v2", SIGNATURE + b"\x20\x00\x00\x00")]
)
async def test_send_proxy_names_no_address_for_a_unix_client(
    tmp_path: Path, version: Version, header: bytes, choice: PumpChoice
) -> None:
    endpoint = unix_at(tmp_path)
    policy = Policy(send_proxy=version)
    async with serving(policy, listen_at=endpoint, choice=choice) as route:
        assert await route.exchange(b"x") == header + b"x"


async def test_a_target_that_reads_no_header_is_a_dial_timeout() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(bytes(65536))
        with pytest.raises(DialError) as caught:
            await send_header(near, TcpEndpoint(None, 80), b"PROXY", trio.current_time() + 0.01)
    assert caught.value.reason == "timeout"


async def test_a_target_that_closes_before_the_header_is_a_failed_dial() -> None:
    near, far = socket.socketpair()
    with near:
        far.close()
        with pytest.raises(DialError):
            await send_header(near, TcpEndpoint(None, 80), b"PROXY", trio.current_time() + 10)


# ---- accepted from a client ----


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_accept_proxy_reads_no_byte_beyond_the_header(version: Version) -> None:
    async with serving(TRUSTING) as route:
        header = build_header(version, CLIENT)
        assert await route.exchange(header + b"PROXY is data here") == b"PROXY is data here"
        await route.closed("finished")
        [line] = route.events("connection_closed")
        assert line["client"] == "192.0.2.7:4711"


async def test_a_header_that_comes_byte_by_byte_is_accepted() -> None:
    async with serving(TRUSTING) as route, route.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in build_header("v2", CLIENT) + b"x":
            await client.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        assert await client.receive_some() == b"x"


async def test_no_target_is_dialled_before_the_header_is_complete() -> None:
    async with serving(TRUSTING, service=says(b"first")) as route, route.connect() as client:
        await until(lambda: route.stats.live)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(route.stats.dial_seconds.counts) == 0
        await client.send_all(build_header("v1", CLIENT))
        assert await read_to_end(client) == b"first"


@pytest.mark.parametrize("header", [CLIENT, GUEST, UNIX, ABSTRACT, UNNAMED])
async def test_a_received_header_is_sent_to_the_target(header: Header, choice: PumpChoice) -> None:
    sent = build_header("v2", header) + b"x"
    async with serving(replace(TRUSTING, send_proxy="v2"), choice=choice) as route:
        assert await route.exchange(sent) == sent


async def test_a_header_without_addresses_keeps_the_sender_as_the_client() -> None:
    async with serving(replace(TRUSTING, send_proxy="v1")) as route:
        answer = await route.exchange(b"PROXY UNKNOWN\r\nx", "127.0.0.1")
        assert answer.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


async def test_an_untrusted_peer_is_reset_with_or_without_a_header() -> None:
    async with serving(TRUSTING) as route:
        client = route.connect("127.0.0.9")
        with suppress(trio.BrokenResourceError):
            await client.send_all(build_header("v1", CLIENT))
        assert await ends_by_reset(client)
        await route.rejected("proxy_untrusted")
        assert route.stats.connections == 0


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 x y 1 2\r\n", b"\r\n\r\nX"]
)
async def test_a_malformed_header_resets_the_client(data: bytes) -> None:
    async with serving(TRUSTING) as route:
        client = route.connect()
        await client.send_all(data)
        assert await ends_by_reset(client)
        await route.rejected("proxy_malformed")
        await route.closed("rejected_proxy_malformed")
        assert sum(route.stats.dial_seconds.counts) == 0


async def test_a_fin_within_the_header_is_malformed() -> None:
    async with serving(TRUSTING) as route, route.connect() as client:
        await client.send_all(b"PROXY TCP4 192.0.2")
        await client.send_eof()
        await route.closed("rejected_proxy_malformed")


async def test_a_header_slower_than_connect_timeout_resets_the_client() -> None:
    policy = replace(TRUSTING, connect_timeout=0.1)
    async with serving(policy) as route:
        client = route.connect()
        await client.send_all(b"PROXY TCP4 ")
        assert await ends_by_reset(client)
        await route.closed("rejected_proxy_timeout")
        assert route.stats.rejected == {"proxy_timeout": 1}


async def test_slow_headers_count_towards_the_limit() -> None:
    policy = replace(TRUSTING, max_connections=1, over_limit="reject")
    async with serving(policy) as route, route.connect():
        await until(lambda: route.stats.live)
        assert await ends_by_reset(route.connect())
        await route.rejected("max_connections")


async def named(route: Served, source: str) -> trio.SocketStream:
    """Connect a client whose header has the address ``source``."""
    client = route.connect()
    end = InetAddress(ip_address(source), 1)
    await client.send_all(build_header("v2", Header(end, end)) + b"x")
    return client


async def test_allow_and_deny_judge_the_client_in_the_header() -> None:
    policy = replace(TRUSTING, deny=(parse_rule("192.0.2.0/24"),))
    async with serving(policy) as route:
        assert await ends_by_reset(await named(route, "192.0.2.7"))
        await route.closed("rejected_denied")
        [line] = route.events("client_rejected")
        assert line["client"] == "192.0.2.7:1"
        async with await named(route, "198.51.100.7") as client:
            assert await client.receive_some() == b"x"


async def test_max_connections_per_source_counts_the_client_in_the_header() -> None:
    policy = replace(TRUSTING, max_connections_per_source=1)
    async with serving(policy, service=hold) as route, await named(route, "192.0.2.7"):
        await until(lambda: route.stats.sources)
        assert await ends_by_reset(await named(route, "192.0.2.7"))
        await route.closed("rejected_max_connections_per_source")
        async with await named(route, "192.0.2.8"):
            await until(lambda: len(route.stats.sources) >= 2)


async def test_ending_connections_ends_one_whose_header_has_not_arrived() -> None:
    async with serving(TRUSTING) as route:
        client = route.connect()
        await until(lambda: route.stats.live)
        route.listener.end_connections()
        assert await ends_by_reset(client)
        await route.closed("shutdown")
