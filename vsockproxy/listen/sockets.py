"""Every listening socket of the daemon, from open to close, and who may accept at it.

Owns: `ListeningSockets`, the table of open endpoints, and `Lease`, the right of one listener to
accept at an endpoint. A socket outlives the listener that uses it: a reload leases it to the
next route of the same endpoint, and a service manager's fd store hands it to the next process.
Accepts nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import trio

from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint, MuxEndpoint, TcpEndpoint
from vsockproxy.address.sockaddr import Address, errno_of, socket_file
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ListenError, listen_error
from vsockproxy.listen.bind import ListeningSocket, listen
from vsockproxy.listen.names import Names, Resolved
from vsockproxy.systemd import is_store_name, store_name

Accept = Callable[[Sequence[ListeningSocket]], Awaitable[object]]
"""Accepts at some sockets until cancelled."""


class FdStore(Protocol):
    """A service manager's store of file descriptors; `systemd.Notifier` is one."""

    def fd_store(self, name: str, sock: socket.socket) -> object:
        """Keep a duplicate of a socket under a name."""
        ...

    def fd_remove(self, name: str) -> object:
        """Close the sockets that are kept under a name."""
        ...


@dataclass(frozen=True, slots=True)
class Listen:
    """How to listen at an endpoint, and for whom: ``route web``, ``metrics`` or ``admin``."""

    owner: str
    policy: Policy
    route: str | None = None


