"""Look up host names: one look-up for each name at a time, in threads of their own.

A name that a client has chosen shares no thread with those of the configuration, and one client's
names take only a few: the owner of a name decides how long its server is silent.

Owns: `Resolver`, one for each run of trio, with the look-ups under way. A name server that is
silent keeps a thread for as long as the system's resolver waits (resolv.conf(5)), whether its
clients are still there or not. That is one thread for a name, whatever the number of its clients,
and no thread of trio's, which formats the metrics and loads a configuration.
"""

from __future__ import annotations

import errno
import socket
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import trio

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.address.sockaddr import Address, distinct_addresses, errno_of, unresolved
from vsockproxy.errors import DialError, dial_error
from vsockproxy.per_trio_run import PerRun

_AT_ONCE: Final = 256
"""Names that are looked up at the same time, each in a thread; more than a file usually has.

As many again that clients have chosen. Beyond it, a name waits until another look-up has ended,
within its clients' time limits."""

_AT_ONCE_FOR_ONE: Final = 16
"""Of the names that clients have chosen, those of one client."""

_MOST_ADDRESSES: Final = 16
"""Addresses of a name that are used, the first ones; an answer over TCP can have thousands."""


class _LookUp:
    """One look-up; once ``done``, either ``found`` or ``failure`` is its result.

    Attributes:
      clients: how many await it.
      waiting: the scope in which it waits for a thread; None once it has one.
    """

    def __init__(self) -> None:
        self.clients = 0
        self.waiting: trio.CancelScope | None = trio.CancelScope()
        self.done = trio.Event()
        self.found: list[Address] = []
        self.failure: Exception | None = None


class Resolver:
    """The look-ups of host names of one run of trio."""

    def __init__(self) -> None:
        """Look up every name of this run in own threads, those of other libraries included."""
        self._begun: dict[str, _LookUp] = {}
        self._waiting: dict[tuple[str, str | None], _LookUp] = {}
        self._written = trio.CapacityLimiter(_AT_ONCE)
        self._chosen = trio.CapacityLimiter(_AT_ONCE)
        # Of each client whose names are looked up: the look-ups hold its limiter.
        self._shares: WeakValueDictionary[str, trio.CapacityLimiter] = WeakValueDictionary()
        trio.socket.set_custom_hostname_resolver(_Threads())

    async def addresses(
        self, endpoint: TcpEndpoint, deadline: float, chosen_by: str | None = None
    ) -> list[Address]:
        """Return the addresses of an endpoint's host, in the resolver's order.

        ``deadline`` is in trio's time; ``chosen_by`` is the client who has chosen the name, as
        `Peer.source`. Cancelled or late, it leaves the look-up to the next client of the name, if a
        thread has begun it. Raises `DialError`.
        """
        assert endpoint.host is not None
        key = (endpoint.host, chosen_by)
        look_up = self._begun.get(endpoint.host) or self._waiting.get(key) or self._queue(*key)
        look_up.clients += 1
        try:
            with trio.CancelScope(deadline=deadline):
                await look_up.done.wait()
        finally:
            look_up.clients -= 1
            if not look_up.clients and look_up.waiting is not None:
                look_up.waiting.cancel()
                del self._waiting[key]
        if not look_up.done.is_set():
            cause = "slow_resolver" if look_up.waiting is None else "busy_resolver"
            raise dial_error(endpoint, cause, errno=errno.ETIMEDOUT)
        if look_up.failure is not None:
            raise _failed(endpoint, look_up.failure) from look_up.failure
        port = endpoint.port
        return [(family, (host, port, *more)) for family, (host, _, *more) in look_up.found]

    def _queue(self, host: str, chosen_by: str | None) -> _LookUp:
        look_up = self._waiting[host, chosen_by] = _LookUp()
        # No task of a client: another one may need the result after it has left.
        run = partial(self._run, host, look_up, chosen_by)
        trio.lowlevel.spawn_system_task(run, name="look-up of a host name")
        return look_up

    async def _run(self, host: str, look_up: _LookUp, chosen_by: str | None) -> None:
        assert look_up.waiting is not None
        async with AsyncExitStack() as turn:
            with look_up.waiting as waiting:
                for limiter in self._limiters(chosen_by):
                    await turn.enter_async_context(limiter)
            if waiting.cancel_called:  # its clients have left, even if it has got a thread
                return
            del self._waiting[host, chosen_by]
            look_up.waiting = None
            self._begun[host] = look_up
            try:
                found = await trio.socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
                look_up.found = distinct_addresses(found)[:_MOST_ADDRESSES]
            except Exception as error:  # noqa: BLE001 - it would end the daemon; clients are told
                look_up.failure = error
            finally:
                if self._begun.get(host) is look_up:
                    del self._begun[host]
                look_up.done.set()

    def _limiters(self, chosen_by: str | None) -> list[trio.CapacityLimiter]:
        if chosen_by is None:
            return [self._written]
        share = self._shares.setdefault(chosen_by, trio.CapacityLimiter(_AT_ONCE_FOR_ONE))
        return [share, self._chosen]


def _failed(endpoint: TcpEndpoint, error: Exception) -> DialError:
    if isinstance(error, socket.gaierror | UnicodeError):
        return dial_error(endpoint, "name", unresolved(endpoint, error))
    if isinstance(error, OSError):  # EAI_SYSTEM, such as a full table of descriptors
        return dial_error(endpoint, errno_of(error))
    return dial_error(endpoint, "no_thread", error)


class _Threads(trio.abc.HostnameResolver):
    """The system's resolver, in threads that nothing else uses."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(2 * _AT_ONCE)

    async def getaddrinfo(self, *question: Any) -> Any:
        return await trio.to_thread.run_sync(
            socket.getaddrinfo, *question, abandon_on_cancel=True, limiter=self._limiter
        )

    async def getnameinfo(self, *question: Any) -> Any:
        return await trio.to_thread.run_sync(
            socket.getnameinfo, *question, abandon_on_cancel=True, limiter=self._limiter
        )


RESOLVER: Final = PerRun(Resolver)
"""The resolver of this run of trio."""
