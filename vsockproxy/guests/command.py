"""A program that prints a CID: run without a shell, bounded in time and in output."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import trio

from vsockproxy.guests.answer import GuestError, checked_cid

TIMEOUT: Final = 5.0
"""Seconds after which the program and what it has started are killed."""

_KILLED_WITHIN: Final = 1.0  # seconds
_LARGEST: Final = 4096  # bytes of output
_PIPE: Final = 1 << 16  # bytes that a pipe holds, see pipe(7)
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


async def find_cid(argv: Sequence[str]) -> int:
    """The CID that a program prints on its standard output; raises `GuestError`.

    It gets an empty standard input and an environment of PATH and LANG alone.  What it
    complains of, on its standard error, is part of the error.
    """
    name = argv[0]
    try:
        process = await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
            start_new_session=True,  # a group of its own, to be killed as one
        )
    except OSError as error:
        raise GuestError(f"{name} cannot be run: {error.strerror}") from error
    try:
        with trio.move_on_after(TIMEOUT):
            output, complaint = await _read(process)
            return _judge(name, process.returncode, output, complaint)
    finally:
        await _kill(process)
    raise GuestError(f"{name} has not answered within {TIMEOUT:g} s")


async def _read(process: trio.Process) -> tuple[bytes, bytes]:
    """What it prints until it ends, or more than is allowed; and the end of its complaints."""
    assert process.stdout is not None
    assert process.stderr is not None
    output, complaint = bytearray(), bytearray()

    async def listen(stream: trio.abc.ReceiveStream) -> None:
        async for piece in stream:
            complaint.extend(piece)
            del complaint[:-_LARGEST]

    async def take(stream: trio.abc.ReceiveStream) -> None:
        async for piece in stream:
            output.extend(piece)
            if len(output) > _LARGEST:
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen, process.stderr)
        nursery.start_soon(take, process.stdout)
        await process.wait()
        # No end of its pipes is waited for: what it has left running may hold them.
        nursery.cancel_scope.cancel()
    output += _rest(process.stdout)
    complaint += _rest(process.stderr)
    return bytes(output), bytes(complaint)


def _rest(stream: trio.abc.ReceiveStream) -> bytes:
    """What is in a pipe now."""
    assert isinstance(stream, trio.lowlevel.FdStream)
    try:
        return os.read(stream.fileno(), _PIPE)
    except BlockingIOError:
        return b""


def _judge(name: str, status: int | None, output: bytes, complaint: bytes) -> int:
    if len(output) > _LARGEST:
        raise GuestError(f"{name} prints more than {_LARGEST} bytes: a CID is wanted")
    if status:
        words = complaint.decode(errors="replace").strip().split("\n")[-1][:200]
        raise GuestError(f"{name} ended with status {status}" + (words and f": {words}"))
    return checked_cid(output.decode(errors="replace"), name)


async def _kill(process: trio.Process) -> None:
    """End the program and its descendants, and take its status; nothing of it stays.

    Not waited for is one that cannot be killed: another user's, or stuck in the kernel.
    """
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with trio.move_on_after(_KILLED_WITHIN, shield=True):
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()
        await process.wait()
