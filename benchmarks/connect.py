"""Measure `vsockproxy connect` beside socat, as a ProxyCommand: its start, and its stream.

    python benchmarks/connect.py [--rounds 7] [--mebibytes 1024]

Both join standard output to a Unix socket, in turn.  Prints medians.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic
from typing import Final

from footprint import with_bytecode

ANSWER: Final = b"SSH-2.0-x\r\n"
PIECE: Final = bytes(1 << 20)


def main() -> int:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--mebibytes", type=int, default=1024, help="of a stream")
    chosen = options.parse_args()
    with TemporaryDirectory(prefix="connect-") as folder:
        path = f"{folder}/target"
        commands = {
            "vsockproxy": [sys.executable, "-m", "vsockproxy", "connect", f"unix:{path}"],
            "socat": ["socat", "-", f"UNIX-CONNECT:{path}"],
        }
        if not shutil.which("socat"):
            raise SystemExit("socat is not installed")
        for title, pieces in (("start to first byte", 0), ("stream", chosen.mebibytes)):
            seconds: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(chosen.rounds):
                for name, command in commands.items():
                    with socket.socket(socket.AF_UNIX) as listener:
                        listener.bind(path)
                        listener.listen()
                        seconds[name].append(_timed(listener, command, pieces))
                    Path(path).unlink()
            _tell(title, pieces, seconds)
    return 0


def _timed(listener: socket.socket, command: list[str], mebibytes: int) -> float:
    """Return the seconds until the first byte, or from there to the end of a stream."""
    server = Thread(target=_serve, args=(listener, mebibytes))
    server.start()
    began = monotonic()
    with subprocess.Popen(
        command, env=with_bytecode(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.read(1)
        passed = monotonic()
        size = len(first)
        while piece := process.stdout.read1(len(PIECE)):  # type: ignore[attr-defined]
            size += len(piece)
        ended = monotonic()
        process.stdin.close()
    server.join()
    if size != len(ANSWER) + mebibytes * len(PIECE):
        raise SystemExit(f"{command} lost bytes")
    return ended - passed if mebibytes else passed - began


def _serve(listener: socket.socket, mebibytes: int) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.sendall(ANSWER)
        for _ in range(mebibytes):
            sock.sendall(PIECE)


def _tell(title: str, mebibytes: int, seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        median = statistics.median(values)
        shown = f"{mebibytes / 1024 / median:.2f} GiB/s" if mebibytes else f"{median * 1e3:.0f} ms"
        print(f"{title:20} {name:12} {shown}")


if __name__ == "__main__":
    sys.exit(main())
