"""Every listening socket of the daemon, from open to close, and its leases.

Owns: `ListeningSockets`, the table of open endpoints, and `Lease`, the right of one listener to
accept at an endpoint. A socket outlives the listener that uses it: a reload leases it to the next
route of the same endpoint, and a service manager's fd store hands it on. Accepts nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, NoReturn

import trio

from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint, MuxEndpoint
from vsockproxy.address.sockaddr import Address, socket_file
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ListenError
from vsockproxy.listen.bind import ListeningSocket, listen
from vsockproxy.listen.fd_store import FdStore, Inherited
from vsockproxy.listen.names import Names, Resolved

Accept = Callable[[Sequence[ListeningSocket]], Awaitable[object]]
"""Accepts at some sockets until cancelled."""


@dataclass(frozen=True, slots=True)
class Listen:
    """How to listen at an endpoint, and its owner: ``route web``, ``metrics`` or ``admin``."""

    owner: str
    policy: Policy
    route: str | None = None

    @property
    def names(self) -> dict[str, str]:
        """Return the key of a log line that names the owner: ``route``, or ``server``."""
        return {"server": self.owner} if self.route is None else {"route": self.route}


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
        self._inherited = Inherited(inherited or {}, store)
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
        opened: dict[ListenEndpoint, _Open] = {}
        spare = self._spare(wanted)
        try:
            for endpoint, how in wanted.items():
                if endpoint not in self._open:
                    here = [one for one in spare if one.is_at(endpoint)]
                    entry = self._opened(endpoint, how, here, resolved.get(endpoint, ()))
                    taken = {one.sock for one in entry.sockets}
                    entry.is_taken_over = any(one.sock in taken for one in spare)
                    spare = [one for one in spare if one.sock not in taken]
                    entry.sockets = self._inherited.owned(entry.sockets)
                    opened[endpoint] = entry
        except Exception:  # a defect also leaves nothing open
            for entry in opened.values():
                self._undo(entry)
            raise
        self._open |= opened
        for endpoint, entry in opened.items():
            if not entry.is_restored:
                self._inherited.keep(endpoint, entry.sockets)
        for endpoint, entry in self._open.items():
            entry.is_wanted = endpoint in wanted
        return list(opened)

    def _undo(self, entry: _Open) -> None:
        """Close the sockets of an endpoint that was not open before."""
        if entry.is_restored:
            for listening in entry.sockets:
                listening.leave()
        else:
            self._end(entry.sockets)

    def close_unleased(self) -> None:
        """Close the endpoints without a lease: their clients are refused, not queued."""
        for endpoint in [endpoint for endpoint, entry in self._open.items() if not entry.lease]:
            self._close(endpoint)

    def _close(self, endpoint: ListenEndpoint, lease: Lease | None = None) -> None:
        """Close an endpoint; the last holder of its lease accepts the queued clients first."""
        sockets = self._open.pop(endpoint).sockets
        self._inherited.discard(endpoint, len(sockets))
        self._keep_again()
        self._end(sockets, lease)

    def _keep_again(self) -> None:
        """Have the store keep what it has dropped with the name of another endpoint.

        It keeps a socket once, under its first name (sd_notify(3), FDSTORE=1), also where a new
        endpoint goes on with it; what it has is left alone.
        """
        for endpoint, entry in self._open.items():
            if entry.is_taken_over:
                self._inherited.keep(endpoint, entry.sockets)

    def _end(self, sockets: Sequence[ListeningSocket], lease: Lease | None = None) -> None:
        """Close those sockets that no open endpoint has, for good."""
        used = {one.sock for entry in self._open.values() for one in entry.sockets}
        for listening in sockets:
            if listening.sock in used:
                continue
            if lease is None or isinstance(listening.endpoint, FdEndpoint):  # which stays queued
                listening.close()
            else:
                listening.end(lease.accept_queued)

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
        self._inherited.close()

    def close_unclaimed(self) -> None:
        """Close the sockets restored from the fd store for which there is no endpoint any more."""
        numbers = {endpoint: len(entry.sockets) for endpoint, entry in self._open.items()}
        self._inherited.close_unclaimed(numbers)
        self._keep_again()

    def unused(self) -> list[str]:
        """Return the names of the sockets from systemd's socket units that no endpoint uses."""
        return self._inherited.unused(self._open)

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
        """Return the owner and the policy of an open endpoint."""
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
                self._log.error("listener_options_failed", **how.names, error=str(error))

    def released(self, endpoint: ListenEndpoint) -> None:
        """Close an endpoint whose lease is over, unless another lease will follow."""
        entry = self._open[endpoint]
        lease, entry.lease = entry.lease, None
        if self._is_leaving and self._inherited.has_store:
            for listening in self._open.pop(endpoint).sockets:
                listening.leave()
        elif self._is_leaving or not entry.is_wanted:
            self._close(endpoint, lease)

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
        self._inherited.discard(endpoint, len(entry.sockets))
        before, entry.sockets = entry.sockets, sockets
        self._inherited.keep(endpoint, sockets)
        lease = entry.lease
        if lease is not None:
            await lease.switch()
        self._end(before, lease)

    # ---- binding ----

    def _opened(
        self,
        endpoint: ListenEndpoint,
        how: Listen,
        spare: Sequence[ListeningSocket],
        addresses: Sequence[Address],
    ) -> _Open:
        restored = self._inherited.restored(endpoint)
        if restored:  # the store keeps them already
            return _Open(restored, how, is_restored=True)
        try:
            sockets = self._listen(endpoint, how, spare, addresses)
        except ListenError as error:
            if error.errno != errno.ENOENT or not isinstance(endpoint, MuxEndpoint):
                raise
            sockets = []
        return _Open(sockets, how, configured=None if spare else how.policy)

    def _listen(
        self,
        endpoint: ListenEndpoint,
        how: Listen,
        spare: Sequence[ListeningSocket] = (),
        addresses: Sequence[Address] = (),
    ) -> list[ListeningSocket]:
        inherited, policy = self._inherited.sockets, how.policy
        try:
            return listen(
                endpoint, policy.backlog, inherited, policy, spare=spare, resolved=addresses
            )
        except ListenError as error:
            error.add_note(how.owner)
            raise

    def _spare(self, wanted: Mapping[ListenEndpoint, Listen]) -> list[ListeningSocket]:
        """Return the sockets that will be closed unless a new endpoint goes on with them."""
        leaving = [entry.sockets for end, entry in self._open.items() if end not in wanted]
        return [*chain.from_iterable(leaving), *self._inherited.left_over(wanted)]


