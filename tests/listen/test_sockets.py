"""Listening sockets over reloads: a new address may overlap the one that it replaces."""

from __future__ import annotations

import errno
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.fake_services import has_ipv6, taken_on_ipv6_alone, unused_tcp_port
from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.settings import Route
from vsockproxy.errors import ListenError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not has_ipv6(),
    reason="SO_REUSEPORT of a listener that is bound already is Linux's; ::1 is wanted",
)


def routes(daemon: ControlledDaemon, port: int) -> tuple[Route, Route]:
    """Return a route on 127.0.0.1, and the same on 127.0.0.1 and ::1."""
    [route] = daemon.daemon.config.routes
    narrow = replace(route, name="web", listen=TcpEndpoint("127.0.0.1", port))
    return narrow, replace(narrow, listen=TcpEndpoint(None, port))


async def echoes(client: trio.SocketStream, data: bytes) -> bool:
    await client.send_all(data)
    return bytes(await client.receive_some()) == data


async def test_a_listener_moves_to_an_address_that_overlaps_its_own(tmp_path: Path) -> None:
    with no_descriptor_left_over():
        async with controlled_daemon(tmp_path, "echo") as daemon:
            port = unused_tcp_port()
            narrow, wide = routes(daemon, port)
            await daemon.reload(routes=(narrow,))
            async with await trio.open_tcp_stream("127.0.0.1", port) as live:
                assert await echoes(live, b"before")
                await daemon.reload(routes=(wide,))
                async with await trio.open_tcp_stream("::1", port) as client:
                    assert await echoes(client, b"x")
                await daemon.reload(routes=(narrow,))
                async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                    assert await echoes(client, b"y")
                with pytest.raises(OSError, match=r"refused|::1"):
                    await trio.open_tcp_stream("::1", port)
                assert await echoes(live, b"after")
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what matters
                socket.create_server(("127.0.0.1", port)).close()
            assert caught.value.errno == errno.EADDRINUSE, "the next daemon does not share it"


async def test_a_reload_that_fails_leaves_the_old_address_alone(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "echo") as daemon:
        with taken_on_ipv6_alone() as port:
            narrow, wide = routes(daemon, port)
            await daemon.reload(routes=(narrow,))
            with pytest.raises(ListenError) as caught:
                await daemon.reload(routes=(wide,))
            assert caught.value.errno == errno.EADDRINUSE
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            assert await echoes(client, b"x")
        await daemon.reload(routes=(wide,))


async def test_two_host_names_of_one_address_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a listener that the reload removes may overlap."""
    async with controlled_daemon(tmp_path, "echo") as daemon:
        port = unused_tcp_port()
        narrow, wide = routes(daemon, port)
        await daemon.reload(routes=(narrow,))

        def resolve(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        alias = replace(narrow, name="alias", listen=TcpEndpoint("host.example", port))
        for other in (narrow, wide):
            with pytest.raises(ListenError) as caught:
                await daemon.reload(routes=(other, alias))
            assert caught.value.errno == errno.EADDRINUSE
