"""Dial AF_VSOCK, with what CPython's socket module lacks: flags, 16-byte options, the own CID.

Owns: the C calls, through ctypes, and the constants that the socket module lacks.

CPython's AF_VSOCK addresses are (cid, port), without `svm_flags`; and it writes the value of an
AF_VSOCK option as an 8-byte integer, which is too short for the connect timeout, a timeval
(Modules/socketmodule.c).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from vsockproxy.address.endpoint import AF_VSOCK, CID_ANY, VsockEndpoint
from vsockproxy.address.sockaddr import borrowed
from vsockproxy.dial.connecting import connected, open_socket
from vsockproxy.dial.sockopt import Options
from vsockproxy.errors import dial_error

# linux/vm_sockets.h
CONNECT_TIMEOUT_OLD: Final = 6  # struct timeval of C's long
CONNECT_TIMEOUT_NEW: Final = 8  # struct __kernel_sock_timeval: 64 bits everywhere
KERNEL_CONNECT_TIMEOUT: Final = 2.0
"""Seconds after which Linux gives up a vsock connect on its own, even a non-blocking one."""

_GET_LOCAL_CID_LINUX: Final = 0x7B9  # _IO(7, 0xb9), on /dev/vsock
_GET_LOCAL_CID_DARWIN: Final = 0x400473D1  # _IOR('s', 209, uint32_t), on a socket
_TIMEVALS: Final = {
    CONNECT_TIMEOUT_NEW: struct.Struct("=qq"),
    CONNECT_TIMEOUT_OLD: struct.Struct("@ll"),
}
_LONGEST: Final = 2**31 - 1  # seconds that fit a long everywhere
_SOCKADDR_MAX: Final = 128  # sizeof(struct sockaddr_storage)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_LIBC.getpeername.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint))


def set_connect_timeout(sock: socket.socket, seconds: float) -> None:
    """Set how long the kernel waits for the answer to a vsock connect; its default is 2 s.

    Raises:
      OSError: ENOPROTOOPT where the kernel has no such option.
    """
    try:
        _set_timeout_option(sock, CONNECT_TIMEOUT_NEW, seconds)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        _set_timeout_option(sock, CONNECT_TIMEOUT_OLD, seconds)


def connect_timeout(sock: socket.socket) -> float:
    """Return how long the kernel waits for the answer to a vsock connect, in seconds.

    Raises:
      OSError: ENOPROTOOPT where the kernel has no such option.
    """
    try:
        return _timeout_option(sock, CONNECT_TIMEOUT_NEW)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return _timeout_option(sock, CONNECT_TIMEOUT_OLD)


def pack_timeval(option: int, seconds: float) -> bytes:
    """Return ``seconds`` as the timeval that ``option`` takes.

    The result is never zero, which would mean the kernel's default; it is bounded, so that inf is
    allowed.
    """
    microseconds = max(1, round(min(seconds, _LONGEST) * 1e6))
    return _TIMEVALS[option].pack(*divmod(microseconds, 1_000_000))


async def dial(
    endpoint: VsockEndpoint, timeout: float, deadline: float, options: Options
) -> socket.socket:
    """Return a socket connected to a vsock port; see `dial.dial`.

    Raises OSError, and `DialError` where this system has no AF_VSOCK.
    """
    known = hasattr(socket, "AF_VSOCK")
    if not known and sys.platform != "darwin":
        raise dial_error(endpoint, "no_vsock")

    async def connect_sock(sock: socket.socket) -> None:
        if timeout > KERNEL_CONNECT_TIMEOUT:
            with suppress(OSError):  # the kernel's limit of 2 s stays
                set_connect_timeout(sock, timeout)
        if endpoint.to_host or not known:
            code = connect(sock, endpoint)
        else:
            code = sock.connect_ex((endpoint.cid, endpoint.port))
        await connected(sock, code, deadline)

    return await open_socket(AF_VSOCK, connect_sock, options)


def connect(sock: socket.socket, endpoint: VsockEndpoint) -> int:
    """Call connect(2) with the endpoint's flags; return the errno, or 0 if it is connected."""
    address = endpoint.to_sockaddr()
    failed = _LIBC.connect(sock.fileno(), address, len(address))
    return ctypes.get_errno() if failed else 0


def peer(sock: socket.socket) -> VsockEndpoint:
    """Return the peer's address with its flags, by getpeername(2).

    Raises:
      OSError: ENOTCONN where the socket is not connected.
      AddressError: the socket is of another family.
    """
    address = ctypes.create_string_buffer(_SOCKADDR_MAX)
    size = ctypes.pointer(ctypes.c_uint(_SOCKADDR_MAX))
    if _LIBC.getpeername(sock.fileno(), address, size):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return VsockEndpoint.from_sockaddr(address.raw[: size[0]])


def local_cid(device: Path = Path("/dev/vsock")) -> int | None:
    """Return this machine's own CID, or None where it is unknown; never raises.

    A host without a transport has no CID, the device often is root's alone, and sandboxes hide it
    (``PrivateDevices=``): the proxy works without it.
    """
    try:
        cid = read_local_cid(device)
    except OSError:
        return None
    return None if cid == CID_ANY else cid


def read_local_cid(device: Path = Path("/dev/vsock")) -> int:
    """Return this machine's own CID, or `CID_ANY` where no transport gives it one.

    Raises:
      OSError: ENOENT without the device, EACCES where it is root's alone.
    """
    return _local_cid_of_socket() if sys.platform == "darwin" else _local_cid_of(device)


def _local_cid_of(device: Path) -> int:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return _read_cid(descriptor, _GET_LOCAL_CID_LINUX)
    finally:
        os.close(descriptor)


def _local_cid_of_socket() -> int:
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as sock:
        return _read_cid(sock.fileno(), _GET_LOCAL_CID_DARWIN)


def _read_cid(descriptor: int, request: int) -> int:
    answer = fcntl.ioctl(descriptor, request, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


# For any other family than AF_VSOCK, CPython passes the bytes of an option on as they are.


def _set_timeout_option(sock: socket.socket, option: int, seconds: float) -> None:
    with borrowed(sock.fileno(), socket.AF_INET) as plain:
        plain.setsockopt(AF_VSOCK, option, pack_timeval(option, seconds))


def _timeout_option(sock: socket.socket, option: int) -> float:
    layout = _TIMEVALS[option]
    with borrowed(sock.fileno(), socket.AF_INET) as plain:
        seconds, microseconds = layout.unpack(plain.getsockopt(AF_VSOCK, option, layout.size))
    return float(seconds + microseconds / 1e6)
