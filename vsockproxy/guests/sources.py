"""Which source answers for which way.

Owns: the choice, and that what blocks runs in a thread.  Each source is imported when it is
first asked.
"""

from __future__ import annotations

from functools import partial

import trio

from vsockproxy.config.guest import (
    Cid,
    CidFile,
    Command,
    DynamicWay,
    Incus,
    Libvirt,
    Machine,
    Mux,
    MuxGlob,
    Qmp,
)


async def look_up(way: DynamicWay, threads: trio.CapacityLimiter) -> Cid | Mux:
    """Where a guest is now; raises `GuestError`.

    Cancelled, it leaves a thread that hangs behind, which keeps its place among ``threads``.
    """
    match way:
        case Qmp(path):
            from vsockproxy.guests import qmp  # noqa: PLC0415 - at its use

            return Cid(await qmp.find_cid(path))
        case Machine(name):
            from vsockproxy.guests import machined  # noqa: PLC0415 - at its use

            return Cid(await machined.find_cid(name))
        case Command(argv):
            from vsockproxy.guests import command  # noqa: PLC0415 - at its use

            return Cid(await command.find_cid(argv))
        case _:
            return await trio.to_thread.run_sync(
                partial(_look_up, way), abandon_on_cancel=True, limiter=threads
            )


def _look_up(way: MuxGlob | Libvirt | Incus | CidFile) -> Cid | Mux:
    """The same for a source that blocks."""
    match way:
        case Libvirt(domain, uri):
            from vsockproxy.guests import libvirt  # noqa: PLC0415 - at its use

            return Cid(libvirt.find_cid(domain, uri))
        case Incus(name):
            from vsockproxy.guests import incus  # noqa: PLC0415 - at its use

            return Cid(incus.find_cid(name))
    from vsockproxy.guests import file_system as files  # noqa: PLC0415 - at its use

    if isinstance(way, MuxGlob):
        return Mux(files.find_socket(way.pattern), way.handshake)
    return Cid(files.read_cid(way.path))
