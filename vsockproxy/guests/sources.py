"""The source for each locator.

Owns: the choice of the source, and the thread for a source that blocks.  A source is imported
at its first look-up.
"""

from __future__ import annotations

from functools import partial

import trio

from vsockproxy.config.guest import (
    Cid,
    CidFile,
    Command,
    DynamicLocator,
    Incus,
    Libvirt,
    Machine,
    Mux,
    MuxGlob,
    Qmp,
)


async def look_up(locator: DynamicLocator, threads: trio.CapacityLimiter) -> Cid | Mux:
    """Return a guest's address.

    Raises:
      GuestError: the guest was not found.

    *Cancellation*: a source that hangs in a thread is abandoned; it occupies its place in
    ``threads`` until it ends.
    """
    match locator:
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
                partial(_look_up, locator), abandon_on_cancel=True, limiter=threads
            )


def _look_up(locator: MuxGlob | Libvirt | Incus | CidFile) -> Cid | Mux:
    """Return a guest's address from a source that blocks; raise `GuestError`."""
    match locator:
        case Libvirt(domain, uri):
            from vsockproxy.guests import libvirt  # noqa: PLC0415 - at its use

            return Cid(libvirt.find_cid(domain, uri))
        case Incus(name):
            from vsockproxy.guests import incus  # noqa: PLC0415 - at its use

            return Cid(incus.find_cid(name))
    from vsockproxy.guests import file_system as files  # noqa: PLC0415 - at its use

    if isinstance(locator, MuxGlob):
        return Mux(files.find_socket(locator.pattern), locator.handshake)
    return Cid(files.read_cid(locator.path))
