"""Darwin's addresses, ioctl and errnos, tested on other systems.

Nothing here ran on a Mac: fakes answer as its vsock(4) and bsd/kern/vsock_domain.c say.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vsockproxy.address.endpoint import AF_VSOCK, VsockEndpoint
from vsockproxy.dial import connecting, vsock
from vsockproxy.dial.dial import dial
from vsockproxy.errors import DialError, ListenError
from vsockproxy.listen.bind import listen

TARGET = VsockEndpoint(2, 12345)
TARGET_BYTES = bytes.fromhex("0c 28 0000 39300000 02000000")


@pytest.fixture(autouse=True)
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as on a Mac, where CPython has no AF_VSOCK."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)


class FakeLibc:
    """Fake of Darwin's C library: connect(2) and getpeername(2) on one socket."""

    def __init__(self, code: int) -> None:
        self._code = code
        self.dialled: list[bytes] = []

    def connect(self, descriptor: int, address: bytes, size: int) -> int:
        assert size == len(address)
        self.dialled.append(address)
        ctypes.set_errno(self._code)
        return -1 if self._code else 0

    def getpeername(self, descriptor: int, address: ctypes.Array[ctypes.c_char], size: Any) -> int:
        ctypes.memmove(address, TARGET_BYTES, len(TARGET_BYTES))
        size[0] = len(TARGET_BYTES)
        return 0


class FakeGuest:
    """Fake of a Mac guest's vsock: a Unix socket with Darwin's answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int, so_error: int = 0) -> None:
        near, self.far = socket.socketpair()
        self.libc = FakeLibc(code)

        class Vsock(socket.socket):
            def getsockopt(self, *arguments: int) -> int:  # type: ignore[override] # no buflen
                is_error = arguments == (socket.SOL_SOCKET, socket.SO_ERROR)
                return so_error if is_error else super().getsockopt(*arguments)

        self.sock = Vsock(fileno=near.detach())
        self.sock.setblocking(False)

        def make(family: int) -> socket.socket:
            assert family == AF_VSOCK
            return self.sock

        monkeypatch.setattr(connecting, "new_socket", make)
        monkeypatch.setattr(vsock, "_LIBC", self.libc)
        monkeypatch.setattr(vsock, "set_connect_timeout", refuses_option)


def refuses_option(sock: socket.socket, seconds: float) -> None:
    raise OSError(errno.ENOPROTOOPT, "Darwin has no such option")


def no_device(family: int) -> socket.socket:
    assert family == AF_VSOCK
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


async def test_a_dial_from_a_mac_guest_sends_darwins_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = FakeGuest(monkeypatch, 0)
    with guest.far, await dial(TARGET, 5) as sock:
        assert guest.libc.dialled == [TARGET_BYTES]
        assert vsock.peer(sock) == TARGET


@pytest.mark.parametrize(
    ("code", "so_error"), [(errno.EAGAIN, 0), (errno.EINPROGRESS, errno.EAGAIN)]
)
async def test_eagain_is_reported_as_refused(
    monkeypatch: pytest.MonkeyPatch, code: int, so_error: int
) -> None:
    """Both from connect(2) and from SO_ERROR once the socket is writable."""
    guest = FakeGuest(monkeypatch, code, so_error)
    with guest.far, pytest.raises(DialError, match="nothing listens on its port 12345") as caught:
        await dial(TARGET, 5)
    assert (caught.value.reason, caught.value.errno) == ("refused", errno.EAGAIN)
    assert guest.sock.fileno() == -1


async def test_efault_is_reported_as_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = FakeGuest(monkeypatch, errno.EFAULT)
    with guest.far, pytest.raises(DialError) as caught:
        await dial(VsockEndpoint(7, 80), 5)
    assert caught.value.reason == "invalid"


async def test_a_vsock_dial_from_a_mac_host_suggests_unix_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "new_socket", no_device)
    with pytest.raises(DialError, match=r"only as a guest.*unix:") as caught:
        await dial(TARGET, 5)
    assert (caught.value.reason, caught.value.errno) == ("unsupported", errno.ENODEV)


def test_listening_on_vsock_on_a_mac_is_unsupported() -> None:
    with pytest.raises(ListenError) as caught:
        listen(VsockEndpoint(port=80), 16, {})
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize(("answer", "cid"), [(3, 3), (0xF0000001, 0xF0000001), (0xFFFFFFFF, None)])
def test_the_own_cid_comes_from_a_sockets_ioctl(
    monkeypatch: pytest.MonkeyPatch, answer: int, cid: int | None
) -> None:
    def ioctl(descriptor: int, request: int, argument: bytes) -> bytes:
        assert (request, len(argument)) == (0x400473D1, 4)
        return struct.pack("=I", answer)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(vsock, "socket", _sockets(lambda: socket.socket(socket.AF_UNIX)))
    assert vsock.local_cid() == cid


def test_the_own_cid_of_a_mac_host_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "socket", _sockets(lambda: no_device(AF_VSOCK)))
    assert vsock.local_cid() is None


def _sockets(make: Callable[[], socket.socket]) -> object:
    """Return a fake socket module whose only call makes a vsock."""

    class Module:
        SOCK_STREAM = socket.SOCK_STREAM

        @staticmethod
        def socket(family: int, kind: int) -> socket.socket:
            assert (family, kind) == (AF_VSOCK, socket.SOCK_STREAM)
            return make()

    return Module
