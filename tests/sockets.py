"""Pairs of connected sockets of each family, and operations on them."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from _pytest.mark import ParameterSet

Pair = tuple[socket.socket, socket.socket]

AF_VSOCK = 40
CID_LOCAL = 1
_SIOCOUTQNSD = 0x894B  # linux/sockios.h


def tcp_pair() -> Pair:
    """Return the ends of a TCP connection over the loopback, the dialling one first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _non_blocking(near, far)


def unix_pair() -> Pair:
    """Return the ends of a Unix stream."""
    near, far = socket.socketpair()
    return _non_blocking(near, far)


def vsock_pair() -> Pair:
    """Return the ends of a vsock connection over the loopback; only in a test kernel."""
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((0xFFFFFFFF, 0xFFFFFFFF))
        listener.listen()
        near = socket.socket(AF_VSOCK, socket.SOCK_STREAM)
        near.connect((CID_LOCAL, listener.getsockname()[1]))
        far, _ = listener.accept()
    return _non_blocking(near, far)


def _non_blocking(*pair: socket.socket) -> Pair:
    near, far = pair
    near.setblocking(False)
    far.setblocking(False)
    return near, far


PAIRS: dict[str, Callable[[], Pair]] = {"tcp": tcp_pair, "unix": unix_pair, "vsock": vsock_pair}


def transports(clients: Sequence[str] = ("tcp", "unix", "vsock")) -> list[ParameterSet]:
    """Return all (client, target) pairs of families as parameters; mark those with vsock."""
    return [
        pytest.param(
            (client, target),
            id=f"{client}-{target}",
            marks=[pytest.mark.vsock] if "vsock" in (client, target) else [],
        )
        for client in clients
        for target in ("tcp", "unix", "vsock")
    ]


def stream(sock: socket.socket) -> trio.SocketStream:
    """Return a trio stream that owns a connected socket."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def connected(listener: socket.socket) -> trio.SocketStream:
    """Return a new client of a listener."""
    client = trio.socket.socket(listener.family)
    await client.connect(listener.getsockname())
    return trio.SocketStream(client)


def reset(sock: socket.socket) -> None:
    """Close the socket with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def queued_bytes(sock: trio.socket.SocketType | socket.socket) -> int:
    """Return how many bytes, a TCP FIN among them, the other side's kernel has not taken yet."""
    return _asked(sock, termios.TIOCOUTQ)


def unread_bytes(sock: trio.socket.SocketType | socket.socket) -> int:
    """Return how many bytes have come and were not read yet."""
    return _asked(sock, termios.FIONREAD)


async def read_to_end(source: trio.abc.ReceiveStream) -> bytes:
    """Return all bytes up to EOF."""
    return b"".join([chunk async for chunk in source])


def unsent_bytes(sock: trio.socket.SocketType | socket.socket) -> int:
    """Return how many bytes, a FIN among them, TCP has not sent; on the loopback sent is there."""
    return _asked(sock, _SIOCOUTQNSD)


def _asked(sock: trio.socket.SocketType | socket.socket, request: int) -> int:
    answer = fcntl.ioctl(sock.fileno(), request, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


async def read_to_reset(source: trio.SocketStream) -> bytes:
    """Return all bytes up to a reset; fails at an EOF."""
    received = bytearray()
    try:
        async for chunk in source:
            received += chunk
    except trio.BrokenResourceError:
        return bytes(received)
    raise AssertionError("EOF instead of a reset")


async def ends_by_reset(source: trio.SocketStream) -> bool:
    """Read the stream to its end, close it, and return whether it ended in a reset."""
    async with source:
        try:
            await read_to_end(source)
        except trio.BrokenResourceError as error:
            return isinstance(error.__cause__, ConnectionResetError)
        return False


def open_descriptors() -> set[str]:
    """Return the files that this process has open, by the kernel's names."""
    names = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            names.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:  # the descriptor of the listing
            continue
    return names


@contextmanager
def no_descriptor_left_over() -> Iterator[None]:
    """Assert that the block closes every descriptor that it opens."""
    before = open_descriptors()
    yield
    assert open_descriptors() - before == set()
