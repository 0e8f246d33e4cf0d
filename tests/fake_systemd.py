"""A fake of systemd's end of sd_notify(3): the socket that $NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

_TIMEOUT: Final = 30.0
_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Message:
    """One datagram: its assignments, and its descriptors, which `FakeSystemd.close` closes."""

    fields: Mapping[str, str]
    files: list[int]


class FakeSystemd:
    """Receives the notifications of a service; created by `fake_systemd`."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(name.replace("@", "\0", 1))
        self.sock.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": name}
        self._files: list[int] = []

    def receive(self) -> Message:
        """Return the next message; raise BlockingIOError if there is none."""
        data, files, _, _ = socket.recv_fds(self.sock, _SIZE, 8)
        self._files += files
        return Message(dict(line.split("=", 1) for line in data.decode().split("\n")), files)

    async def wait_for(self, **expected: str) -> Message:
        """Return the next message with these assignments; discard the messages before it."""
        with trio.fail_after(_TIMEOUT):
            while True:
                await trio.lowlevel.wait_readable(self.sock)
                message = self.receive()
                if expected.items() <= message.fields.items():
                    return message

    async def wait_for_key(self, key: str) -> str:
        """Return the value of the next message that assigns to this key."""
        while key not in (message := await self.wait_for()).fields:
            pass
        return message.fields[key]

    def close(self) -> None:
        """Close the socket and every received descriptor."""
        self.sock.close()
        for file in self._files:
            os.close(file)


@contextmanager
def fake_systemd(name: str | Path) -> Iterator[FakeSystemd]:
    """Run a fake at a path, or at an abstract name that starts with ``@``."""
    running = FakeSystemd(str(name))
    try:
        yield running
    finally:
        running.close()
