"""Clients that name their target, over real sockets."""

from __future__ import annotations

import base64
import socket
from contextlib import suppress
from pathlib import Path

import bcrypt
import pytest
import trio
import trio.testing

from tests.fake_services import (
    Service,
    dead_unix_socket,
    echo,
    mux_server,
    says,
    unix_server,
    unused_tcp_port,
)
from tests.listen.running_route import Served, unix_at
from tests.relay.naming import naming
from tests.request.reading import client_hello
from tests.sockets import ends_by_reset, read_to_end
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import (
    AF_VSOCK,
    CID_LOCAL,
    PORT_ANY,
    Dialable,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.access import parse_rule
from vsockproxy.config.guest import Guest, Mux
from vsockproxy.config.request import By
from vsockproxy.config.settings import Policy, PumpChoice
from vsockproxy.guests.directory import Guests
from vsockproxy.listen.bind import open_vsock_listeners
from vsockproxy.relay.proxy_protocol import Header, InetAddress, build_header

SOCKS = b"\5\1\0\5\1\0\3\6web.vm\0\x50"
CONNECT = b"CONNECT web.vm:80 HTTP/1.1\r\nHost: web.vm\r\n\r\n"
ABSOLUTE = b"GET http://web.vm/x HTTP/1.1\r\nHost: web.vm\r\n\r\n"
HOST = b"GET / HTTP/1.1\r\nHost: web.vm\r\n\r\n"
HELLO = client_hello("web.vm")


async def answered(client: trio.SocketStream, size: int) -> bytes:
    """Return the next ``size`` bytes."""
    received = b""
    with trio.fail_after(PATIENCE):
        while len(received) < size:
            piece = await client.receive_some(size - len(received))
            assert piece, received
            received += piece
    return received


def answers(data: bytes) -> Service:
    """Return a service that reads something, sends ``data`` and reads to the end."""

    async def service(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(data)
        await stream.send_eof()
        await read_to_end(stream)

    return service


def asked(name: str, port: int = 80) -> bytes:
    return b"\5\1\0\5\1\0\3" + bytes([len(name)]) + name.encode() + port.to_bytes(2, "big")


# ---- each kind of request, to its target ----


async def test_a_socks_client_reaches_the_name_and_is_told_the_bound_address(
    choice: PumpChoice,
) -> None:
    async with naming("socks5", choice=choice) as route, route.connect() as client:
        await client.send_all(SOCKS)
        reply = await answered(client, 2 + 10)
        assert reply[:10] == b"\5\0" + b"\5\0\0\1\x7f\0\0\1"
        await client.send_all(b"hello")
        await client.send_eof()
        assert await read_to_end(client) == b"hello"
        await route.closed("finished")
        assert route.stats.upstream_bytes == len(b"hello")


@pytest.mark.parametrize(
    ("by", "request_", "reply"),
    [
        ("http-connect", CONNECT, b"HTTP/1.1 200 Connection established\r\n\r\n"),
        ("proxy", CONNECT, b"HTTP/1.1 200 Connection established\r\n\r\n"),
        ("sni", HELLO, HELLO),
        ("http-host", HOST, HOST),
    ],
)
async def test_bytes_behind_a_request_reach_the_target_first(
    by: By, request_: bytes, reply: bytes, choice: PumpChoice
) -> None:
    async with naming(by, choice=choice) as route:
        assert await route.exchange(request_ + b"early") == reply + b"early"
        await route.closed("finished")
        replayed = 0 if by in ("http-connect", "proxy") else len(request_)
        assert route.stats.upstream_bytes == replayed + len(b"early")


async def test_a_request_in_absolute_form_is_one_request_to_its_target() -> None:
    async with naming("http-connect", service=answers(b"HTTP/1.1 204 No\r\n\r\n")) as route:
        assert await route.exchange(ABSOLUTE) == b"HTTP/1.1 204 No\r\n\r\n"
        assert route.stats.upstream_bytes == len(
            b"GET /x HTTP/1.1\r\nHost: web.vm\r\nConnection: close\r\n\r\n"
        )


@pytest.mark.parametrize(("guest", "line"), [(None, b"CONNECT web 80\n"), ("web", b"CONNECT 80\n")])
async def test_a_line_reaches_a_guest_behind_a_vmm(
    guest: str | None, line: bytes, tmp_path: Path
) -> None:
    target = MuxEndpoint(str(tmp_path / "v"), 80)
    guests = Guests([Guest("web", Mux(str(tmp_path / "v")))])
    async with (
        mux_server(tmp_path / "v", {80: says(b"up")}),
        naming(
            "mux", {"web": target}, guest=guest, listen_at=unix_at(tmp_path), guests=guests
        ) as route,
    ):
        async with route.connect() as client:
            await client.send_all(line)
            assert await read_to_end(client) == b"OK 80\nup"
        [decided] = route.events("request_decided")
        assert decided["target"] == str(target)


async def test_a_half_close_is_held_for_a_guest_behind_a_vmm_alone(tmp_path: Path) -> None:
    """`half_close = "auto"` follows the target that is dialled, as on a route with one target."""
    targets: dict[str, Dialable] = {
        "mux.vm": MuxEndpoint(str(tmp_path / "v"), 80),
        "unix.vm": UnixEndpoint(str(tmp_path / "u")),
    }
    ended = trio.Event()

    async def to_the_end(stream: trio.SocketStream) -> None:
        await read_to_end(stream)
        ended.set()

    policy = Policy(connect_timeout=PATIENCE, half_close_hold=3600)
    async with (
        mux_server(tmp_path / "v", {80: to_the_end}),
        unix_server(tmp_path / "u", to_the_end),
        naming("socks5", targets, policy=policy) as route,
        route.connect() as client,
        route.connect() as other,
    ):
        await client.send_all(asked("mux.vm"))
        await client.send_eof()
        await until(lambda: any(live.running for live in route.stats.live))
        await trio.testing.wait_all_tasks_blocked(0.01)  # the portable pump looks every 0.05 s
        assert not ended.is_set()
        await other.send_all(asked("unix.vm"))
        await other.send_eof()
        with trio.fail_after(PATIENCE):
            await ended.wait()


@pytest.mark.parametrize(
    "kind", ["tcp", "unix", "vsock-mux", pytest.param("vsock", marks=pytest.mark.vsock)]
)
@pytest.mark.parametrize("by", ["socks5", "http-connect", "sni", "http-host"])
async def test_every_reader_works_behind_every_listener(by: By, kind: str, tmp_path: Path) -> None:
    listeners: dict[str, ListenEndpoint] = {
        "tcp": TcpEndpoint("127.0.0.1", 0),
        "unix": unix_at(tmp_path),
        "vsock-mux": MuxEndpoint(str(tmp_path / "v.sock"), 1024),
        "vsock": VsockEndpoint(CID_LOCAL, 1080),
    }
    requests: dict[str, bytes] = {
        "socks5": SOCKS,
        "http-connect": CONNECT,
        "sni": HELLO,
        "http-host": HOST,
    }
    endpoint = listeners[kind]
    async with (
        naming(by, service=answers(b"here"), listen_at=endpoint) as route,
        connect(route, endpoint) as client,
    ):
        await client.send_all(requests[by] + b"x")
        await client.send_eof()
        assert (await read_to_end(client)).endswith(b"here")


@pytest.mark.vsock
@pytest.mark.parametrize(
    ("by", "request_", "reply"),
    [("sni", HELLO, HELLO), ("http-host", HOST, HOST), ("mux", b"CONNECT web 5\n", b"OK 5\n")],
)
async def test_a_name_reaches_a_guest_over_vsock(
    by: By, request_: bytes, reply: bytes, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:
        [service] = await open_vsock_listeners(PORT_ANY, cid=CID_LOCAL)
        port = service.socket.getsockname()[1]
        guest = VsockEndpoint(CID_LOCAL, port)
        nursery.start_soon(trio.serve_listeners, echo, [service])
        async with naming(
            by, {"web.vm": guest, "web": guest}, listen_at=unix_at(tmp_path)
        ) as route:
            assert await route.exchange(request_ + b"early") == reply + b"early"
            [line] = route.events("request_decided")
            assert line["target"] == f"vsock:{CID_LOCAL}:{port}"
        nursery.cancel_scope.cancel()


def connect(route: Served, endpoint: ListenEndpoint) -> trio.SocketStream:
    if isinstance(endpoint, MuxEndpoint):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(endpoint.listen_path)
    elif isinstance(endpoint, VsockEndpoint):  # in a kernel that the tests boot
        sock = socket.socket(AF_VSOCK, socket.SOCK_STREAM)
        sock.connect((endpoint.cid, endpoint.port))
    else:
        return route.connect()
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


# ---- requests that are not served ----


@pytest.mark.parametrize(
    ("by", "request_", "reply"),
    [
        ("socks5", asked("db.vm"), b"\5\0\5\2\0\1" + bytes(6)),
        (
            "http-connect",
            CONNECT.replace(b"web", b"db"),
            b"vsockproxy: db.vm:80 is denied: no rule allows db.vm\n",
        ),
        (
            "http-host",
            HOST.replace(b"web", b"db"),
            b"vsockproxy: db.vm:80 is denied: no rule allows db.vm\n",
        ),
        ("mux", b"CONNECT db 80\n", b""),
        ("sni", client_hello("db.vm"), b"\x15\3\3\0\2\2\x70"),
    ],
)
async def test_a_denied_client_is_told_in_its_protocol(
    by: By, request_: bytes, reply: bytes, tmp_path: Path
) -> None:
    """Bytes that it has sent meanwhile are unread, and make no reset that destroys the answer."""
    async with naming(by, listen_at=unix_at(tmp_path)) as route:
        assert (await route.exchange(request_)).endswith(reply)
        await route.closed("rejected_request_denied")
        assert route.stats.rejected == {"request_denied": 1}
        assert route.stats.requests == {"denied": 1}
        [line] = route.events("request_decided")
        assert line["verdict"] == "denied"
        assert "no rule" in str(line["error"])
        assert "rule" not in line
        assert str(line["asked"]).startswith("db")


async def test_an_answer_outlives_the_bytes_that_the_client_still_sends() -> None:
    async with naming("http-connect") as route, route.connect() as client:
        await client.send_all(CONNECT.replace(b"web", b"db") + bytes(100_000))
        assert (await read_to_end(client)).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(("by", "reply"), [("socks5", b""), ("http-host", b"HTTP/1.1 400 ")])
async def test_a_malformed_request_is_closed_and_counted(by: By, reply: bytes) -> None:
    async with naming(by) as route:
        async with route.connect() as client:
            await client.send_all(b"\0\0\0\0\r\n\r\n")
            with suppress(trio.BrokenResourceError):
                assert (await read_to_end(client)).startswith(reply)
        await route.closed("rejected_request_malformed")
        assert route.stats.rejected == {"request_malformed": 1}
        [line] = route.events("client_rejected")
        assert line["error"]


async def test_a_client_that_sends_no_request_in_time_is_reset() -> None:
    async with naming("sni", policy=Policy(connect_timeout=0.01)) as route:
        async with route.connect() as client:
            await client.send_all(HELLO[:9])
            assert await ends_by_reset(client)
        await route.rejected("request_timeout")


async def test_a_client_that_leaves_before_its_request_is_no_failure() -> None:
    async with naming("sni") as route:
        await route.connect().aclose()
        await route.closed("dial_client_left")
        assert not route.stats.dial_failures
        assert not route.stats.rejected


async def test_a_client_without_the_right_credentials_is_told(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_bytes(b"alice:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    async with naming("proxy", credentials=users) as route:
        assert (await route.exchange(CONNECT)).startswith(b"HTTP/1.1 407 ")
        await route.closed("rejected_request_unauthenticated")
        socks = b"\5\1\2\1\5alice\6%s" + SOCKS[3:]
        for _ in range(9):  # a client that waits for the challenge has not failed
            assert (await route.exchange(CONNECT)).startswith(b"HTTP/1.1 407 ")
        assert await route.exchange(socks % b"secrex") == b"\5\2\1\1"
        assert (await route.exchange(socks % b"secret"))[:6] == b"\5\2\1\0\5\0"
        basic = b"Proxy-Authorization: Basic " + base64.b64encode(b"alice:secret") + b"\r\n\r\n"
        assert (await route.exchange(CONNECT[:-2] + basic)).startswith(b"HTTP/1.1 200 ")
        assert [line["user"] for line in route.events("request_decided")] == ["alice", "alice"]
        assert route.stats.rejected == {"request_unauthenticated": 11}


# ---- dials that fail ----


@pytest.mark.parametrize(
    ("by", "request_", "reply"),
    [
        ("socks5", SOCKS, b"\5\0\5\5\0\1" + bytes(6)),
        ("http-connect", CONNECT, b"vsockproxy: cannot reach web.vm:80: nothing listens there\n"),
        ("http-host", HOST, b"vsockproxy: cannot reach web.vm:80: nothing listens there\n"),
        ("sni", HELLO, b"\x15\3\3\0\2\2\x50"),
    ],
)
async def test_a_failed_dial_is_told_in_the_clients_protocol(
    by: By, request_: bytes, reply: bytes
) -> None:
    async with naming(by, {"web.vm": TcpEndpoint("127.0.0.1", unused_tcp_port())}) as route:
        assert (await route.exchange(request_)).endswith(reply)
        await route.closed("dial_refused")
        assert route.stats.dial_failures == {"refused": 1}
        [line] = route.events("request_decided")
        assert line["verdict"] == "allowed"
        assert route.events("dial_failed")


async def test_a_client_is_not_told_the_path_of_a_guests_socket(tmp_path: Path) -> None:
    dead_unix_socket(tmp_path / "secret")
    target = UnixEndpoint(str(tmp_path / "secret"))
    async with naming("http-connect", {"web.vm": target}) as route:
        assert b"secret" not in await route.exchange(CONNECT)


async def test_a_client_is_held_until_its_guest_is_up(tmp_path: Path) -> None:
    policy = Policy(connect_timeout=PATIENCE, wait_for_guest=3600)
    target = UnixEndpoint(str(tmp_path / "late"))
    async with naming("socks5", {"web.vm": target}, policy=policy) as route:
        async with route.connect() as client:
            await client.send_all(SOCKS)
            await until(lambda: route.stats.held)
            async with unix_server(tmp_path / "late", says(b"up")):
                assert (await read_to_end(client)).endswith(b"up")
        await until(lambda: route.stats.held_results == {"served": 1})
        assert not route.stats.held


async def test_a_held_client_that_leaves_is_released(tmp_path: Path) -> None:
    policy = Policy(connect_timeout=PATIENCE, wait_for_guest=3600)
    targets = {"web.vm": UnixEndpoint(str(tmp_path / "never"))}
    listen = unix_at(tmp_path)
    async with naming("socks5", targets, policy=policy, listen_at=listen) as route:
        async with route.connect() as client:
            await client.send_all(SOCKS)
            await until(lambda: route.stats.held)
        await route.closed("dial_client_left")
        assert route.stats.held_results == {"left": 1}


async def test_an_allowed_request_whose_dial_is_ended_is_counted_and_in_the_log(
    tmp_path: Path,
) -> None:
    policy = Policy(connect_timeout=PATIENCE, wait_for_guest=3600)
    targets = {"web.vm": UnixEndpoint(str(tmp_path / "never"))}
    async with naming("socks5", targets, policy=policy) as route, route.connect() as client:
        await client.send_all(SOCKS)
        await until(lambda: route.stats.held)
        [connection] = route.stats.live
        connection.end("killed")
        await route.closed("killed")
        assert route.stats.requests == {"allowed": 1}
        [line] = route.events("request_decided")
        assert line["error"] == "the connection was ended during the dial"


async def test_a_client_whose_guest_never_comes_is_told(tmp_path: Path) -> None:
    policy = Policy(connect_timeout=PATIENCE, wait_for_guest=0.05)
    targets = {"web.vm": UnixEndpoint(str(tmp_path / "never"))}
    async with naming("socks5", targets, policy=policy) as route:
        assert (await route.exchange(SOCKS))[:4] == b"\5\0\5\4"
        assert route.stats.held_results == {"timeout": 1}


# ---- with the other policies ----


async def test_the_header_of_a_client_comes_before_its_request() -> None:
    policy = Policy(
        connect_timeout=PATIENCE,
        accept_proxy=True,
        proxy_trusted=(parse_rule("127.0.0.1"),),
        send_proxy="v1",
    )
    source = Header(
        InetAddress(parse_rule("192.0.2.7").network.network_address, 4711),  # type: ignore[union-attr]
        InetAddress(parse_rule("192.0.2.1").network.network_address, 443),  # type: ignore[union-attr]
    )
    async with naming("http-host", policy=policy) as route:
        header = build_header("v1", source)
        assert await route.exchange(header + HOST) == header + HOST
        [line] = route.events("request_decided")
        assert line["client"] == "192.0.2.7:4711"


async def test_killing_a_connection_ends_the_wait_for_its_request() -> None:
    async with naming("sni") as route, route.connect() as client:
        await until(lambda: route.stats.live)
        [connection] = route.stats.live
        await until(lambda: connection.dialling is not None)
        connection.end("killed")
        assert await ends_by_reset(client)
        await route.closed("killed")


async def test_many_names_leave_nothing_behind(tmp_path: Path) -> None:
    """No dialler, no state and no metric is kept of a name."""
    names = [f"n{number}.vm" for number in range(50)]
    targets = {name: UnixEndpoint(str(tmp_path / "u")) for name in names}
    async with (
        unix_server(tmp_path / "u", says(b"up")),
        naming("socks5", targets) as route,
    ):
        for name in names:
            assert (await route.exchange(asked(name))).endswith(b"up")
        await route.closed("finished", len(names))
        assert not route.stats.live
        assert route.stats.requests == {"allowed": len(names)}
        assert route.stats.targets == []
