"""A fake relay that alters its target's answers in one way."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

Spoil = Callable[[bytes], bytes]
"""Returns the altered piece; empty: the relay closes the connection."""


@contextmanager
def spoiler(listen: Path, target: Path, spoil: Spoil) -> Iterator[None]:
    """Relay one connection after the other until the block ends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(listen))
        listener.listen()
        thread = Thread(target=_serve, args=(listener, target, spoil))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # ends the accept
            thread.join()


def _serve(listener: socket.socket, target: Path, spoil: Spoil) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
                server.connect(str(target))
                _relay(client, server, spoil)


def _relay(client: socket.socket, server: socket.socket, spoil: Spoil) -> None:
    """Relay a request unchanged and its answer altered."""
    while request := client.recv(1 << 16):
        server.sendall(request)
        answer = spoil(server.recv(1 << 16))
        if not answer:
            return
        client.sendall(answer)