class ListeningSockets:
    """The listening sockets that are open now; `close_all` ends them."""

    def __init__(
        self,
        inherited: Mapping[str, Sequence[socket.socket]] | None = None,
        *,
        store: FdStore | None = None,
        log: Any,
    ) -> None:
        """Own ``inherited``, the sockets that systemd handed in, by name.

        With ``store`` the sockets outlive this process; without it a restart opens them again.
        """
        self._inherited = {name: list(sockets) for name, sockets in (inherited or {}).items()}
        self._store = store
        self._log = log
        self._open: dict[ListenEndpoint, _Open] = {}
        self._is_leaving = False
        self._names = Names()

    def __contains__(self, endpoint: object) -> bool:
        return endpoint in self._open

    # ---- open and close ----

    async def resolve(self, wanted: Mapping[ListenEndpoint, Listen]) -> Resolved:
        """Return the addresses of the host names in ``wanted`` that are not open, for `open`.

        Raises `ListenError` with a note that names the owner, after 15 seconds at the latest.
        """
        try:
            return await self._names.resolve(end for end in wanted if end not in self._open)
        except ListenError as error:
            error.add_note(next(how.owner for end, how in wanted.items() if end == error.endpoint))
            raise

    def open(
        self,
        wanted: Mapping[ListenEndpoint, Listen],
        resolved: Resolved = MappingProxyType({}),
    ) -> list[ListenEndpoint]:
        """Listen at every endpoint of ``wanted``, and return those that were not open before.

        It waits for nothing: ``resolved`` has the addresses of host names.

        Endpoints outside ``wanted`` are closed once their lease is released; the addresses of new
        ones may overlap theirs (TCP, Linux). An endpoint whose folder does not exist yet is open
        without a socket if the folder comes with a VMM (`MuxEndpoint`).

        Raises:
          ListenError: an endpoint cannot be bound. A note names its owner, and nothing changes.
        """
        opened: list[ListenEndpoint] = []
        try:
            for endpoint, how in wanted.items():
                if endpoint not in self._open:
                    addresses = resolved.get(endpoint, ())
                    self._open[endpoint] = self._opened(endpoint, how, wanted, addresses)
                    opened.append(endpoint)
                    self._log.debug("listening", owner=how.owner, listen=str(endpoint))
        except ListenError:
            self._close(opened)
            raise
        for endpoint, entry in self._open.items():
            entry.is_wanted = endpoint in wanted
        return opened

    def close_unleased(self) -> None:
        """Close the endpoints without a lease: their clients are refused, not queued."""
        self._close([endpoint for endpoint, entry in self._open.items() if entry.lease is None])

    def _close(self, endpoints: Sequence[ListenEndpoint]) -> None:
        for endpoint in endpoints:
            self._discard(endpoint)
            for listening in self._open.pop(endpoint).sockets:
                listening.close()

    def close_when_released(self, endpoint: ListenEndpoint) -> None:
        """Close an endpoint once its lease is released, although the configuration has it."""
        self._open[endpoint].is_wanted = False

    def leave(self) -> None:
        """Close each socket once its lease is released, for the end of the process.

        With an fd store the listeners go on in it: clients are queued for the next process.
        """
        self._is_leaving = True

    def close_all(self) -> None:
        """Close every socket, or leave it to the fd store; all leases are released."""
        self._is_leaving = True
        for endpoint in list(self._open):
            self.released(endpoint)
        for sock in (sock for sockets in self._inherited.values() for sock in sockets):
            sock.close()

    def close_unclaimed(self) -> None:
        """Close the sockets restored from the fd store for which there is no endpoint any more."""
        claimed = {
            store_name(endpoint, index)
            for endpoint, entry in self._open.items()
            for index in range(len(entry.sockets))
        }
        for name in filter(is_store_name, list(self._inherited)):
            if name not in claimed and self._store is not None:
                self._store.fd_remove(name)
            for sock in self._inherited.pop(name):  # an endpoint has duplicates
                sock.close()

    def unused(self) -> list[str]:
        """Return the names of the sockets from systemd's socket units that no endpoint uses."""
        used = {end.name for end in self._open if isinstance(end, FdEndpoint)}
        return [name for name in self._inherited if name not in used and not is_store_name(name)]

    # ---- leases ----

    def lease(self, endpoint: ListenEndpoint, how: Listen) -> Lease:
        """Lease an open endpoint, whose lease before this one is released.

        The sockets, and a Unix socket's file, get the options of the policy.
        """
        entry = self._open[endpoint]
        assert entry.lease is None, endpoint
        lease = entry.lease = Lease(self, endpoint)
        self.configure(endpoint, how)
        return lease

    def how(self, endpoint: ListenEndpoint) -> Listen:
        """Return for whom an endpoint is open, and with which policy."""
        return self._open[endpoint].how

    def sockets_of(self, endpoint: ListenEndpoint) -> Sequence[ListeningSocket]:
        """Return the sockets of an open endpoint: none while its folder does not exist."""
        return self._open[endpoint].sockets

    def configure(self, endpoint: ListenEndpoint, how: Listen) -> None:
        """Set the options of a policy; where that fails those from before stay, which is logged."""
        entry = self._open[endpoint]
        entry.how = how
        if entry.configured == how.policy:
            return
        entry.configured = how.policy
        for listening in entry.sockets:
            try:
                listening.configure(how.policy)
            except ListenError as error:
                self._log.error("listener_options_failed", route=how.route, error=str(error))

    def released(self, endpoint: ListenEndpoint) -> None:
        """Close an endpoint whose lease is over, unless another lease will follow."""
        entry = self._open[endpoint]
        entry.lease = None
        if self._is_leaving and self._store is not None:
            for listening in self._open.pop(endpoint).sockets:
                listening.leave()
        elif self._is_leaving or not entry.is_wanted:
            self._close([endpoint])

    # ---- sockets whose files come and go ----

    def is_absent(self, endpoint: ListenEndpoint) -> bool:
        """Return whether clients do not find an endpoint: its folder or its file does not exist."""
        file = socket_file(endpoint)
        return not self._open[endpoint].sockets or (file is not None and not os.path.lexists(file))

    async def renew(self, endpoint: ListenEndpoint) -> None:
        """Listen at an open endpoint again, in place of a socket whose file is gone.

        The lease goes on with the new socket. Raises `ListenError`, and nothing changes.
        """
        entry = self._open[endpoint]
        sockets = self._listen(endpoint, entry.how)
        self._discard(endpoint)
        before, entry.sockets = entry.sockets, sockets
        self._keep(endpoint, sockets)
        if entry.lease is not None:
            await entry.lease.switch()
        for listening in before:
            listening.close()

    # ---- binding ----

    def _opened(
        self,
        endpoint: ListenEndpoint,
        how: Listen,
        wanted: Mapping[ListenEndpoint, Listen],
        addresses: Sequence[Address],
    ) -> _Open:
        restored = self._restored(endpoint)
        if restored:  # the store keeps them already; their options are set by the first lease
            return _Open(restored, how, configured=None)
        try:
            leaving = self._leaving_at(endpoint, wanted)
            sockets = self._listen(endpoint, how, leaving, addresses)
        except ListenError as error:
            if error.errno != errno.ENOENT or not isinstance(endpoint, MuxEndpoint):
                raise
            sockets = []
        self._keep(endpoint, sockets)
        return _Open(sockets, how, configured=how.policy)

    def _listen(
        self,
        endpoint: ListenEndpoint,
        how: Listen,
        leaving: Sequence[socket.socket] = (),
        addresses: Sequence[Address] = (),
    ) -> list[ListeningSocket]:
        policy = how.policy
        try:
            return listen(
                endpoint,
                policy.backlog,
                self._inherited,
                policy,
                leaving=leaving,
                resolved=addresses,
            )
        except ListenError as error:
            error.add_note(how.owner)
            raise

    def _leaving_at(
        self, endpoint: ListenEndpoint, wanted: Mapping[ListenEndpoint, Listen]
    ) -> list[socket.socket]:
        """Return the open sockets at a TCP endpoint's port that will be closed."""
        return [
            listening.sock
            for other, entry in self._open.items()
            if isinstance(endpoint, TcpEndpoint)
            and isinstance(other, TcpEndpoint)
            and other.port == endpoint.port
            and other not in wanted
            for listening in entry.sockets
        ]

    # ---- the fd store ----

    def _restored(self, endpoint: ListenEndpoint) -> list[ListeningSocket]:
        """Return duplicates of the sockets that the fd store kept for an endpoint."""
        restored: list[ListeningSocket] = []
        while sockets := self._inherited.get(store_name(endpoint, len(restored))):
            try:
                copy = sockets[0].dup()
            except OSError as error:  # no descriptor is left
                for listening in restored:
                    listening.leave()
                raise listen_error(endpoint, errno_of(error)) from error
            copy.setblocking(False)
            restored.append(ListeningSocket.restored(copy, endpoint))
        return restored

    def _keep(self, endpoint: ListenEndpoint, sockets: Sequence[ListeningSocket]) -> None:
        if self._store is not None and not isinstance(endpoint, FdEndpoint):
            for index, listening in enumerate(sockets):
                self._store.fd_store(store_name(endpoint, index), listening.sock)

    def _discard(self, endpoint: ListenEndpoint) -> None:
        if self._store is not None and not isinstance(endpoint, FdEndpoint):
            for index in range(len(self._open[endpoint].sockets)):
                self._store.fd_remove(store_name(endpoint, index))


