"""Child processes: started with the limit of descriptors that this process was given, and reaped.

Owns: which children are this program's own, and the reaping of those that are not. A process whose
parent has ended becomes a child of process 1, or of the nearest subreaper (prctl(2)): nothing else
would reap it there. The state is the process's, so it is the module's.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

_PR_GET_CHILD_SUBREAPER: Final = 37
_UNTIL_REAPED: Final = 0.05  # seconds until an own child is looked at again; trio reaps it
# An interpreter sets the limit and becomes the program: setrlimit(2) in a forked child would need a
# preexec_fn, which is not safe beside threads, and prlimit(2) afterwards would come too late.
_WITH_LIMIT: Final = """
import os, resource, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):  # an interpreter ignores them
    signal.signal(number, signal.SIG_DFL)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot be run: {error.strerror}")
"""

_own: set[int] = set()
_starting = 0
_given: int | None = None


def give_limit(soft: int) -> None:
    """Start children with this soft limit of descriptors; call it before raising the limit."""
    global _given  # noqa: PLW0603 - see above
    _given = soft


async def start(argv: Sequence[str], env: Mapping[str, str]) -> trio.Process:
    """Start a program without standard input, in a new session, with pipes for its output.

    The caller reaps it, then calls `forget`. Its descriptors, signal mask and dispositions are
    those of a program that a shell starts.

    Raises:
      OSError: it cannot be started. Where the limit of descriptors differs from this process's, its
        standard error says ``cannot be run:`` instead.
    """
    global _starting  # noqa: PLW0603 - see above
    _starting += 1
    try:
        process = await trio.lowlevel.open_process(
            _limited(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,  # one process group
        )
        _own.add(process.pid)
    finally:
        _starting -= 1
    return process


def forget(process: trio.Process) -> None:
    """Leave a child to `reap_orphans`, if it has not been reaped."""
    _own.discard(process.pid)


def _limited(argv: Sequence[str]) -> list[str]:
    if _given is None or _given == resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        return list(argv)
    return [sys.executable, "-I", "-S", "-c", _WITH_LIMIT, str(_given), *argv]


# ---- reaping ----


def inherits_orphans() -> bool:
    """Return whether orphans become children of this process."""
    return os.getpid() == 1 or _is_subreaper()


def _is_subreaper() -> bool:
    if sys.platform != "linux":
        return False
    try:
        import ctypes  # noqa: PLC0415 - a sandbox may forbid it

        answer = ctypes.c_int(0)
        ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    except (ImportError, OSError, MemoryError):
        return False
    return bool(answer.value)


async def reap_orphans() -> None:
    """Reap the children that this program did not start, until cancelled."""
    with trio.open_signal_receiver(signal.SIGCHLD) as signals:
        await _reap()  # those of the time before
        async for _ in signals:
            await _reap()


async def _reap() -> None:
    """Reap every orphan that has ended."""
    while pid := _ended_child():
        if pid in _own or _starting:
            await trio.sleep(_UNTIL_REAPED)
        else:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it has ended


def _ended_child() -> int | None:
    """Return a child that has ended; it stays to be reaped."""
    with suppress(ChildProcessError):
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return ended.si_pid if ended else None
    return None
