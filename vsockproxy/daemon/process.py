"""The daemon as a process: a supervisor, the signals, and what systemd is told.

Owns: which signals mean what, what runs beside the supervisor, and the life signs of the
service.  Knows no command and prints nothing.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace
from itertools import chain, count
from typing import Any, Final

import trio

from vsockproxy import readable
from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint
from vsockproxy.admin.socket_path import of_service
from vsockproxy.admit.descriptors import raise_limit
from vsockproxy.config.settings import Config
from vsockproxy.daemon.supervisor import Supervisor
from vsockproxy.errors import VsockproxyError
from vsockproxy.log.output import get_logger
from vsockproxy.log.recent import Recorder
from vsockproxy.systemd import Notifier, inherited_sockets, is_store_name, store_name

_BEAT: Final = 5.0  # seconds from one life sign to the next, at most; arbitrary
_RETRY: Final = 0.05  # seconds until systemd, too busy to listen, is told again; arbitrary
_GRACE: Final = 5.0  # seconds that the end may take once drain_timeout is over; arbitrary


async def supervise(
    config: Config,
    beside: AbstractAsyncContextManager[None],
    ready: Callable[[], object],
    load: Callable[[], Config] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT has drained it, or a second one has ended it.

    ``beside`` is entered before and left after; ``ready`` is called once every listener is
    bound.  SIGHUP replaces the configuration by what ``load``, called in a thread, gives;
    without ``load`` it is not ours.  True when every connection ended by itself.  Raises
    `ListenError`, as it is or in exception groups.
    """
    drained: list[bool] = []
    raise_limit()
    with ExitStack() as stack:
        stops = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        notifier = stack.enter_context(Notifier(os.environ, os.getpid()))
        inherited = inherited_sockets(os.environ, os.getpid())
        for sock in chain.from_iterable(inherited.values()):
            stack.enter_context(sock)
        supervisor = Supervisor(
            _placed(config),
            inherited=inherited,
            keep=notifier.fd_store if notifier.active else None,
            forget=notifier.fd_remove if notifier.active else None,
        )
        service = _Service(supervisor, notifier, inherited, load)
        reload = None if load is None else service.reload_as_asked

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            drained.append(await supervisor.run(reload=reload, task_status=task_status))
            nursery.cancel_scope.cancel()

        async with beside, trio.open_nursery() as nursery:
            nursery.start_soon(service.stop_at, stops)
            if load is not None:
                hangups = stack.enter_context(trio.open_signal_receiver(signal.SIGHUP))
            await nursery.start(serve)
            service.start()
            ready()
            if load is not None:
                nursery.start_soon(service.reload_at, hangups)
                nursery.start_soon(service.reload_for_those_who_ask)
            if notifier.active:
                nursery.start_soon(service.beat)
    return drained == [True]


