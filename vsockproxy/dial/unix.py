"""Connect to a Unix socket."""

from __future__ import annotations

import errno
import socket
from typing import Final
from weakref import WeakSet, WeakValueDictionary

import trio

from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.address.sockaddr import new_socket, unix_address
from vsockproxy.dial.connecting import connected, failed
from vsockproxy.per_trio_run import PerRun
from vsockproxy.pump.peer import has_ended

_FIRST_RETRY: Final = 0.001  # seconds, doubled each time
_LONGEST_RETRY: Final = 0.005


# By path: the turns of the dials that wait for room, which hold the lock.
_TURNS: Final = PerRun(WeakValueDictionary[str, trio.Lock])


_OF_A_VMM: Final[WeakSet[socket.socket]] = WeakSet()
"""Sockets that were connected to a VMM whose process lived."""


def meet_vmm(sock: socket.socket) -> None:
    """Take note of a socket that has just been connected to a VMM, if its process lives.

    It may end right behind its first bytes, so it is asked for at once. A process that had handed
    its listener on and ended before says nothing by its end.
    """
    if not has_ended(sock):
        _OF_A_VMM.add(sock)


def is_of_a_vmm(sock: socket.socket) -> bool:
    """Return whether a dialled socket is that of a VMM, whose process lived then."""
    return sock in _OF_A_VMM


async def connect(sock: socket.socket, path: str, deadline: float) -> None:
    """Connect a new Unix socket, and wait for room in the backlog; raise OSError."""
    address = unix_address(path)
    code = errno.EAGAIN if _is_waited_for(path) else sock.connect_ex(address)
    if code == errno.EAGAIN:
        # Of thousands that wait, one tries: the first.
        turn = _TURNS.get().setdefault(path, trio.Lock())
        with trio.CancelScope(deadline=deadline):
            async with turn:
                code = await _connect_when_there_is_room(sock, address)
    await connected(sock, code, deadline)


def _is_waited_for(path: str) -> bool:
    """Return whether dials wait for room in a backlog: a new one waits behind them."""
    turn = _TURNS.get().get(path)
    return turn is not None and turn.locked()


async def dial(sock: socket.socket, endpoint: UnixEndpoint, deadline: float) -> None:
    """Connect a new Unix socket to a target, as `connect` does."""
    await connect(sock, endpoint.path, deadline)
    if endpoint.vmm:
        meet_vmm(sock)


async def _connect_when_there_is_room(sock: socket.socket, address: str | bytes) -> int:
    """Connect again until the backlog is not full; return connect(2)'s errno."""
    pause = _FIRST_RETRY
    # EAGAIN means a full backlog, not a connection in progress: the socket never becomes writable.
    while (code := sock.connect_ex(address)) == errno.EAGAIN:
        await trio.sleep(pause)
        pause = min(2 * pause, _LONGEST_RETRY)
    return code


def connect_now(endpoint: UnixEndpoint) -> socket.socket | None:
    """Return a socket connected to a Unix endpoint, without waiting; None if its backlog is full.

    It is also None while others wait for room. A Unix socket has no options. Raises `DialError`.
    """
    if _is_waited_for(endpoint.path):
        return None
    sock = None
    try:
        sock = new_socket(socket.AF_UNIX)
        sock.connect(unix_address(endpoint.path))
    except BlockingIOError:
        assert sock is not None
        sock.close()
        return None
    except OSError as error:
        if sock is not None:
            sock.close()
        raise failed(endpoint, error) from error
    if endpoint.vmm:
        meet_vmm(sock)
    return sock
