"""Services that echo, and clients that ask them, over any address family.

For stories that play inside a kernel, with nothing but the standard library.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Final

PATIENCE: Final = 30.0
"""Seconds to wait for what must happen."""

Address = tuple[int, object]
"""An address family, and what connect(2) takes there."""


def serve(address: Address, greeting: bytes = b"") -> None:
    """Echo on an address, after a greeting, until the end of this program."""
    family, where = address
    server = socket.socket(family)
    if family == socket.AF_VSOCK:
        where = (socket.VMADDR_CID_ANY, where[1])  # type: ignore[index] # it is a tuple
    server.bind(where)  # type: ignore[arg-type] # as above
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
    family, where = address
    sock = socket.socket(family)
    try:
        sock.settimeout(PATIENCE)
        sock.connect(where)  # type: ignore[arg-type] # a tuple that fits the family
    except BaseException:
        sock.close()
        raise
    return sock


def ask(sock: socket.socket, data: bytes = b"hello") -> bytes:
    """Send, and take as much back."""
    sock.sendall(data)
    answer = b""
    while len(answer) < len(data) and (more := sock.recv(1 << 16)):
        answer += more
    return answer


def exchange(address: Address, data: bytes = b"hello") -> str:
    """What came of a whole connection with a half-close: ``ok``, or an errno's name."""
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
    with suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def error_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, repr(error))


@contextmanager
def load(*addresses: Address) -> Iterator[Mapping[Address, Counter[str]]]:
    """One client after the other on each address; their outcomes, complete afterwards."""
    outcomes = {address: Counter[str]() for address in addresses}
    enough = Event()

    def run(address: Address) -> None:
        while not enough.is_set():
            outcomes[address][exchange(address)] += 1

    threads = [Thread(target=run, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        enough.set()
        for thread in threads:
            thread.join()
