"""What CPython's socket module cannot do for AF_VSOCK: 16-byte options, flags, the own CID.

Owns: the C calls, through cffi in ABI mode (no compiler needed), and the constants that
the socket module lacks.  Opens no stream and waits for nothing: `transport` does.

CPython takes only an int as the value of an AF_VSOCK option and writes it as 8 bytes, so
the connect timeout, a timeval, is out of its reach; its addresses are (cid, port), so
`svm_flags` is too (Modules/socketmodule.c).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

from vsockproxy.address.endpoint import AF_VSOCK, CID_ANY, VsockEndpoint

# linux/vm_sockets.h
CONNECT_TIMEOUT_OLD: Final = 6  # struct timeval of C's long
CONNECT_TIMEOUT_NEW: Final = 8  # struct __kernel_sock_timeval: 64 bits everywhere
KERNEL_CONNECT_TIMEOUT: Final = 2.0
"""Seconds after which Linux gives up a vsock connect by itself, also a non-blocking one."""

_GET_LOCAL_CID_LINUX: Final = 0x7B9  # _IO(7, 0xb9), on /dev/vsock
_GET_LOCAL_CID_DARWIN: Final = 0x400473D1  # _IOR('s', 209, uint32_t), on a socket
_TIMEVALS: Final = {
    CONNECT_TIMEOUT_NEW: struct.Struct("=qq"),
    CONNECT_TIMEOUT_OLD: struct.Struct("@ll"),
}
_LONGEST: Final = 2**31 - 1  # seconds that fit a long everywhere
_SOCKADDR_MAX: Final = 128  # sizeof(struct sockaddr_storage)

_DECLARATIONS: Final = """
    int connect(int, const void *, unsigned int);
    int getpeername(int, void *, unsigned int *);
    int getsockopt(int, int, int, void *, unsigned int *);
    int setsockopt(int, int, int, const void *, unsigned int);
"""


def set_connect_timeout(sock: socket.socket, seconds: float) -> None:
    """Have the kernel wait so long for an answer to a vsock connect; its own bound is 2 s.

    Raises OSError.
    """
    try:
        _set_timeout_option(sock, CONNECT_TIMEOUT_NEW, seconds)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        _set_timeout_option(sock, CONNECT_TIMEOUT_OLD, seconds)


def connect_timeout(sock: socket.socket) -> float:
    """The kernel's bound for a vsock connect, in seconds; raises OSError."""
    try:
        return _timeout_option(sock, CONNECT_TIMEOUT_NEW)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return _timeout_option(sock, CONNECT_TIMEOUT_OLD)


def pack_timeval(option: int, seconds: float) -> bytes:
    """``seconds`` as the timeval that ``option`` takes.

    Never zero, which would stand for the kernel's 2 s; bounded, so that inf is a number.
    """
    microseconds = max(1, round(min(seconds, _LONGEST) * 1e6))
    return _TIMEVALS[option].pack(*divmod(microseconds, 1_000_000))


def connect(sock: socket.socket, endpoint: VsockEndpoint) -> int:
    """connect(2) with the endpoint's flags; the errno, 0 when connected at once."""
    ffi, libc = _libc()
    address = endpoint.to_sockaddr()
    failed = libc.connect(sock.fileno(), address, len(address))
    return int(ffi.errno) if failed else 0


def peer(sock: socket.socket) -> VsockEndpoint:
    """getpeername(2) with the flags; raises OSError, or AddressError on another family."""
    ffi, libc = _libc()
    address = ffi.new("char[]", _SOCKADDR_MAX)
    size = ffi.new("unsigned int *", _SOCKADDR_MAX)
    _check(ffi, libc.getpeername(sock.fileno(), address, size))
    return VsockEndpoint.from_sockaddr(ffi.buffer(address, size[0])[:])


def local_cid(device: Path = Path("/dev/vsock")) -> int | None:
    """This machine's own CID, None when it cannot be known; never an error.

    A host without a transport has none, the device is often root's alone, and sandboxes
    hide it (``PrivateDevices=``): nothing of the proxy depends on it.
    """
    try:
        cid = read_local_cid(device)
    except OSError:
        return None
    return None if cid == CID_ANY else cid


def read_local_cid(device: Path = Path("/dev/vsock")) -> int:
    """This machine's own CID, `CID_ANY` where no transport gives it one.

    Raises OSError: ENOENT without the device, EACCES where it is root's alone.
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


def _set_timeout_option(sock: socket.socket, option: int, seconds: float) -> None:
    ffi, libc = _libc()
    value = pack_timeval(option, seconds)
    _check(ffi, libc.setsockopt(sock.fileno(), AF_VSOCK, option, value, len(value)))


def _timeout_option(sock: socket.socket, option: int) -> float:
    ffi, libc = _libc()
    layout = _TIMEVALS[option]
    value = ffi.new("char[]", layout.size)
    size = ffi.new("unsigned int *", layout.size)
    _check(ffi, libc.getsockopt(sock.fileno(), AF_VSOCK, option, value, size))
    seconds, microseconds = layout.unpack(ffi.buffer(value)[:])
    return float(seconds + microseconds / 1e6)


def _check(ffi: Any, failed: int) -> None:
    if failed:
        raise OSError(ffi.errno, os.strerror(ffi.errno))


@cache
def _libc() -> tuple[Any, Any]:
    """Cffi and the process's own C library, opened at the first use (30 ms)."""
    import cffi  # noqa: PLC0415 - parsing C is slow to load, and few dials need it

    ffi = cffi.FFI()
    ffi.cdef(_DECLARATIONS)
    return ffi, ffi.dlopen(None)
