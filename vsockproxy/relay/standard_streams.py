"""Standard input and output as the client of one connection, for `vsockproxy connect`.

Owns: `reach`, a dial that can wait for a guest; `join`; and `pass_socket`.  The bytes go through
the pump, which ends the connection as it ends a route's.  Its client is a socket, and the two
streams may be pipes, files or terminals: threads copy between them and a pair of sockets.  Their
file status flags stay as they are, because other processes share them.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from vsockproxy.address.sockaddr import borrowed
from vsockproxy.config.guest import Guest
from vsockproxy.config.settings import Route
from vsockproxy.dial.target import Dialer
from vsockproxy.dial.unix import is_of_a_vmm
from vsockproxy.errors import DialError, VsockproxyError
from vsockproxy.guests.directory import Guests
from vsockproxy.pump.transfer import Bounds, EndReason, Meter, Pump
from vsockproxy.reasons import ABSENT
from vsockproxy.stats import TargetState

_Result = TypeVar("_Result")

_CHUNK: Final = 1 << 18
_FIRST_PAUSE: Final = 0.05  # seconds between two dials of an absent target; doubled each time
_LONGEST_PAUSE: Final = 1.0


class StreamError(VsockproxyError):
    """Standard input cannot be read, or standard output not be written."""


class ReaderGoneError(VsockproxyError):
    """The reader of standard output has closed it."""


async def reach(route: Route, guests: Sequence[Guest], wait: float) -> socket.socket:
    """Return a socket connected to the route's target, which the caller owns.

    A target that is down is dialled again for ``wait`` seconds.

    Raises:
      DialError: of the last dial.
    """
    [address] = route.targets
    state = TargetState(address)
    dialer = Dialer(state, route.policy, Guests(guests), names={}, log=None)
    end = trio.current_time() + wait
    pause = _FIRST_PAUSE
    while True:
        try:
            return await dialer.dial(_ignore)
        except DialError as error:
            left = end - trio.current_time()
            if error.reason not in ABSENT or left <= 0:
                raise
        await trio.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)


def pass_socket(target: socket.socket, stdout: int = 1) -> None:
    """Send a socket by standard output, which is a Unix socket: SCM_RIGHTS of unix(7); close it.

    Raises:
      StreamError: the output is not one.
    """
    try:
        with target, borrowed(stdout) as output:
            socket.send_fds(output, [b"\0"], [target.fileno()])
    except OSError as error:
        raise StreamError(
            f"cannot pass the connection on: standard output is no Unix socket ({error.strerror});"
            " set ProxyUseFdpass yes in ssh_config, or omit --pass-fd"
        ) from error


async def join(
    target: socket.socket, route: Route, pump: Pump, *, stdin: int = 0, stdout: int = 1
) -> EndReason:
    """Relay between two streams and a connected target, as a route does, without a time limit.

    It owns the target's socket, and closes standard output at the target's EOF: /dev/null takes
    its place.  The EOF of standard input is a half-close of the target.  A target's EOF ends the
    input of a terminal as well, which would wait for a key.

    Raises:
      StreamError: a stream failed; the target was closed, and reset if it was TCP.
      ReaderGoneError: the same, because standard output is closed.

    Cancelled, it does the same.  A thread that waits for a stream then is abandoned.
    """
    bounds = Bounds(
        half_close_hold=route.half_close_hold,
        linger_timeout=route.policy.linger_timeout,
        vmm=is_of_a_vmm(target),
    )
    if _is_one_socket(stdin, stdout):
        client = os.dup(stdin)
        _discard(stdin)
        _discard(stdout)
        return (await pump.transfer(client, target.detach(), bounds, Meter())).reason
    near, far = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_in_thread, partial(_copy_input, stdin, near.dup()))
        async with trio.open_nursery() as writing:
            writing.start_soon(_write_output, near, stdin, stdout)
            transfer = await pump.transfer(far.detach(), target.detach(), bounds, Meter())
        nursery.cancel_scope.cancel()
    return transfer.reason


def _ignore(_vmm_port: int) -> None:
    """Take the number in a VMM's OK."""


def _is_one_socket(stdin: int, stdout: int) -> bool:
    """Return whether both are one socket, as inetd(8) and StandardInput=socket have it."""
    status = os.fstat(stdin)
    return stat.S_ISSOCK(status.st_mode) and os.path.samestat(status, os.fstat(stdout))


def _discard(descriptor: int) -> None:
    """Put /dev/null in place of a descriptor: no other file must get its number."""
    with Path(os.devnull).open("r+b", buffering=0) as null:
        os.dup2(null.fileno(), descriptor)


async def _in_thread(copy: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(copy, abandon_on_cancel=True)


async def _write_output(near: socket.socket, stdin: int, stdout: int) -> None:
    """Copy to standard output; raise `ReaderGoneError` also while there is nothing to copy."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_reader, stdout)
        await _in_thread(partial(_copy_output, near, stdin, stdout))
        nursery.cancel_scope.cancel()


def _copy_input(stdin: int, near: socket.socket) -> None:
    """Send standard input to the pump up to its EOF; close ``near``."""
    with near, suppress(BrokenPipeError, ConnectionResetError):  # the pump's end says more
        while data := _when_ready(stdin, select.POLLIN, partial(_read, stdin)):
            near.sendall(data)
        near.shutdown(socket.SHUT_WR)


def _copy_output(near: socket.socket, stdin: int, stdout: int) -> None:
    """Write to standard output what the pump sends, up to its EOF; close ``near``."""
    with near:
        while data := _received(near):
            rest = memoryview(data)
            while rest:
                write = partial(_write, stdout, rest)
                rest = rest[_when_ready(stdout, select.POLLOUT, write) :]
        _discard(stdout)
        if os.isatty(stdin):
            with suppress(OSError):  # the pump has closed its end
                near.shutdown(socket.SHUT_WR)


def _received(near: socket.socket) -> bytes:
    try:
        return near.recv(_CHUNK)
    except ConnectionResetError:  # after the last byte: the pump has dropped some input
        return b""


def _read(stdin: int) -> bytes:
    try:
        return os.read(stdin, _CHUNK)
    except BlockingIOError:
        raise
    except OSError as error:
        raise StreamError(f"cannot read standard input: {error.strerror}") from error


def _write(stdout: int, data: memoryview) -> int:
    try:
        return os.write(stdout, data)
    except BlockingIOError:
        raise
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise StreamError(f"cannot write to standard output: {error.strerror}") from error


def _when_ready(descriptor: int, event: int, operation: Callable[[], _Result]) -> _Result:
    """Return what ``operation`` returns; wait where the descriptor is non-blocking."""
    while True:
        try:
            return operation()
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, event)
            poll.poll()


async def _watch_reader(stdout: int) -> None:
    """Raise `ReaderGoneError` once standard output has no reader; return if that is not told."""
    if not hasattr(select, "epoll"):  # not Linux
        return
    # Not poll(2) in a thread, which would keep the pipe open.
    with select.epoll() as epoll:
        try:
            epoll.register(stdout, 0)  # EPOLLERR and EPOLLHUP are always reported
        except PermissionError:  # a file
            return
        await trio.lowlevel.wait_readable(epoll.fileno())
    raise ReaderGoneError
