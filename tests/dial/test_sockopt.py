"""Socket options of listeners and targets, and their cost in system calls."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import pytest
import trio

from tests.fake_services import echo
from tests.listen.running_route import serving
from vsockproxy.address.endpoint import (
    AF_VSOCK,
    CID_ANY,
    CID_LOCAL,
    PORT_ANY,
    TcpEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.settings import Direct, Policy
from vsockproxy.dial.dial import dial
from vsockproxy.dial.sockopt import (
    CLIENTS_KEEPALIVE,
    listener_options,
    target_options,
)
from vsockproxy.listen.bind import listen

TIMEOUT = 20.0
TCP = socket.IPPROTO_TCP


def options_of(sock: socket.socket) -> dict[str, int]:
    """Return a TCP socket's options under the configuration's names."""
    return {
        "nodelay": sock.getsockopt(TCP, socket.TCP_NODELAY),
        "keepalive": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        and sock.getsockopt(TCP, socket.TCP_KEEPIDLE),
        "pause": sock.getsockopt(TCP, socket.TCP_KEEPINTVL),
        "user_timeout": sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT),
    }


def accepted(policy: Policy) -> dict[str, int]:
    """Return the options of a client's socket, inherited from its listener."""
    [listener] = listen(TcpEndpoint("127.0.0.1", 0), 16, {}, policy)
    with listener.sock, socket.create_connection(listener.sock.getsockname()):
        listener.sock.settimeout(TIMEOUT)
        client, _ = listener.sock.accept()
        with client:
            return options_of(client)


async def dialled(policy: Policy) -> dict[str, int]:
    """Return the options of a target's socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = TcpEndpoint("127.0.0.1", server.getsockname()[1])
        with await dial(endpoint, TIMEOUT, options=target_options(policy)) as sock:
            return options_of(sock)


async def test_keepalive_auto_probes_clients_and_not_targets() -> None:
    client, target = accepted(Policy()), await dialled(Policy())
    assert client["keepalive"] == CLIENTS_KEEPALIVE
    assert target["keepalive"] == 0
    assert client["nodelay"] == target["nodelay"] == 1
    assert client["user_timeout"] == target["user_timeout"] == 0


async def test_a_keepalive_time_holds_for_both_sides() -> None:
    policy = Policy(keepalive=30.0, user_timeout=2.5)
    for options in (accepted(policy), await dialled(policy)):
        assert options == {"nodelay": 1, "keepalive": 30, "pause": 30, "user_timeout": 2500}
    assert accepted(Policy(keepalive=3600.0))["pause"] == 75


async def test_keepalive_off_holds_for_both_sides() -> None:
    policy = Policy(keepalive=None, nodelay=False)
    for options in (accepted(policy), await dialled(policy)):
        assert (options["keepalive"], options["nodelay"]) == (0, 0)


async def test_a_reload_changes_the_options_of_new_clients() -> None:
    async with serving(Policy(keepalive=30.0, user_timeout=2.0, nodelay=False)) as route:
        route.reconfigure(Policy(keepalive=None))
        sock = route.listener.sockets[0].sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert sock.getsockopt(TCP, socket.TCP_USER_TIMEOUT) == 0
        assert sock.getsockopt(TCP, socket.TCP_NODELAY) == 1
        assert await route.exchange(b"x") == b"x"


@pytest.mark.parametrize("direct", ["auto", "off"])
async def test_a_relay_dials_with_the_policys_options(direct: Direct) -> None:
    policy = Policy(keepalive=45.0, user_timeout=3.5, direct=direct)
    async with serving(policy) as route, await route.live():
        [connection] = route.stats.live
        assert connection.running is not None
        with socket.socket(fileno=connection.running.duplicate(True)) as target:
            assert options_of(target) == await dialled(policy)


def test_the_defaults_set_one_option_on_a_target() -> None:
    """Each is a system call for each connection."""
    options = target_options(Policy())
    assert options[socket.AF_INET] == options[socket.AF_INET6]
    assert options[socket.AF_INET] == ((TCP, socket.TCP_NODELAY, 1),)
    assert options[AF_VSOCK] == ()
    assert socket.AF_UNIX not in options


def test_buffer_max_is_set_before_buffer_size() -> None:
    policy = Policy(buffer_size=1 << 20, buffer_max=2 << 20)
    wanted = ((AF_VSOCK, 2, 2 << 20), (AF_VSOCK, 0, 1 << 20))
    assert target_options(policy)[AF_VSOCK] == listener_options(policy)[AF_VSOCK] == wanted
    only = replace(Policy(), buffer_size=65536)
    assert target_options(only)[AF_VSOCK] == ((AF_VSOCK, 0, 65536),)


@pytest.mark.vsock
@pytest.mark.skipif(
    "VSOCKPROXY_TEST_KERNEL" not in os.environ,
    reason="needs a test kernel: install the package user-mode-linux, run `make test`",
)
async def test_vsock_buffer_sizes_are_set_on_listener_and_dial() -> None:
    policy = Policy(buffer_size=1 << 20, buffer_max=2 << 20)
    [listener] = listen(VsockEndpoint(CID_ANY, PORT_ANY), 16, {}, policy)
    with listener.sock:
        endpoint = VsockEndpoint(CID_LOCAL, listener.sock.getsockname()[1])
        with await dial(endpoint, TIMEOUT, options=target_options(policy)) as target:
            await trio.lowlevel.wait_readable(listener.sock)
            client, _ = listener.sock.accept()
            with client:
                for sock in (client, target):
                    sizes = [sock.getsockopt(AF_VSOCK, name) for name in (0, 2)]
                    assert sizes == [1 << 20, 2 << 20]


async def test_a_vsock_policy_changes_nothing_on_other_sockets() -> None:
    async with serving(Policy(buffer_size=4096), service=echo) as route:
        assert await route.exchange(b"x") == b"x"
