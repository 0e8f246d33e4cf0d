"""Which source answers for which way.

Owns: the choice, and that what blocks runs in a thread.  Each source is imported when it is
first asked.
"""

from __future__ import annotations

from functools import partial

import trio

from vsockproxy.guest import Cid, CidFile, Command, DynamicWay, Mux, MuxGlob


async def look_up(way: DynamicWay, threads: trio.CapacityLimiter) -> Cid | Mux:
    """Where a guest is now; raises `GuestError`.

    Cancelled, it leaves a thread that hangs behind, which keeps its place among ``threads``.
    """
    if isinstance(way, Command):
        from vsockproxy.guests import command  # noqa: PLC0415 - at its use

        return Cid(await command.find_cid(way.argv))
    return await trio.to_thread.run_sync(
        partial(_look_up, way), abandon_on_cancel=True, limiter=threads
    )


def _look_up(way: MuxGlob | CidFile) -> Cid | Mux:
    """The same for a source that blocks."""
    from vsockproxy.guests import files  # noqa: PLC0415 - at its use

    match way:
        case MuxGlob(pattern, handshake):
            return Mux(files.find_socket(pattern), handshake)
        case CidFile(path):
            return Cid(files.read_cid(path))
