"""A pseudo-terminal for tests: it runs a program, sends keys and reads the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pyte
import trio

from tests.daemon_process import PATIENCE, environment


class Terminal:
    """A terminal and its program; created by `terminal`.

    Attributes:
      process: the program's.
      written: every byte that it has written so far.
    """

    def __init__(self, process: trio.Process, ours: int, columns: int, rows: int) -> None:
        self.process = process
        self.written = b""
        self._ours = ours
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._more = trio.Event()

    @property
    def lines(self) -> list[str]:
        """Return the lines of the screen."""
        return [line.rstrip() for line in self._screen.display]

    async def shows(self, expected: str | Callable[[list[str]], object]) -> list[str]:
        """Wait for a text on the screen or a condition on its lines; return the lines."""

        def is_shown() -> object:
            if isinstance(expected, str):
                return expected in "\n".join(self.lines)
            return expected(self.lines)

        with trio.move_on_after(PATIENCE):
            while not is_shown():
                await self._more.wait()
            return self.lines
        raise AssertionError("\n".join([f"not on the screen: {expected}", *self.lines]))

    async def type(self, keys: str) -> None:
        """Send keys."""
        os.write(self._ours, keys.encode())
        await trio.lowlevel.checkpoint()

    def resize(self, columns: int, rows: int) -> None:
        """Change the size; the kernel sends SIGWINCH to the program."""
        self._screen.resize(rows, columns)
        set_size(self._ours, columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    def mode(self) -> list[object]:
        """Return the settings: termios(3)."""
        return list(termios.tcgetattr(self._ours))

    async def wait(self) -> int:
        """Wait for the program's end; return its exit status."""
        with trio.fail_after(PATIENCE):
            return await self.process.wait()

    async def read(self) -> None:
        """Update the screen until the program ends; runs as a task beside the test."""
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the program has closed its end
                return
            self.written += data
            self._stream.feed(data)
            self._more.set()
            self._more = trio.Event()


def set_size(descriptor: int, columns: int, rows: int) -> None:
    """Set the size of a terminal: tty_ioctl(4)."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@asynccontextmanager
async def terminal(
    *arguments: str | Path,
    columns: int = 80,
    rows: int = 24,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Terminal]:
    """Run ``vsockproxy ARGUMENTS`` in a terminal while the block runs; kill it at the end."""
    ours, theirs = pty.openpty()
    set_size(theirs, columns, rows)
    variables = environment() | {"TERM": "xterm", "LANG": "C.UTF-8"} | dict(environ or {})
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        if name not in (environ or {}):
            variables.pop(name, None)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "vsockproxy", *map(str, arguments)],
        env=variables,
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    running = Terminal(process, ours, columns, rows)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.read)
            yield running
            nursery.cancel_scope.cancel()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        os.close(theirs)
        os.close(ours)
