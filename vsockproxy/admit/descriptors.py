"""The process's table of file descriptors: its limit, and the number of open ones.

Owns: RLIMIT_NOFILE and counting what is open.  Decides nothing: `process_limits` does.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Final

_TABLE: Final = Path("/proc/self/fd")
_RESERVE: Final = 64  # an admin endpoint, a reload, name look-ups; arbitrary


def raise_limit() -> tuple[int, int]:
    """Raise the soft limit of descriptors to the hard one; return the old and the new limit.

    Call it once at the start of the process.  Never fails: a sandbox that forbids it
    leaves the limit as it was.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # ValueError: Darwin's hard limit is infinite, and its kernel takes less.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, limit()


def limit() -> int:
    """Return how many descriptors the process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def reserve(largest: int) -> int:
    """Return how many of ``largest`` descriptors are reserved for other uses than connections."""
    return min(_RESERVE, largest // 4)


def count_quickly() -> int | None:
    """Return the number of open descriptors where the kernel tells it in one call, else None."""
    with suppress(OSError):
        return _TABLE.stat().st_size or None  # since Linux 6.2
    return None


def count_open() -> int:
    """Return the number of open descriptors; a lower bound where the system does not tell.

    Where `count_quickly` has no answer it lists a folder: 0.3 s for 500,000 of them.
    """
    if told := count_quickly():
        return told
    with suppress(OSError):
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - names are enough; one is its own
    try:
        lowest = os.dup(2)
    except OSError:
        return limit()
    os.close(lowest)
    return lowest
