"""The host names of TCP listeners, resolved before their sockets are opened.

Owns: `Names`: a look-up may block for as long as a name server is silent, so it runs in a thread
and has a time limit. Opens no socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import trio

from vsockproxy.address.endpoint import ListenEndpoint, TcpEndpoint
from vsockproxy.address.sockaddr import Address, distinct_addresses, literal_addresses, unresolved
from vsockproxy.errors import ListenError, listen_error

Resolved = Mapping[ListenEndpoint, Sequence[Address]]
"""The addresses of the endpoints with host names."""

_PATIENCE: Final = 15.0  # seconds; resolv.conf's default asks a second server after 5
_THREADS: Final = 4  # those of abandoned look-ups included


class Names:
    """Resolves the names of listeners, a few at a time."""

    def __init__(self) -> None:
        # Dials of any number that wait for a name server take no thread from a reload.
        self._threads = trio.CapacityLimiter(_THREADS)

    async def resolve(self, endpoints: Iterable[ListenEndpoint]) -> Resolved:
        """Return the addresses of those endpoints that have a host name.

        Raises:
          ListenError: a name does not resolve, or not all of them do within 15 seconds.
        """
        resolved: dict[ListenEndpoint, Sequence[Address]] = {}
        deadline = trio.current_time() + _PATIENCE
        for endpoint in endpoints:
            if isinstance(endpoint, TcpEndpoint) and literal_addresses(endpoint) is None:
                resolved[endpoint] = await self._addresses(endpoint, deadline)
        return resolved

    async def _addresses(self, endpoint: TcpEndpoint, deadline: float) -> Sequence[Address]:
        look_up = partial(socket.getaddrinfo, endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        with trio.CancelScope(deadline=deadline):
            try:
                found = await trio.to_thread.run_sync(
                    look_up, abandon_on_cancel=True, limiter=self._threads
                )
            except (socket.gaierror, UnicodeError) as error:
                raise ListenError(endpoint, "name", unresolved(endpoint, error)) from error
            except RuntimeError as error:  # the system gives no thread
                raise ListenError(endpoint, "no_resources", str(error)) from error
            return distinct_addresses(found)
        raise listen_error(endpoint, "slow_resolver")