class Lease:
    """The right to accept at an endpoint; held by one listener at a time.

    Attributes:
      released: set once the holder has given it back.
    """

    def __init__(self, owner: ListeningSockets, endpoint: ListenEndpoint) -> None:
        self.endpoint = endpoint
        self.released = trio.Event()
        self._owner = owner
        self._turn = _Turn()
        self._turn.ended.set()

    @property
    def sockets(self) -> Sequence[ListeningSocket]:
        """The sockets to accept at; they stay their owner's."""
        return self._owner.sockets_of(self.endpoint)

    @property
    def how(self) -> Listen:
        """For whom the endpoint is open, and with which policy."""
        return self._owner.how(self.endpoint)

    @property
    def is_absent(self) -> bool:
        """Whether clients do not find the endpoint: its folder or its file does not exist."""
        return self._owner.is_absent(self.endpoint)

    def configure(self, how: Listen) -> None:
        """Set the options of another policy, for the clients that connect from now on."""
        if not self.released.is_set():  # a listener that has stopped is reconfigured too
            self._owner.configure(self.endpoint, how)

    async def renew(self) -> None:
        """Listen again where the file is gone; raises `ListenError`, and nothing changes."""
        await self._owner.renew(self.endpoint)

    async def serve(self, accept: Accept) -> None:
        """Run ``accept`` on the sockets, and again on those that replace them; until cancelled."""
        while True:
            turn = self._turn = _Turn()
            try:
                with turn.scope:
                    await accept(self.sockets)
            finally:
                turn.ended.set()

    async def switch(self) -> None:
        """Have `serve` go on with the present sockets; return once no task waits for the others."""
        self._turn.scope.cancel()
        with trio.CancelScope(shield=True):  # the caller closes the others, cancelled or not
            await self._turn.ended.wait()

    def release(self) -> None:
        """Give the endpoint back; no task may wait for its sockets any more. Idempotent."""
        if not self.released.is_set():
            self.released.set()
            self._owner.released(self.endpoint)


class _Open:
    """An open endpoint: its sockets, the policy whose options they have, and its lease."""

    def __init__(
        self, sockets: list[ListeningSocket], how: Listen, configured: Policy | None
    ) -> None:
        self.sockets = sockets
        self.how = how
        self.configured = configured
        self.lease: Lease | None = None
        self.is_wanted = True


class _Turn:
    """The time for which a lease's holder accepts at one set of sockets."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
