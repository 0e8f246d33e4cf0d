"""Fake echo services and their clients, over any address family.

For the scenarios that run inside a kernel; the standard library alone.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Final

TIMEOUT: Final = 30.0
"""Seconds; a client or a condition that takes longer has failed."""

Address = tuple[int, object]
"""An address family and its socket address, as `socket.connect` takes it."""


def serve(address: Address, greeting: bytes = b"") -> None:
    """Send a greeting and then echo, in background threads, until this program exits."""
    family, sockaddr = address
    server = socket.socket(family)
    if family == socket.AF_VSOCK:
        sockaddr = (socket.VMADDR_CID_ANY, sockaddr[1])  # type: ignore[index] # it is a tuple
    server.bind(sockaddr)  # type: ignore[arg-type] # as above
    server.listen(1024)

    def accept() -> None:
        while True:
            client, _ = server.accept()
            Thread(target=echo, args=(client,), daemon=True).start()

    def echo(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.sendall(greeting)
            while data := client.recv(1 << 16):
                client.sendall(data)

    Thread(target=accept, daemon=True).start()


def connect(address: Address) -> socket.socket:
    """Return a connected socket with a time limit; the caller closes it."""
    family, sockaddr = address
    sock = socket.socket(family)
    try:
        sock.settimeout(TIMEOUT)
        sock.connect(sockaddr)  # type: ignore[arg-type] # a tuple that fits the family
    except BaseException:
        sock.close()
        raise
    return sock


def round_trip(sock: socket.socket, data: bytes = b"hello") -> bytes:
    """Send ``data`` and return an answer of the same length, shorter after an EOF."""
    sock.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := sock.recv(1 << 16)):
        answer += more
    return answer


def exchange(address: Address, data: bytes = b"hello") -> str:
    """Connect, send, half-close and read to the end; return ``ok``, or an errno's name."""
    try:
        with connect(address) as sock:
            writer = Thread(target=send_all, args=(sock, data))
            writer.start()
            answer = b"".join(iter(lambda: sock.recv(1 << 16), b""))
            writer.join()
    except OSError as error:
        return error_name(error)
    return "ok" if answer == data else f"got {len(answer)} bytes: {answer[:20]!r}"


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send ``data`` and the FIN; ignore errors, which the reader sees too."""
    with suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def error_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, repr(error))


@contextmanager
def load(*addresses: Address) -> Iterator[Mapping[Address, Counter[str]]]:
    """Run one client after the other on each address; count the outcomes of `exchange`.

    The counts are complete once the block has ended.
    """
    outcomes = {address: Counter[str]() for address in addresses}
    stop = Event()

    def run(address: Address) -> None:
        while not stop.is_set():
            outcomes[address][exchange(address)] += 1

    threads = [Thread(target=run, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()
