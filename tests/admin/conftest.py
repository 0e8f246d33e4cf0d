"""A TCP listener for the HTTP side of the daemon, and its URLs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """Yield a non-blocking TCP listener on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


def url(sock: socket.socket, path: str = "") -> str:
    """Return the URL of a path of the server at a listener."""
    return f"http://127.0.0.1:{sock.getsockname()[1]}{path}"
