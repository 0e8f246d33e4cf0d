"""Fixtures of the command's tests: sockets, a full disk, and configuration files."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """Yield a TCP listener on a free port, to pass to the daemon."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def target(tmp_path: Path) -> Iterator[socket.socket]:
    """Yield a Unix listener as the target; only the test accepts its connections."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "target"))
        sock.listen()
        yield sock


@pytest.fixture
def full() -> Iterator[int]:
    """Yield the descriptor of a file on a full disk."""
    with Path("/dev/full").open("w") as file:
        yield file.fileno()


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, target: socket.socket) -> Write:
    """Return a function that writes a file with the route ``fd:web`` to ``target``, and more."""

    def written(more: str = "", name: str = "config.toml") -> Path:
        file = tmp_path / name
        file.write_text(f'[forward]\n"fd:web" = "unix:{target.getsockname()}"\n{more}')
        return file

    return written
