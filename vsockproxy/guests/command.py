"""A program that prints a CID: run without a shell, bounded in time and in output."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from vsockproxy import children
from vsockproxy.guests.answer import GuestError, checked_cid

TIMEOUT: Final = 5.0
"""Seconds after which the program and its descendants are killed."""

_STARTING: Final = trio.CapacityLimiter(32)
"""Programs that are started at the same time: each in one of trio's 40 threads, which an exec from
a dead network file system keeps; the metrics and a reload need the others."""

_KILLED_WITHIN: Final = 1.0  # seconds
_LARGEST: Final = 4096  # bytes of output
_PIPE: Final = 1 << 16  # bytes that a pipe holds, see pipe(7)
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


async def find_cid(argv: Sequence[str]) -> int:
    """Return the CID that a program prints on its standard output.

    The program gets an empty standard input and an environment of only PATH and LANG.

    Raises:
      GuestError: the program could not be run, did not answer in `TIMEOUT`, printed something else,
        or failed; then with the last line of its standard error.

    *Cancellation*: kills the program and its descendants, for which it takes up to a second.
    """
    name = argv[0]
    try:
        async with _STARTING:
            process = await children.start(argv, _ENVIRONMENT)
    except OSError as error:
        raise GuestError(f"{name} cannot be run: {error.strerror}") from error
    try:
        with trio.move_on_after(TIMEOUT):
            output, errors = await _read(process)
            return _judge(name, process.returncode, output, errors)
    finally:
        await _kill(process)
        children.forget(process)
    raise GuestError(f"{name} did not answer within {TIMEOUT:g} s")


async def _read(process: trio.Process) -> tuple[bytes, bytes]:
    """Return the output, at most a little over the limit, and the end of the standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = bytearray(), bytearray()

    async def read_errors(stream: trio.abc.ReceiveStream) -> None:
        async for piece in stream:
            errors.extend(piece)
            del errors[:-_LARGEST]

    async def read_output(stream: trio.abc.ReceiveStream) -> None:
        async for piece in stream:
            output.extend(piece)
            if len(output) > _LARGEST:
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_errors, process.stderr)
        nursery.start_soon(read_output, process.stdout)
        await process.wait()
        # Do not wait for the end of the pipes: a background process may still hold them.
        nursery.cancel_scope.cancel()
    output += _rest(process.stdout)
    errors += _rest(process.stderr)
    return bytes(output), bytes(errors)


def _rest(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the bytes that are in a pipe now."""
    assert isinstance(stream, trio.lowlevel.FdStream)
    try:
        return os.read(stream.fileno(), _PIPE)
    except BlockingIOError:
        return b""


def _judge(name: str, status: int | None, output: bytes, errors: bytes) -> int:
    if len(output) > _LARGEST:
        raise GuestError(f"{name} prints more than {_LARGEST} bytes: expected a CID")
    if status:
        words = errors.decode(errors="replace").strip().split("\n")[-1][:200]
        if words.startswith("cannot be run: "):
            raise GuestError(f"{name} {words}")
        raise GuestError(f"{name} exited with status {status}" + (words and f": {words}"))
    return checked_cid(output.decode(errors="replace"), name)


async def _kill(process: trio.Process) -> None:
    """Kill the program and its descendants, close its pipes and reap it.

    A process that cannot be killed, another user's or one stuck in the kernel, is left behind
    after a second.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with trio.move_on_after(_KILLED_WITHIN, shield=True):
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
        await process.wait()
