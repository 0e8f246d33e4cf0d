"""The program as a real process, observed by its log.

For tests of the commands and of the whole path.  A daemon whose TCP ports must be free
ones gets its listeners from the test, as systemd would hand them in: bind port 0, pass the
sockets by name, and write ``fd:NAME`` in the configuration.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

REPOSITORY: Final = Path(__file__).parents[1]
GUARD: Final = Path(__file__).parent / "guard"
PATIENCE: Final = 30.0
"""Seconds to wait for an expected event; only a failing test waits this long."""

# sd_listen_fds(3): sockets from 3 upwards, and the process's own number in LISTEN_PID,
# which exec keeps.
_HAND_IN: Final = """
import fcntl, os, sys
files = [fcntl.fcntl(int(n), fcntl.F_DUPFD_CLOEXEC, 500) for n in sys.argv[1].split()]
os.closerange(3, 500)
for number, file in enumerate(files, 3):
    os.dup2(file, number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vsockproxy", *sys.argv[2:]])
"""

Event = dict[str, str]
"""Keys and values of one logfmt line."""


class Daemon:
    """A running `vsockproxy`; created by `daemon`.

    Attributes:
      process: its process.
      lines: what it has written to standard error so far, without newlines.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._unseen: list[Event] = []
        self._output = b""
        self._more = trio.Event()
        self._ended = trio.Event()

    @property
    def pid(self) -> int:
        """Return its pid."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Return its standard output so far."""
        return self._output.decode()

    async def wait_for(self, event: str, **fields: object) -> Event:
        """Return the next line of the log with this event and these values; each line is used once.

        Fails, showing the log, when the daemon ends or says nothing of the kind.
        """
        expected = {"event": event, **{key: str(value) for key, value in fields.items()}}
        with trio.move_on_after(PATIENCE):
            while (found := self._take(expected)) is None and not self._ended.is_set():
                await self._more.wait()
            if found is not None:
                return found
        raise AssertionError("\n".join([f"no {expected} in the log:", *self.lines]))

    async def wait_for_output(self, text: str) -> None:
        """Wait until ``text`` is on standard output."""
        with trio.fail_after(PATIENCE):
            while text not in self.output:
                await self._more.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end; return the exit status, negative for a signal."""
        with trio.fail_after(PATIENCE):
            await self._ended.wait()
            return await self.process.wait()

    async def stop(self) -> int:
        """Drain it, wait for its end, and return the exit status."""
        self.send_signal(signal.SIGTERM)
        return await self.wait()

    def _take(self, expected: Event) -> Event | None:
        for index, event in enumerate(self._unseen):
            if expected.items() <= event.items():
                return self._unseen.pop(index)
        return None

    async def read_log(self) -> None:
        """Collect standard error until EOF; runs as a task beside the test."""
        rest = b""
        if self.process.stderr is not None:
            async for piece in self.process.stderr:
                *lines, rest = (rest + piece).split(b"\n")
                self._add(line.decode() for line in lines)
        self._ended.set()
        self._tell()

    def _add(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.lines.append(line)
            self._unseen.append(parse_logfmt(line))
        self._tell()

    async def read_output(self) -> None:
        """Collect standard output until EOF; runs as a task beside the test."""
        assert self.process.stdout is not None
        async for piece in self.process.stdout:
            self._output += piece
            self._tell()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()


@asynccontextmanager
async def daemon(
    *arguments: str | Path,
    sockets: Mapping[str, socket.socket | Sequence[socket.socket]] | None = None,
    environ: Mapping[str, str] | None = None,
    log: int = subprocess.PIPE,
    stdin: int = subprocess.DEVNULL,
) -> AsyncIterator[Daemon]:
    """Run ``vsockproxy ARGUMENTS`` while the block runs; kill it if it still runs at the end.

    ``sockets`` are handed in under their names, for ``fd:NAME``; they stay the test's.
    Its log goes to ``log`` instead of to the test where that is given.  A traceback in the
    log fails the test.
    """
    names, files = _spread(sockets or {})
    command = [sys.executable, "-m", "vsockproxy"]
    variables = {**environment(), **(environ or {})}
    if files:
        command = [sys.executable, "-c", _HAND_IN, " ".join(map(str, files))]
        variables |= {"LISTEN_FDS": str(len(files)), "LISTEN_FDNAMES": ":".join(names)}
    process = await trio.lowlevel.open_process(
        [*command, *map(str, arguments)],
        env=variables,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=log,
        pass_fds=files,
    )
    running = Daemon(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.read_log)
        nursery.start_soon(running.read_output)
        try:
            yield running
        finally:
            process.kill()  # no effect after its end
            with trio.CancelScope(shield=True):
                await process.wait()
    assert not [line for line in running.lines if "Traceback" in line], "\n".join(running.lines)


def command(
    *arguments: str | Path,
    environ: Mapping[str, str] | None = None,
    stdout: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run ``vsockproxy ARGUMENTS`` to its end; fail the test on a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "vsockproxy", *map(str, arguments)],
        env={**environment(), **(environ or {})},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def environment() -> dict[str, str]:
    """Return the environment with the guard and this repository, without a configuration.

    A daemon that this user runs besides is not found, and a daemon has a control socket only
    where the test or its configuration names a place.
    """
    variables = {key: value for key, value in os.environ.items() if not _is_ours(key)}
    paths = (str(GUARD), os.environ.get("PYTHONPATH"), str(REPOSITORY))
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    variables["XDG_RUNTIME_DIR"] = variables["RUNTIME_DIRECTORY"] = "/nonexistent"
    variables.pop("PYTHONUNBUFFERED", None)  # it would split lines on a pipe
    variables["PYTHONWARNINGS"] = "error"  # an unclosed resource is a traceback
    return variables


def _is_ours(variable: str) -> bool:
    """Return whether a variable is only for this process; the guard's is for every process."""
    if variable == "VSOCKPROXY_TEST_KERNEL":
        return False
    return variable.startswith(("VSOCKPROXY_", "LISTEN_"))


def parse_logfmt(line: str) -> Event:
    """Return the keys and values of a logfmt line; none for another line."""
    try:
        words = shlex.split(line)
    except ValueError:  # a sentence with an apostrophe
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _spread(
    sockets: Mapping[str, socket.socket | Sequence[socket.socket]],
) -> tuple[list[str], list[int]]:
    names: list[str] = []
    files: list[int] = []
    for name, value in sockets.items():
        for sock in [value] if isinstance(value, socket.socket) else value:
            names.append(name)
            files.append(sock.fileno())
    return names, files
