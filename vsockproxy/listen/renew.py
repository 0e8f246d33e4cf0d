"""A listening socket whose file comes and goes with a VMM's folder.

Owns: `serve_renewed`, which binds a Unix socket as soon as its folder exists, and again when
its file is gone: a jailed VMM's folder is removed and made again at each start, and no
client reaches a socket without its file.

It polls instead of watching: a look is one lstat(2), and inotify(7) would have to follow every
folder above that may be made, moved or removed.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import trio

from vsockproxy.address.sockaddr import socket_file
from vsockproxy.errors import ListenError
from vsockproxy.listen.sockets import Accept, Lease

_WHILE_ABSENT: Final = 0.1  # seconds; a VMM needs longer from its folder to its guest's connect
_WHILE_PRESENT: Final = 0.5


async def serve_renewed(lease: Lease, accept: Accept, log: Any) -> NoReturn:
    """Run ``accept`` on a lease's sockets, and keep their file where clients look for it.

    Until cancelled. A failure to bind is logged once and retried; live connections are not touched.
    """
    if socket_file(lease.endpoint) is None:  # as most have: a task and a nursery less for each
        await lease.serve(accept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_file, lease, log)
        await lease.serve(accept)


async def _keep_file(lease: Lease, log: Any) -> None:
    while True:
        lease.failure = await _renew(lease, log, lease.failure) if lease.is_absent else ""
        pause = _WHILE_ABSENT if lease.failure else _WHILE_PRESENT
        # At multiples of it: one wake-up of the event loop then looks at the files of all leases.
        await trio.sleep_until((trio.current_time() // pause + 1) * pause)


async def _renew(lease: Lease, log: Any, logged: str) -> str:
    """Bind again; return why that failed, in words, or an empty text."""
    names = lease.how.names | {"listen": str(lease.endpoint)}
    try:
        await lease.renew()
    except ListenError as error:
        if error.explanation != logged:
            log.warning("listener_retrying", **names, error=str(error))
        return error.explanation
    log.info("listener_bound", **names)
    return ""
