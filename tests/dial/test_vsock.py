"""The C calls behind vsock, tested without AF_VSOCK."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import CID_ANY, VsockEndpoint
from vsockproxy.dial import vsock
from vsockproxy.errors import AddressError

OPTIONS = [vsock.CONNECT_TIMEOUT_NEW, vsock.CONNECT_TIMEOUT_OLD]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_timeout_is_seconds_and_microseconds(option: int) -> None:
    packed = vsock.pack_timeval(option, 4.5)
    assert struct.unpack("@ll" if option == vsock.CONNECT_TIMEOUT_OLD else "=qq", packed) == (
        4,
        500_000,
    )


def test_the_newer_timeval_has_16_bytes_everywhere() -> None:
    assert vsock.pack_timeval(vsock.CONNECT_TIMEOUT_NEW, 4.5) == bytes.fromhex(
        "0400000000000000 20a1070000000000"
        if sys.byteorder == "little"
        else "0000000000000004 000000000007a120"
    )


@pytest.mark.parametrize("option", OPTIONS)
@given(seconds=st.floats(min_value=0))
def test_every_timeout_packs_to_a_timeval_that_the_kernel_takes(
    option: int, seconds: float
) -> None:
    """Zero would mean the default, and 1e6 microseconds are ERANGE."""
    packed = vsock.pack_timeval(option, seconds)
    whole, micro = struct.unpack("@ll" if option == vsock.CONNECT_TIMEOUT_OLD else "=qq", packed)
    assert whole + micro > 0
    assert 0 <= whole < 2**31
    assert 0 <= micro < 1_000_000
    if seconds < 2**31 - 1:
        assert whole + micro / 1e6 == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_timeout_on_a_socket_of_another_family_raises_the_kernels_error(
    family: socket.AddressFamily,
) -> None:
    """TCP returns ENOPROTOOPT, so both numbers of the option have been tried."""
    with socket.socket(family) as sock:
        for call in (
            lambda: vsock.set_connect_timeout(sock, 3),
            lambda: vsock.connect_timeout(sock),
        ):
            with pytest.raises(OSError, match=r".") as caught:
                call()
            assert caught.value.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP)


def test_connect_returns_the_kernels_errno(tmp_path: Path) -> None:
    """A TCP socket takes no vsock address, but the struct has reached the kernel."""
    with socket.socket() as sock:
        assert vsock.connect(sock, VsockEndpoint(3, 80, to_host=True)) == errno.EAFNOSUPPORT
    with socket.socket() as sock:
        sock.close()
        assert vsock.connect(sock, VsockEndpoint(3, 80)) == errno.EBADF


def test_a_peer_of_another_family_raises_an_address_error() -> None:
    left, right = socket.socketpair()
    with left, right, pytest.raises(AddressError):
        vsock.peer(left)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        pytest.raises(AddressError, match="not AF_VSOCK"),
    ):
        vsock.peer(client)


def test_a_socket_without_a_peer_raises_enotconn() -> None:
    with socket.socket() as sock, pytest.raises(OSError, match=r".") as caught:
        vsock.peer(sock)
    assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("device", ["none", "folder", "file", "none/at/all"])
def test_a_path_that_is_not_the_device_means_an_unknown_cid(tmp_path: Path, device: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with no_descriptor_left_over():
        assert vsock.local_cid(tmp_path / device) is None


def test_a_device_without_permission_means_an_unknown_cid(tmp_path: Path) -> None:
    (tmp_path / "vsock").touch(0)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
    try:
        assert vsock.local_cid(tmp_path / "vsock") is None
    finally:
        os.seteuid(uid)


@pytest.mark.parametrize(("answer", "cid"), [(2, 2), (0xF0000001, 0xF0000001), (CID_ANY, None)])
def test_the_devices_answer_is_unsigned_and_cid_any_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: int, cid: int | None
) -> None:
    """A fake ioctl answers; its type is from vsock(7)."""

    def ioctl(descriptor: int, request: int, argument: bytes) -> bytes:
        assert (request, len(argument)) == (0x7B9, 4)
        return struct.pack("=I", answer)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    (tmp_path / "vsock").touch()
    assert vsock.local_cid(tmp_path / "vsock") == cid


def test_dialling_does_not_load_cffi() -> None:
    """cffi's parser costs tens of milliseconds; ctypes serves here."""
    code = "import sys, vsockproxy.dial.dial; sys.exit('cffi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_endpoints_are_imported_without_trio() -> None:
    code = "import sys, vsockproxy.address.endpoint; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
