"""Every listening socket of the daemon, and who gets it next.

Owns: the table of open listeners by endpoint.  A socket is opened once and outlives the
route that uses it: a reload hands it to the next route of the same endpoint, and a service
manager that keeps descriptors hands it to the next process.  Accepts nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Container, Mapping, Sequence

from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint, TcpEndpoint
from vsockproxy.address.sockaddr import errno_of
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ListenError, listen_error
from vsockproxy.listen.bind import ListeningSocket, listen, socket_file
from vsockproxy.systemd import store_name

Inherited = Mapping[str, Sequence[socket.socket]]

Keep = Callable[[str, socket.socket], object]
"""Have the service manager keep a socket under a name."""

Forget = Callable[[str], object]
"""Have the service manager let go of a name."""


class Ports:
    """The listening sockets that are open now."""

    def __init__(
        self, inherited: Inherited, *, keep: Keep | None = None, forget: Forget | None = None
    ) -> None:
        """Take kept sockets out of ``inherited``; without ``keep`` a restart opens them anew."""
        self._inherited = inherited
        self._keep = keep
        self._forget = forget
        self._open: dict[ListenEndpoint, list[ListeningSocket]] = {}

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._open

    def __getitem__(self, endpoint: ListenEndpoint) -> list[ListeningSocket]:
        return self._open[endpoint]

    def open(
        self,
        owner: str,
        endpoint: ListenEndpoint,
        policy: Policy,
        staying: Container[ListenEndpoint] | None = None,
    ) -> None:
        """Listen at ``endpoint``; with the sockets that were kept for it, if there are any.

        ``staying`` says which of the open endpoints will go on: addresses of the others may
        overlap (TCP, Linux).
        A folder that is not there yet leaves it open without a socket where ``policy`` waits
        for it: see `is_absent`.  Raises `ListenError` with a note that names the ``owner``.
        """
        kept = self._kept(endpoint)
        if kept:
            self._open[endpoint] = kept
            return
        try:
            leaving = self._at_port_of(endpoint, staying)
            self._open[endpoint] = self._listen(owner, endpoint, policy, leaving)
        except ListenError as error:
            if error.errno != errno.ENOENT or not policy.waits_for_folder(endpoint):
                raise
            self._open[endpoint] = []
        self._store(endpoint)

    def is_absent(self, endpoint: ListenEndpoint) -> bool:
        """Whether clients do not find an open endpoint: its folder or its socket's file is gone."""
        file = socket_file(endpoint)
        return not self._open[endpoint] or (file is not None and not os.path.lexists(file))

    def renew(self, owner: str, endpoint: ListenEndpoint, policy: Policy) -> list[ListeningSocket]:
        """Listen at an open endpoint anew: the sockets from before, the caller's to close.

        Raises `ListenError`, and then has changed nothing.
        """
        opened = self._listen(owner, endpoint, policy)
        self._unstore(endpoint)
        before, self._open[endpoint] = self._open[endpoint], opened
        self._store(endpoint)
        return before

    def close(self, endpoint: ListenEndpoint) -> None:
        """Stop listening for good: clients are refused from now on."""
        self._unstore(endpoint)
        for listening in self._open.pop(endpoint):
            listening.close()

    def leave(self, endpoint: ListenEndpoint) -> None:
        """Let go at the daemon's end: a kept socket goes on, clients wait in its backlog."""
        if self._keep is None:
            self.close(endpoint)
            return
        for listening in self._open.pop(endpoint):
            listening.sock.close()  # and not its file, which the next process listens at

    def leave_all(self) -> None:
        """`leave` whatever is open."""
        for endpoint in list(self._open):
            self.leave(endpoint)

    def _at_port_of(
        self, endpoint: ListenEndpoint, staying: Container[ListenEndpoint] | None
    ) -> list[socket.socket]:
        """The open sockets at a TCP endpoint's port that will not stay."""
        if staying is None or not isinstance(endpoint, TcpEndpoint):
            return []
        return [
            one.sock
            for other, sockets in self._open.items()
            if isinstance(other, TcpEndpoint)
            and other.port == endpoint.port
            and other not in staying
            for one in sockets
        ]

    def _listen(
        self,
        owner: str,
        endpoint: ListenEndpoint,
        policy: Policy,
        leaving: Sequence[socket.socket] = (),
    ) -> list[ListeningSocket]:
        try:
            return listen(endpoint, policy.backlog, self._inherited, policy, leaving)
        except ListenError as error:
            error.add_note(owner)
            raise

    def _store(self, endpoint: ListenEndpoint) -> None:
        if self._keep is not None and not isinstance(endpoint, FdEndpoint):
            for index, listening in enumerate(self._open[endpoint]):
                self._keep(store_name(endpoint, index), listening.sock)

    def _unstore(self, endpoint: ListenEndpoint) -> None:
        if self._forget is not None and not isinstance(endpoint, FdEndpoint):
            for index in range(len(self._open[endpoint])):
                self._forget(store_name(endpoint, index))

    def _kept(self, endpoint: ListenEndpoint) -> list[ListeningSocket]:
        kept: list[ListeningSocket] = []
        while sockets := self._inherited.get(store_name(endpoint, len(kept))):
            try:
                copy = sockets[0].dup()
            except OSError as error:  # no descriptor is left
                for listening in kept:
                    listening.sock.close()
                raise listen_error(endpoint, errno_of(error)) from error
            copy.setblocking(False)
            kept.append(ListeningSocket.adopted(copy, endpoint))
        return kept
