"""A listening socket whose file comes and goes with a VMM's folder.

Owns: `keep_file`, the task that binds a Unix socket as soon as its folder exists, and again
when its file is gone: a jailed VMM's folder is removed and made again at each start, and no
client reaches a socket without its file. Accepts nothing.

It polls instead of watching: a look is one lstat(2), and inotify(7) would have to follow every
folder above that may be made, moved or removed.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from vsockproxy.address.sockaddr import socket_file
from vsockproxy.errors import ListenError
from vsockproxy.listen.sockets import Lease

_WHILE_ABSENT: Final = 0.1  # seconds; a VMM needs longer from its folder to its guest's connect
_WHILE_PRESENT: Final = 0.5


async def keep_file(lease: Lease, log: Any) -> None:
    """Keep a leased endpoint's socket file where its clients look for it; until cancelled.

    A failure to bind is logged once and retried; live connections are not touched. Returns at
    once for an endpoint that has no file.
    """
    if socket_file(lease.endpoint) is None:
        return
    failure = ""
    while True:
        if lease.is_absent:
            failure = await _renew(lease, log, failure)
        await trio.sleep(_WHILE_ABSENT if failure else _WHILE_PRESENT)


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
