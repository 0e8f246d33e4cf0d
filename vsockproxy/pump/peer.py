"""The process at the other end of a Unix socket; the native pump has the same in `peer.c`."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h; Linux 6.5
_UCRED: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))
_EXITING: Final = 0x4  # PF_EXITING, linux/sched.h: among the flags of proc_pid_stat(5)
_FLAGS: Final = 6  # their place behind the name


def is_exiting(sock: socket.socket) -> bool:
    """Return whether the process that listened at the socket's other end has ended, or is about to.

    The kernel closes a process's sockets before the process counts as dead. False where the system
    does not tell: a process that /proc hides is seen only once it is dead.
    """
    return _is_marked(sock) or has_ended(sock)  # in this order: /proc shows no dead process


def has_ended(sock: socket.socket) -> bool:
    """Return whether the process that listened at the socket's other end is dead."""
    if not hasattr(socket, "SO_PEERCRED"):
        return False
    try:
        pidfd = _open(sock, _pid(sock))
    except OSError as error:
        return error.errno in (errno.ESRCH, errno.EINVAL)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


def _open(sock: socket.socket, pid: int) -> int:
    """Return a pidfd, the caller's; raise OSError, ESRCH where the process has ended."""
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    if pid <= 0:  # of a namespace that this process does not see
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return os.pidfd_open(pid)


def _pid(sock: socket.socket) -> int:
    """Return the process that listened; 0 where this process does not see it."""
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid: int = _UCRED.unpack(peer)[0]
    return pid


def _is_marked(sock: socket.socket) -> bool:
    with suppress(AttributeError, OSError, ValueError, IndexError):
        behind_name = Path(f"/proc/{_pid(sock)}/stat").read_text("latin-1").rpartition(")")[2]
        return bool(int(behind_name.split()[_FLAGS]) & _EXITING)
    return False
