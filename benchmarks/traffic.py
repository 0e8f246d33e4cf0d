"""Run the load program: a server behind the proxies and a client in front of them.

Owns: its two processes, and the format of its result.  ``make build/load`` builds it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from peers import pinned

LOAD: Final = str(Path(__file__).parents[1] / "build" / "load")
PATIENCE: Final = 60.0


class LostError(Exception):
    """Bytes were lost, or an answer is missing; the text is the load program's."""


@dataclass(frozen=True, slots=True)
class Group:
    """The result of a group of connections: finished requests, and bytes received."""

    requests: int
    bytes: int
    p50_us: float
    p99_us: float
    p999_us: float


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run: its seconds, and its groups in the order of the arguments."""

    seconds: float
    groups: tuple[Group, ...]


@contextmanager
def server(address: str, cpus: Sequence[int], skipped: int = 0) -> Iterator[None]:
    """Run the server at an address (``unix:PATH``, ``vsock:CID:PORT``...) while the block runs.

    ``skipped``: the bytes of a greeting that proxies pass on.
    """
    with pinned(cpus):
        line = [LOAD, "serve", address, str(skipped)]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    with process:
        _expect(process, "ready")
        try:
            yield
            if process.poll() is not None:
                raise LostError("the server ended: see above")
        finally:
            process.kill()


def run(
    address: str,
    groups: Sequence[str],
    seconds: float,
    cpus: Sequence[int],
    *,
    started: Callable[[], None] = lambda: None,
    ended: Callable[[], None] = lambda: None,
) -> Result:
    """Run the client; call `started` and `ended` around the measured time.

    Its connections are still open when `ended` is called.  Raises `LostError`.
    """
    line = [LOAD, "run", address, "--wait", "--seconds", str(seconds), *groups]
    with pinned(cpus):
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    with process:
        try:
            _expect(process, "ready")
            started()
            _continue(process)
            answer = _read(process)
            ended()
            _continue(process)
            process.wait(PATIENCE)
        finally:
            process.kill()
    return _parse(answer)


def _parse(answer: str) -> Result:
    result = json.loads(answer)
    groups = (
        Group(
            group["requests"],
            group["up"] + group["down"],
            group["p50_us"],
            group["p99_us"],
            group["p999_us"],
        )
        for group in result["groups"]
    )
    return Result(result["seconds"], tuple(groups))


def _expect(process: subprocess.Popen[str], line: str) -> None:
    if (said := _read(process).strip()) != line:
        raise LostError(f"the load program said {said!r}")


def _read(process: subprocess.Popen[str]) -> str:
    line = _pipe(process.stdout).readline()
    if not line:
        why = process.stderr.read() if process.stderr else "see above"
        raise LostError(why.strip().removeprefix("load: "))
    return line


def _continue(process: subprocess.Popen[str]) -> None:
    pipe = _pipe(process.stdin)
    pipe.write("\n")
    pipe.flush()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