class Lease:
    """The right to accept at an endpoint; held by one listener at a time.

    Attributes:
      released: set once the holder has given it back.
      accept_queued: accepts every client in the backlog of a socket without waiting. The holder
        sets it; it is called before a socket is closed for good.
    """

    def __init__(self, owner: ListeningSockets, endpoint: ListenEndpoint) -> None:
        self.endpoint = endpoint
        self.accept_queued: Callable[[socket.socket], object] = _accept_nothing
        self.released = trio.Event()
        self.failure = ""  # why clients do not find it, and it could not listen again
        self._owner = owner
        self._turn = _Turn()
        self._turn.ended.set()

    @property
    def sockets(self) -> Sequence[ListeningSocket]:
        """The sockets to accept at; they stay their owner's."""
        return self._owner.sockets_of(self.endpoint)

    @property
    def how(self) -> Listen:
        """The owner and the policy of the endpoint."""
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

    async def serve(self, accept: Accept) -> NoReturn:
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


def _accept_nothing(_: socket.socket) -> None:
    """Leave the clients in the backlog; they are reset."""


@dataclass(slots=True)
class _Open:
    """An open endpoint.

    Attributes:
      how: its owner and policy.
      configured: the policy whose options the sockets have; None: the first lease sets them.
      is_restored: whether the fd store had the sockets.
      is_taken_over: whether another endpoint had one of the sockets.
    """

    sockets: list[ListeningSocket]
    how: Listen
    configured: Policy | None = None
    is_restored: bool = False
    is_taken_over: bool = False
    lease: Lease | None = None
    is_wanted: bool = True


class _Turn:
    """The time for which a lease's holder accepts at one set of sockets."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
