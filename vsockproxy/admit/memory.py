"""Whether the process may have more memory: its own limits, and those of an accounting kernel.

Owns: the question to the kernel. Decides nothing: `process_limits` does. A control group's limit
does not refuse memory, it ends processes: nothing here sees it come.
"""

from __future__ import annotations

import mmap
from typing import Final

# Clients that are accepted between two questions need less than half of it, at about 20 KiB each
# while they are dialled; the rest is for the connections that there are. Without it, an error in
# the middle of the event loop ends the process.
_RESERVE: Final = 4 << 20

# It takes no memory: no file, no page is touched, nothing is swapped.
_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def is_left() -> bool:
    """Return whether the reserve of 4 MiB could be had now."""
    try:
        mmap.mmap(-1, _RESERVE, flags=_FLAGS).close()
    except (OSError, MemoryError):
        return False
    return True
