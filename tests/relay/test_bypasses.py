"""Every spelling of this machine's own addresses, asked for by clients that may reach any other."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import pytest
import trio

from tests.listen.running_route import Served
from tests.relay.naming import naming
from tests.waiting import PATIENCE
from vsockproxy.config.destination import parse_patterns
from vsockproxy.config.settings import Policy

EVERYWHERE: Final = parse_patterns(
    ["0.0.0.0/0:*", "[::]/0:*", "localhost:*", "*.localhost:*", "*.example.com:*"]
)
NAMES: Final = [
    *("localhost", "LOCALHOST", "localhost.", "LocalHost.", "localhost.."),
    *("127.0.0.1", "127.0.0.1.", "127.0.0.1..", "127.1", "127.0.1", "127.0.0.01", "127.00.0.1"),
    *("0", "0.0.0.0", "0.0.0.0.", "00000000", "0x0", "0.0", "127.255.255.254", "127.0.0.53"),
    *("2130706433", "2130706433.", "0x7f000001", "0X7F000001", "017700000001", "4294967295"),
    *("0x7f.1", "0x7f.0.0.1", "0177.0.0.1", "0177.1", "127.0.0x0.1", "127.0.0.1.5", "0x7f.0x1"),
    *("8589934591", "6425673729", "127.0.0.257", "0000177.0.0.1"),
]
ADDRESSES: Final = [
    *("::1", "::", "0:0:0:0:0:0:0:1", "0000:0000:0000:0000:0000:0000:0000:0001", "::0001"),
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0.0.0.0", "::FFFF:127.0.0.1", "::127.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:7f00:1::1", "2001:0:7f00:1::", "fe80::1", "fec0::1", "fd00::1"),
]
NO_NAMES: Final = [
    *("127.0.0.1%lo", "localhost%00.example.com", "127.0.0.1\t", "127.0.0.1/", "a b"),
    *("good.example.com@127.0.0.1", "127.0.0.1#.example.com", "127.0.0.1?.example.com"),
    *("127.0.0.1\\.example.com", "good.example.com:80@127.0.0.1", "localhost\0.example.com"),
    *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1"),
    *("\u24db\u24de\u24d2alhost", "local\u00adhost", "loc\u0430lhost", "127.0.0.\u0661"),
]
NO_ADDRESSES: Final = [
    *("::1%lo", "::1%25lo", "::1%1", "fe80::1%lo", "::ffff:127.0.0.1%lo", "::ffff:127.1"),
    *("127.0.0.1", "::1.", "::ffff:0x7f.0.0.1", ":::1", "v1.::1", "::ffff:0177.0.0.1"),
]


@pytest.fixture
async def guarded() -> AsyncIterator[tuple[Served, int]]:
    """Run a proxy that allows every address, and a server of this machine that must see nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        policy = Policy(connect_timeout=PATIENCE, target_allow=EVERYWHERE)
        async with naming("proxy", {}, policy=policy) as route:
            yield route, server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


async def exchange(route: Served, request: bytes) -> bytes:
    """Return the answer to a request; what came before a reset, if there is one."""
    with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
        return await route.exchange(request)
    return b""


async def test_every_spelling_is_denied_to_a_client_of_http(guarded: tuple[Served, int]) -> None:
    route, port = guarded
    spelled = [*NAMES, *NO_NAMES, *(f"[{one}]" for one in (*ADDRESSES, *NO_ADDRESSES))]
    for host in spelled:
        target = f"{host}:{port}".encode()
        for request in (
            b"CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n" % target,
            b"GET http://%s/ HTTP/1.1\r\nHost: good.example.com\r\n\r\n" % target,
        ):
            answer = await exchange(route, request)
            assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), (host, answer)


async def test_every_spelling_is_denied_to_a_client_of_socks(guarded: tuple[Served, int]) -> None:
    route, port = guarded
    spelled = [*NAMES, *NO_NAMES, *ADDRESSES, *NO_ADDRESSES, *(f"[{one}]" for one in ADDRESSES)]
    requests = {host: b"\3" + bytes([len(host.encode())]) + host.encode() for host in spelled} | {
        f"{host} as bytes": b"\4" + ip_address(host).packed for host in ADDRESSES
    }
    for last in (0, 1, 53):
        requests[f"127.0.0.{last} as bytes"] = b"\1\x7f\0\0" + bytes([last])
    requests["0.0.0.0 as bytes"] = b"\1" + bytes(4)
    for host, asked in requests.items():
        answer = await exchange(route, b"\5\1\0\5\1\0" + asked + port.to_bytes(2, "big"))
        assert answer[:4] in (b"\5\0\5\1", b"\5\0\5\2"), (host, answer)


async def test_a_denied_spelling_is_reached_once_a_rule_names_it() -> None:
    """The counterpart: without the rules above, these are this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        policy = Policy(
            connect_timeout=PATIENCE, target_allow=parse_patterns([f"127.0.0.1:{port}"])
        )
        async with naming("proxy", {}, policy=policy) as route:
            for host in ("127.0.0.1", "127.0.0.1.", "[::ffff:127.0.0.1]", "0.0.0.0", "localhost"):
                async with route.connect() as client:
                    await client.send_all(
                        f"CONNECT {host}:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
                    )
                    assert (await client.receive_some()).startswith(b"HTTP/1.1 200 "), host
