"""Dial, listen and the C calls over AF_VSOCK itself, in a kernel that the tests boot.

Its CID 1 is its loopback, so both ends of every connection are here.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

import vsockproxy
from tests.fake_services import as_ordinary_user, echo
from tests.sockets import no_descriptor_left_over, read_to_end
from vsockproxy.address.endpoint import CID_ANY, CID_LOCAL, PORT_ANY, VsockEndpoint
from vsockproxy.address.sockaddr import peer_name
from vsockproxy.dial import vsock
from vsockproxy.dial.dial import dial
from vsockproxy.errors import DialError, ListenError
from vsockproxy.listen.bind import ListeningSocket, listen

pytestmark = pytest.mark.vsock

TIMEOUT = 20.0
UNKNOWN_CID = 77


@contextmanager
def listening(cid: int = CID_ANY, port: int = PORT_ANY) -> Iterator[ListeningSocket]:
    [listener] = listen(VsockEndpoint(cid, port), 16, {})
    try:
        yield listener
    finally:
        listener.close()


def loopback(listener: ListeningSocket, *, to_host: bool = False) -> VsockEndpoint:
    """Where the listener is reached from within this kernel."""
    assert isinstance(listener.endpoint, VsockEndpoint)
    return VsockEndpoint(CID_LOCAL, listener.endpoint.port, to_host)


async def fails(endpoint: VsockEndpoint, timeout: float = TIMEOUT) -> DialError:
    with no_descriptor_left_over(), pytest.raises(DialError) as caught:
        await dial(endpoint, timeout)
    return caught.value


def refuses(endpoint: VsockEndpoint) -> ListenError:
    with no_descriptor_left_over(), pytest.raises(ListenError) as caught:
        listen(endpoint, 16, {})
    return caught.value


@pytest.mark.parametrize("cid", [CID_ANY, CID_LOCAL])
@pytest.mark.parametrize("to_host", [False, True])
@pytest.mark.parametrize("timeout", [1.0, TIMEOUT, math.inf])
async def test_bytes_go_both_ways(cid: int, to_host: bool, timeout: float) -> None:
    with listening(cid) as listener:
        sock = await dial(loopback(listener, to_host=to_host), timeout)
        await trio.lowlevel.wait_readable(listener.sock)
        accepted, address = listener.sock.accept()
        with sock, accepted:
            for one, other in ((sock, accepted), (accepted, sock)):
                assert one.send(b"ping") == 4
                await trio.lowlevel.wait_readable(other)
                assert other.recv(8) == b"ping"
            assert peer_name(accepted.family, address) == f"vsock:1:{sock.getsockname()[1]}"
            assert not os.get_blocking(sock.fileno())
            assert not os.get_inheritable(sock.fileno())


async def test_the_chosen_port_is_reported() -> None:
    with listening() as listener:
        assert listener.endpoint == VsockEndpoint(CID_ANY, listener.sock.getsockname()[1])
        assert 1024 <= listener.sock.getsockname()[1] < PORT_ANY


async def test_a_peer_is_known_with_its_flags() -> None:
    with listening() as listener, await dial(loopback(listener), TIMEOUT) as sock:
        assert vsock.peer(sock) == loopback(listener)


async def test_a_port_without_a_listener_is_refused() -> None:
    with listening() as listener:
        endpoint = loopback(listener)
    error = await fails(endpoint)
    assert (error.reason, error.errno) == ("refused", errno.ECONNRESET)
    assert str(endpoint.port) in error.explanation


async def test_a_full_backlog_is_refused() -> None:
    with listening() as listener:
        listener.sock.listen(1)
        with await dial(loopback(listener), TIMEOUT), await dial(loopback(listener), TIMEOUT):
            error = await fails(loopback(listener))
    assert (error.reason, error.errno) == ("refused", errno.ECONNRESET)


@pytest.mark.parametrize("to_host", [False, True])
async def test_a_cid_that_no_vm_owns_has_no_transport(to_host: bool) -> None:
    error = await fails(VsockEndpoint(UNKNOWN_CID, 80, to_host))
    assert (error.reason, error.errno) == ("no_transport", errno.ENODEV)
    assert str(UNKNOWN_CID) in error.explanation


@pytest.mark.parametrize("seconds", [4.5, 0.5, 2.0, 86400])
def test_the_connect_timeout_is_read_back(seconds: float) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        assert vsock.connect_timeout(sock) == vsock.KERNEL_CONNECT_TIMEOUT
        vsock.set_connect_timeout(sock, seconds)
        assert vsock.connect_timeout(sock) == pytest.approx(seconds, abs=0.02)  # jiffies


@pytest.mark.parametrize("option", [vsock.CONNECT_TIMEOUT_OLD, vsock.CONNECT_TIMEOUT_NEW])
def test_both_numbers_of_the_option_are_one_timeout(option: int) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        vsock._set_timeout_option(sock, option, 4.5)
        for other in (vsock.CONNECT_TIMEOUT_OLD, vsock.CONNECT_TIMEOUT_NEW):
            assert vsock._timeout_option(sock, other) == 4.5


@pytest.mark.parametrize("seconds", [0, 1e-9, 1e18, math.inf])
def test_every_timeout_is_within_the_kernels_range(seconds: float) -> None:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        vsock.set_connect_timeout(sock, seconds)
        assert vsock.connect_timeout(sock) != vsock.KERNEL_CONNECT_TIMEOUT


async def test_the_kernel_waits_as_long_as_the_dial_does() -> None:
    with listening() as listener:
        with await dial(loopback(listener), 4.5) as sock:
            assert vsock.connect_timeout(sock) == 4.5
        with await dial(loopback(listener), 1.5) as sock:
            assert vsock.connect_timeout(sock) == vsock.KERNEL_CONNECT_TIMEOUT


def test_a_privileged_port_is_denied_to_an_ordinary_user() -> None:
    with as_ordinary_user():
        error = refuses(VsockEndpoint(port=1023))
    assert (error.reason, error.errno) == ("denied", errno.EACCES)
    assert "CAP_NET_BIND_SERVICE" in error.explanation
    with listening(port=1023):
        pass


def test_a_taken_port_is_in_use() -> None:
    with listening() as listener:
        assert isinstance(listener.endpoint, VsockEndpoint)
        error = refuses(listener.endpoint)
    assert (error.reason, error.errno) == ("in_use", errno.EADDRINUSE)


def test_a_cid_that_is_not_ours_is_not_local() -> None:
    error = refuses(VsockEndpoint(UNKNOWN_CID, 5000))
    assert (error.reason, error.errno) == ("not_local", errno.EADDRNOTAVAIL)


def test_a_kernel_with_only_the_loopback_has_no_local_cid() -> None:
    """The device answers VMADDR_CID_ANY, or with CID 1 where the kernel counts the loopback."""
    assert vsockproxy.local_cid() in (None, CID_LOCAL)


async def test_the_library_opens_trio_streams_and_listeners() -> None:
    [listener] = await vsockproxy.open_vsock_listeners(PORT_ANY, cid=CID_LOCAL)
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        async with await vsockproxy.open_vsock_stream(CID_LOCAL, port) as stream:
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await read_to_end(stream) == b"hello"
        nursery.cancel_scope.cancel()
