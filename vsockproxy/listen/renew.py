"""A listening socket whose file comes and goes with a VMM's folder.

Owns: `keep_present`, the task that binds a route's socket as soon as its folder is there,
and anew when its file is gone: a jailed VMM's folder is removed and made again at each
start, and a socket without its file is one that nobody can reach.  Accepts nothing.

It looks instead of having the kernel watch: a look is one lstat(2), and inotify(7) would
have to follow every folder above that may be made, moved or removed.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from vsockproxy.errors import ListenError
from vsockproxy.listen.listener import RouteListener
from vsockproxy.listen.sockets import Ports

_WHILE_ABSENT: Final = 0.1  # seconds; a VMM needs longer from its folder to its guest's connect
_WHILE_PRESENT: Final = 0.5


async def keep_present(listener: RouteListener, ports: Ports, log: Any) -> None:
    """Have a route's socket file where its clients look for it, until the route stops.

    What keeps it away is logged once, and tried again; live connections are not touched.
    """
    told = ""
    while not listener.released.is_set():
        if ports.is_absent(listener.route.listen):
            told = await _bind(listener, ports, log, told)
        with trio.move_on_after(_WHILE_ABSENT if told else _WHILE_PRESENT):
            await listener.released.wait()


async def _bind(listener: RouteListener, ports: Ports, log: Any, told: str) -> str:
    """Try to listen; what is in the way, in words, empty when nothing is."""
    route = listener.route
    names = {"route": route.name, "listen": str(route.listen)}
    try:
        before = ports.renew(f"route {route.name}", route.listen, route.policy)
    except ListenError as error:
        if error.explanation != told:
            log.warning("listener_retrying", **names, error=str(error))
        return error.explanation
    await listener.replace(ports[route.listen])
    for listening in before:
        listening.close()
    log.info("listener_bound", **names)
    return ""
