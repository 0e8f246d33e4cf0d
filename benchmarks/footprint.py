"""Measure the daemon at rest: memory of an idle connection, and time until it is ready.

    python benchmarks/footprint.py [--connections 4000] [--routes 1000]

Prints the daemon's private memory without and with idle connections, what one connection
adds, and how long a daemon with one, ten and many routes takes from its start to `ready`.
All sockets are on the loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ADDRESS = "127.77.0.1"  # of the loopback's network; nothing else listens there
FIRST_PORT = 20000


def main() -> None:
    """Measure, and print the figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--connections", type=int, default=4000)
    options.add_argument("--routes", type=int, default=1000)
    chosen = options.parse_args()
    with TemporaryDirectory() as folder:
        for routes in (1, 10, chosen.routes):
            times = sorted(ready_seconds(Path(folder), routes) for _ in range(5))
            print(f"ready with {routes:5} routes after {times[2]:.2f} s (median of 5)")
        idle_memory(Path(folder), chosen.connections)


def ready_seconds(folder: Path, routes: int) -> float:
    """Return the seconds from the start of the process to its line `ready`."""
    started = time.monotonic()
    with daemon(folder, routes):
        return time.monotonic() - started


def idle_memory(folder: Path, connections: int) -> None:
    """Print what idle connections add to the daemon's memory."""
    with ExitStack() as stack:
        target = stack.enter_context(socket.socket(socket.AF_UNIX))
        target.bind(str(folder / "target"))
        target.listen(4096)
        process = stack.enter_context(daemon(folder, 1))
        held = [stack.enter_context(s) for s in idle_connections(target, 100)]  # warm
        before = private_bytes(process.pid)
        print(f"memory with {len(held) // 2} idle connections: {before / 2**20:.1f} MiB private")
        held = [stack.enter_context(s) for s in idle_connections(target, connections)]
        after = private_bytes(process.pid)
        print(f"memory of {connections} idle connections: {after / 2**20:.1f} MiB private")
        print(f"one idle connection: {(after - before) / connections:.0f} bytes")


def idle_connections(target: socket.socket, number: int) -> Iterator[socket.socket]:
    """Return both outer ends of ``number`` connections, after a byte in each direction."""
    for _ in range(number):
        client = socket.create_connection((ADDRESS, FIRST_PORT))
        server, _ = target.accept()
        client.sendall(b"x")
        server.recv(1)
        server.sendall(b"y")
        client.recv(1)
        yield client
        yield server


@contextmanager
def daemon(folder: Path, routes: int) -> Iterator[subprocess.Popen[str]]:
    """Run a daemon with ``routes`` routes from its line `ready` until the block is left."""
    file = folder / "routes.toml"
    lines = [f'"{ADDRESS}:{FIRST_PORT + n}" = "unix:{folder}/target"' for n in range(routes)]
    file.write_text("\n".join(["[log]", 'format = "json"', "[forward]", *lines]))
    command = [sys.executable, "-m", "vsockproxy", "run", "-c", str(file)]
    with subprocess.Popen(
        command, env=with_bytecode(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_until_ready(process.stderr)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            drain(process.stderr.fileno())
            process.wait(10)


def with_bytecode() -> dict[str, str]:
    """Return an environment in which modules are compiled once, as an installed package's are."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def wait_until_ready(lines: Iterable[str]) -> None:
    """Read the daemon's log up to its line `ready`; other programs may write to stderr too.

    Raises SystemExit, with all that was read, if the log ends before.
    """
    read: list[str] = []
    for line in lines:
        read.append(line)
        if event(line) == "ready":
            return
    raise SystemExit(f"the daemon ended before it was ready:\n{''.join(read)}")


def event(line: str) -> str | None:
    """Return the event of a log line; None for a line that is not the daemon's."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("event") if isinstance(record, dict) else None


def drain(descriptor: int) -> None:
    """Read the rest of the output, so that a full pipe does not block the daemon."""
    while select.select([descriptor], [], [], 5)[0] and os.read(descriptor, 65536):
        pass


def private_bytes(pid: int) -> int:
    """Return the bytes of private pages of every mapping: freed when the process ends."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
    kib = sum(int(sizes[key].split()[0]) for key in ("Private_Clean", "Private_Dirty"))
    return kib * 1024


if __name__ == "__main__":
    main()
