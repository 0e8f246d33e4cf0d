"""Read, start and stop the proxies that are compared.

Owns: `Peer`, the format of ``peers.toml``, and a proxy's process.  Knows nothing of the
measurements.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vsockproxy.address.endpoint import CID_LOCAL

PATIENCE: Final = 20.0
"""Seconds for a proxy to start or to end."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One table of ``peers.toml`` or ``peers-by-name.toml``, which explain the keys."""

    name: str
    command: str
    version: str
    config: str = ""
    most: int = sys.maxsize
    reader: str = ""
    front: str = "tcp"

    @property
    def installed(self) -> bool:
        """Return whether each program of its command is installed."""
        words = _fill(self.command, {"python": sys.executable}).split()
        programs = [words[0], *(word for word in words[1:] if word.startswith("/"))]
        return all(shutil.which(program) for program in programs)

    def version_line(self) -> str:
        """Return the first line of output with a version."""
        command = shlex.split(_fill(self.version, {"python": sys.executable}))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        return next((line.strip() for line in lines if any(c.isdigit() for c in line)), "unknown")


def read_peers(file: Path) -> list[Peer]:
    """Return all tables of a file, in its order."""
    return [Peer(name, **table) for name, table in tomllib.loads(file.read_text()).items()]


@contextmanager
def running(peer: Peer, folder: Path, target: str, cpus: Sequence[int]) -> Iterator[Proxy]:
    """Run a proxy of that peer in front of an address, on these processors, until the block ends.

    Raises SystemExit with the proxy's output when it does not start.
    """
    home = folder / str(time.monotonic_ns())  # a name without spaces, for the commands
    home.mkdir()
    port = free_port()
    words = {
        "python": sys.executable,
        "listen_port": str(port),
        "target_path": target.partition(":")[2],
        "folder": str(home),
        "config_path": str(home / "config.toml"),
    }
    (home / "config.toml").write_text(_fill(peer.config, words))
    command = shlex.split(_fill(peer.command, words))
    with (home / "output").open("wb") as output, pinned(cpus):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        proxy = Proxy(process.pid, port, home, peer.front)
        _await_listener(process, proxy)
        yield proxy
    finally:
        _stop(process)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A running proxy: the first process of its tree, its port, its {folder} and its front."""

    pid: int
    port: int
    folder: Path
    front: str

    @property
    def address(self) -> str:
        """The proxy's address as the load program takes it."""
        here = f"vsock:{CID_LOCAL}" if self.front == "vsock" else "tcp:127.0.0.1"
        return f"{here}:{self.port}"

    def connect(self) -> None:
        """Connect once; raises OSError."""
        vsock = self.front == "vsock"
        with socket.socket(socket.AF_VSOCK if vsock else socket.AF_INET) as sock:
            sock.connect((CID_LOCAL if vsock else "127.0.0.1", self.port))


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Run the processes started in the block on these processors; on all of them if empty."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _fill(template: str, words: Mapping[str, str]) -> str:
    """Replace the placeholders; other braces belong to the peer's configuration language."""
    for name, value in words.items():
        template = template.replace(f"{{{name}}}", value)
    return template


def free_port() -> int:
    """Return a port of the loopback on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _await_listener(process: subprocess.Popen[bytes], proxy: Proxy) -> None:
    """Wait until the port accepts; polled, as a foreign program does not report that it listens."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and process.poll() is None:
        try:
            proxy.connect()
        except (ConnectionRefusedError, ConnectionResetError):  # AF_VSOCK refuses by the latter
            time.sleep(0.02)
        else:
            return
    output = (proxy.folder / "output").read_text(errors="replace")
    raise SystemExit(f"{process.args!r} does not listen:\n{output}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the proxy's whole session: socat has a child for each connection."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            continue
