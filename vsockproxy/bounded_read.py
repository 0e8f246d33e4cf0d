"""Read the start of a file that others may have named or written."""

from __future__ import annotations

import os


def read_start(path: str, size: int) -> bytes:
    """Return at most the first ``size`` bytes of a file; of a FIFO without a writer none.

    Blocks as a file system does: call it in a thread. Raises OSError.
    """
    # O_NONBLOCK: do not wait for the writer of a FIFO. O_NOCTTY: a terminal stays none of ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        return file.read(size) or b""
