"""How the two sockets of a connection are closed: a truncated stream must never look whole.

Owns: the rule, which the native pump has in C (`vsp_close_of` in `closing.c`; a test compares the
two), and the portable pump's waiting for what is still being delivered.
"""

from __future__ import annotations

import fcntl
import socket
import termios
from typing import Final, Literal

import trio

from vsockproxy.pump.reset import reset
from vsockproxy.pump.transfer import EndReason

Closing = Literal[
    "close",  # at once: the kernel delivers what it has
    "linger",  # a FIN, and what still comes in is dropped until the peer has closed
    "reset",  # by RST, at once
    "deliver",  # by RST, once the peer's kernel has taken what was sent before
]

_FIRST_PAUSE: Final = 0.001  # seconds, doubled each time without progress
_LONGEST_PAUSE: Final = 0.128
_DROP: Final = 1.0  # seconds that input is dropped once the peer's kernel has everything; arbitrary
_CHUNK: Final = 65536
_CHUNKS: Final = 16  # dropped in one turn of the event loop


def closing_of(reason: EndReason, *, client: bool, whole: bool, ended: bool, tcp: bool) -> Closing:
    """Return how a side is closed, the client's or the target's.

    Args:
      reason: why the connection ends.
      client: whether it is the client's side.
      whole: the direction that the side receives is whole: its source's EOF was read, and the
        side's kernel has taken every byte.
      ended: nothing more can come from the side: its EOF was read, or it has failed.
      tcp: the side is TCP: AF_UNIX and AF_VSOCK have no RST to send.
    """
    if whole:
        # close(2) over unread input, and input after it, are an RST that throws the tail away.
        return "close" if ended else "linger"
    if not tcp:
        return "close"
    return "deliver" if client and reason == "target_reset" else "reset"


async def close(sock: socket.socket, closing: Closing, linger: float) -> None:
    """Close a non-blocking socket; wait as ``closing`` says.

    The waiting is over when the peer's kernel has taken nothing for ``linger`` seconds, or had
    everything for one, where an RST only hurts peers whose kernel forgets unread bytes then.
    Cancelled, it closes the socket without waiting.
    """
    try:
        if closing == "linger":
            _shut(sock)
        if closing in ("linger", "deliver"):
            await _delivered(sock, closing, linger)
    finally:
        if closing in ("reset", "deliver"):
            reset(sock)
        sock.close()


async def _delivered(sock: socket.socket, closing: Closing, linger: float) -> None:
    queued = _queued(sock)
    progress = trio.current_time()
    pause = _FIRST_PAUSE
    while not (_drop_input(sock) if closing == "linger" else not queued or _is_broken(sock)):
        now = trio.current_time()
        end = progress + (linger if queued else min(linger, _DROP))
        if now >= end:
            return
        await trio.sleep_until(min(now + pause, end))
        before, queued = queued, _queued(sock)
        pause = min(2 * pause, _LONGEST_PAUSE)
        if queued < before:
            progress, pause = trio.current_time(), _FIRST_PAUSE


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the peer has closed already: it needs no FIN


def _drop_input(sock: socket.socket) -> bool:
    """Drop what has come in, up to a bound; return whether nothing more can."""
    try:
        for _ in range(_CHUNKS):
            if not sock.recv(_CHUNK):
                return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False  # a peer that sends on must not hold the event loop


def _queued(sock: socket.socket) -> int:
    """Return the bytes that the peer's kernel has not taken; 0 where the kernel does not tell."""
    try:
        answer = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return 0
    return int.from_bytes(answer, "little", signed=True)


def _is_broken(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
