"""Choose the pump: the native one where it can run, else the portable one.

Owns: `open_pump`, which also runs the native pump's task.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from vsockproxy.config.settings import PumpSettings
from vsockproxy.pump.portable import PortablePump
from vsockproxy.pump.transfer import Pump

if TYPE_CHECKING:
    from vsockproxy.pump.native import NativePump


@asynccontextmanager
async def open_pump(settings: PumpSettings) -> AsyncIterator[Pump]:
    """Run the pump that the settings ask for until the block is left.

    With ``auto`` it is the native pump, if that was compiled and its threads start.  Every
    transfer must have ended when the block is left.

    Raises:
      ImportError: the settings ask for ``native``, which was not compiled.
      OSError: the settings ask for ``native``, and its threads do not start.
    """
    if settings.choice == "portable":
        yield PortablePump("asked for")
        return
    try:
        pump = _start_native(settings.threads or _default_threads())
    except (ImportError, OSError) as error:
        if settings.choice == "native":
            raise
        yield PortablePump(_why_not_native(error))
        return
    try:
        async with trio.open_nursery() as nursery:
            # Shielded: a cancelled transfer waits for its end, which serve() brings.
            serving = trio.CancelScope(shield=True)
            nursery.start_soon(_serve, pump, serving)
            try:
                yield pump
            finally:
                serving.cancel()
    finally:
        pump.close()


def _start_native(threads: int) -> NativePump:
    from vsockproxy.pump.native import NativePump  # noqa: PLC0415 - it may not be compiled

    return NativePump(threads)


async def _serve(pump: NativePump, scope: trio.CancelScope) -> None:
    with scope:
        await pump.serve()


def _why_not_native(error: ImportError | OSError) -> str:
    """Return why the native pump does not run, and what to do about it."""
    if isinstance(error, OSError):
        return f"the native pump's threads do not start: {error}"
    if sys.platform != "linux":
        return "the native pump needs Linux"
    return "the native pump was not compiled: install gcc and Python's headers, then reinstall"


def _default_threads() -> int:
    """Return half the processors: a thread carries gigabytes a second, and trio needs one too."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))