class _Service:
    """The supervisor as systemd sees it: its states, its status, its life signs."""

    def __init__(
        self,
        supervisor: Supervisor,
        notifier: Notifier,
        inherited: dict[str, list[socket.socket]],
        load: Callable[[], Config] | None,
    ) -> None:
        self._supervisor = supervisor
        self._notifier = notifier
        self._inherited = inherited
        self._load = load
        self._asks, self._asked = trio.open_memory_channel[_Asked](0)
        self._log: Any = Recorder(get_logger(), supervisor.events)
        self._period = min(_BEAT, (notifier.watchdog_seconds or 2 * _BEAT) / 2)
        self._trouble = ""
        self._status = ""
        self._drained_by: float | None = None

    def start(self) -> None:
        """Say that every listener is bound, and what was handed in for none."""
        self._let_go_of_kept()
        self._warn_of_surplus()
        self._tell_status()
        self._notifier.ready()

    async def stop_at(self, signals: AsyncIterator[int]) -> None:
        """Drain at the first signal, end every connection at the second."""
        async for _ in signals:
            if self._drained_by is None:
                routes = [stats.route for stats in self._supervisor.stats()]
                longest = max((route.policy.drain_timeout for route in routes), default=0.0)
                self._drained_by = trio.current_time() + longest + _GRACE
                self._notifier.stopping()
                self._extend_timeout()
            self._supervisor.stop()
            self._tell_status()

    async def reload_at(self, signals: AsyncIterator[int]) -> None:
        """Take over what ``load`` gives at each signal, until a stop; or log why not."""
        async for _ in signals:
            await self._reload()

    async def reload_as_asked(self) -> list[str]:
        """The same for one who waits for it, and may go away meanwhile: what is wrong."""
        asked = _Asked()
        await self._asks.send(asked)
        await asked.done.wait()
        return asked.problems

    async def reload_for_those_who_ask(self) -> None:
        """Serve `reload_as_asked`, until cancelled."""
        async for asked in self._asked:
            asked.problems = await self._reload()
            asked.done.set()

    async def _reload(self) -> list[str]:
        """Reload as systemd wants to see it, unless the daemon stops: what is wrong."""
        problems = ["the daemon drains: it takes no other configuration"]
        if self._drained_by is None:
            self._notifier.reloading()
            problems = await self._take_over()
            self._tell_status()
        if self._drained_by is None:  # still
            self._notifier.ready()
        return problems

    async def _take_over(self) -> list[str]:
        load = self._load
        assert load is not None
        try:
            await self._supervisor.reload(lambda: _placed(load()))
        except VsockproxyError as error:
            self._trouble = "the last reload failed, see the log; "
            problems = _problems(error)
            for problem in problems:
                self._log.error("reload_failed", problem=problem)
            return problems
        self._trouble = ""
        self._warn_of_surplus()
        return []

    async def beat(self) -> None:
        """Give systemd life signs and the status, until cancelled."""
        while True:
            started = trio.current_time()
            if await self._is_alive():
                self._notifier.watchdog()
                self._extend_timeout()
            else:
                self._log.error("pump_hung", remedy="WatchdogSec= has systemd restart the service")
            self._tell_status()
            while not self._notifier.flush():  # noqa: ASYNC110 - systemd sets no Event
                await trio.sleep(_RETRY)
            await trio.sleep_until(started + self._period)

    async def _is_alive(self) -> bool:
        with trio.move_on_after(self._period / 2):
            await self._supervisor.alive()
            return True
        return False

    def _extend_timeout(self) -> None:
        """While draining: TimeoutStopSec= must not end what drain_timeout allows."""
        if self._drained_by is not None:
            left = self._drained_by - trio.current_time()
            if left > 0:
                self._notifier.extend_timeout(min(left, 3 * self._period))

    def _tell_status(self) -> None:
        routes = readable.count(len(self._supervisor.listeners), "route")
        doing = routes if self._drained_by is None else "draining"
        live = readable.count(self._supervisor.live(), "live connection")
        status = f"{self._trouble}{doing}, {live}"
        if status != self._status and self._notifier.status(status):
            self._status = status

    def _let_go_of_kept(self) -> None:
        """Close what came out of the store: routes have duplicates, and what has none is over."""
        wanted = {name for endpoint in self._endpoints() for name in self._kept_for(endpoint)}
        for name in filter(is_store_name, list(self._inherited)):
            if name not in wanted:
                self._notifier.fd_remove(name)
            for sock in self._inherited.pop(name):
                sock.close()

    def _kept_for(self, endpoint: ListenEndpoint) -> Iterator[str]:
        for index in count():
            name = store_name(endpoint, index)
            if name not in self._inherited:
                return
            yield name

    def _warn_of_surplus(self) -> None:
        used = {end.name for end in self._endpoints() if isinstance(end, FdEndpoint)}
        for name in self._inherited.keys() - used:
            remedy = f"clients wait there in vain: listen on fd:{name}, or stop its .socket unit"
            self._log.warning("unused_socket", name=name, remedy=remedy)

    def _endpoints(self) -> Iterator[ListenEndpoint]:
        config = self._supervisor.config
        yield from (route.listen for route in config.routes)
        if config.metrics is not None:
            yield config.metrics
        if config.admin.listen is not None:
            yield config.admin.listen


def _placed(config: Config) -> Config:
    """The configuration with the operator's socket where the service manager wants it."""
    return replace(config, admin=of_service(config.admin, os.environ))


class _Asked:
    """A reload that somebody waits for."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.done = trio.Event()


def _problems(error: VsockproxyError) -> list[str]:
    """The lines of an error, each after what it was about (`BaseException.add_note`)."""
    notes: list[str] = getattr(error, "__notes__", [])
    return [": ".join([*notes, line]) for line in str(error).splitlines()]
