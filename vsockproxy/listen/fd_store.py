"""The sockets that the service manager handed in, and its store of descriptors.

Owns: `Inherited`: the sockets of socket units, by their names, and those that an earlier process
of the service left in the fd store. Binds nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint, TcpEndpoint
from vsockproxy.address.sockaddr import errno_of
from vsockproxy.errors import ListenError, listen_error
from vsockproxy.listen.bind import ListeningSocket
from vsockproxy.systemd import is_store_name, store_name


class FdStore(Protocol):
    """A service manager's store of file descriptors; `systemd.Notifier` is one."""

    def fd_store(self, name: str, sock: socket.socket) -> object:
        """Keep a duplicate of a socket under a name."""
        ...

    def fd_remove(self, name: str) -> object:
        """Close the sockets that are kept under a name."""
        ...


class Inherited:
    """The inherited sockets; endpoints get duplicates.

    Attributes:
      sockets: by name.
      has_store: whether sockets outlive this process.
    """

    def __init__(
        self, sockets: Mapping[str, Sequence[socket.socket]], store: FdStore | None
    ) -> None:
        """Own ``sockets``; without ``store`` a restart opens its listeners again."""
        self.sockets = {name: list(those) for name, those in sockets.items()}
        self.has_store = store is not None
        self._store = store

    def close(self) -> None:
        """Close every inherited socket."""
        for sock in (sock for sockets in self.sockets.values() for sock in sockets):
            sock.close()

    def unused(self, endpoints: Iterable[ListenEndpoint]) -> list[str]:
        """Return the names of the sockets from systemd's socket units that no endpoint uses."""
        used = {end.name for end in endpoints if isinstance(end, FdEndpoint)}
        return [name for name in self.sockets if name not in used and not is_store_name(name)]

    # ---- the fd store ----

    def keep(self, endpoint: ListenEndpoint, sockets: Sequence[ListeningSocket]) -> None:
        """Have the store keep the sockets of an endpoint."""
        if self._store is not None and not isinstance(endpoint, FdEndpoint):
            for index, listening in enumerate(sockets):
                self._store.fd_store(store_name(endpoint, index), listening.sock)

    def discard(self, endpoint: ListenEndpoint, number: int) -> None:
        """Have the store close the sockets of an endpoint, which has this many."""
        if self._store is not None and not isinstance(endpoint, FdEndpoint):
            for index in range(number):
                self._store.fd_remove(store_name(endpoint, index))

    def restored(self, endpoint: ListenEndpoint) -> list[ListeningSocket]:
        """Return duplicates of the sockets that the store kept for an endpoint.

        Raises `ListenError`.
        """
        restored: list[ListeningSocket] = []
        while sockets := self.sockets.get(store_name(endpoint, len(restored))):
            try:
                copy = _duplicate(ListeningSocket(sockets[0], endpoint)).sock
            except ListenError:
                for listening in restored:
                    listening.leave()
                raise
            restored.append(ListeningSocket.restored(copy, endpoint))
        return restored

    def left_over(self, endpoints: Iterable[ListenEndpoint]) -> list[ListeningSocket]:
        """Return the TCP sockets that the store kept for none of these endpoints.

        They are this object's: `owned` has duplicates for an endpoint that goes on with them.
        """
        if not self.sockets:  # hundreds of names cost a millisecond
            return []
        claimed = {_family(store_name(endpoint, 0)) for endpoint in endpoints}
        return [
            ListeningSocket(sock, TcpEndpoint(*sock.getsockname()[:2]))
            for name, sockets in self.sockets.items()
            if is_store_name(name) and _family(name) not in claimed
            for sock in sockets
            if sock.family in (socket.AF_INET, socket.AF_INET6)
        ]

    def owned(self, sockets: Sequence[ListeningSocket]) -> list[ListeningSocket]:
        """Return the sockets, those that are this object's as duplicates; raises `ListenError`."""
        ours = {sock for those in self.sockets.values() for sock in those}
        return [_duplicate(one) if one.sock in ours else one for one in sockets]

    def close_unclaimed(self, numbers: Mapping[ListenEndpoint, int]) -> None:
        """Close the store's sockets, but not in the store those of the open endpoints.

        ``numbers`` has how many sockets each endpoint has.
        """
        claimed = {store_name(end, index) for end, n in numbers.items() for index in range(n)}
        for name in filter(is_store_name, list(self.sockets)):
            if name not in claimed and self._store is not None:
                self._store.fd_remove(name)
            for sock in self.sockets.pop(name):  # an endpoint has duplicates
                sock.close()


def _duplicate(listening: ListeningSocket) -> ListeningSocket:
    try:
        copy = listening.sock.dup()
    except OSError as error:  # no descriptor is left
        raise listen_error(listening.endpoint, errno_of(error)) from error
    copy.setblocking(False)
    return replace(listening, sock=copy)


def _family(name: str) -> str:
    """Return what the names of all sockets of one endpoint have in common."""
    return name.rpartition("-")[0]
