"""systemd's end of sd_notify(3): the socket that $NOTIFY_SOCKET names, without a systemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

_PATIENCE: Final = 30.0
_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Message:
    """One datagram: its assignments, and the descriptors that came along, which are ours."""

    fields: Mapping[str, str]
    files: list[int]


class Manager:
    """Receives what a service says; made by `manager`."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(name.replace("@", "\0", 1))
        self.sock.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": name}
        self._files: list[int] = []

    def receive(self) -> Message:
        """The next message; raises BlockingIOError when there is none."""
        data, files, _, _ = socket.recv_fds(self.sock, _SIZE, 8)
        self._files += files
        return Message(dict(line.split("=", 1) for line in data.decode().split("\n")), files)

    async def wait_for(self, **wanted: str) -> Message:
        """The next message with these assignments; those before it are passed over."""
        with trio.fail_after(_PATIENCE):
            while True:
                await trio.lowlevel.wait_readable(self.sock)
                message = self.receive()
                if wanted.items() <= message.fields.items():
                    return message

    async def wait_for_word(self, word: str) -> str:
        """The value of the next message that assigns to this word."""
        while word not in (message := await self.wait_for()).fields:
            pass
        return message.fields[word]

    def close(self) -> None:
        """Close the socket, and every descriptor that came by it."""
        self.sock.close()
        for file in self._files:
            os.close(file)


@contextmanager
def manager(name: str | Path) -> Iterator[Manager]:
    """A manager at a path, or at an abstract name that starts with ``@``."""
    running = Manager(str(name))
    try:
        yield running
    finally:
        running.close()
