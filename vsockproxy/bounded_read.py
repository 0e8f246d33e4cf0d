"""Read the start of a file that others may have named or written."""

from __future__ import annotations

import os


def read_start(path: str, size: int) -> bytes:
    """Return at most the first ``size`` bytes of a file; of a FIFO without a writer none.

    Blocks as a file system does: call it in a thread. Raises OSError.
    """
    with open(path, "rb", opener=_open) as file:
        return file.read(size) or b""


def _open(path: str, flags: int) -> int:
    # O_NONBLOCK: do not wait for the writer of a FIFO. O_NOCTTY: a terminal stays none of ours.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
