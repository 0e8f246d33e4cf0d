"""The daemon as a process: its signals, and the life signs that systemd waits for.

Owns: which signal does what, and what runs beside the daemon. Knows no command and prints
nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace
from typing import Final

import trio

from vsockproxy.admin.socket_path import of_service
from vsockproxy.admit.descriptors import raise_limit
from vsockproxy.config.settings import Config
from vsockproxy.daemon.daemon import Daemon, Load
from vsockproxy.log.output import get_logger
from vsockproxy.systemd import Notifier, inherited_sockets

_BEAT: Final = 5.0  # seconds from one life sign to the next, at most; arbitrary
_RETRY: Final = 0.05  # seconds until systemd, too busy to read, is told again; arbitrary
_GRACE: Final = 5.0  # seconds that the end may take once drain_timeout is over; arbitrary


async def supervise(
    config: Config,
    beside: AbstractAsyncContextManager[None],
    ready: Callable[[], object],
    load: Load | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT has drained the daemon, or a second one has ended it.

    ``beside`` is entered before and left after; ``ready`` is called once every listener is
    open. SIGHUP runs the configuration that ``load``, called in a thread, gives; without
    ``load`` the signal is not handled.

    Returns:
      Whether every connection ended by itself.

    Raises:
      ListenError: as it is, or in exception groups.
    """
    drained: list[bool] = []
    raise_limit()
    with ExitStack() as stack:
        stops = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        notifier = stack.enter_context(Notifier(os.environ, os.getpid()))
        daemon = Daemon(
            _with_socket(config),
            load=None if load is None else lambda: _with_socket(load()),
            inherited=inherited_sockets(os.environ, os.getpid()),
            store=notifier if notifier.active else None,
            notifier=notifier,
        )
        life = _LifeSigns(daemon, notifier)

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            drained.append(await daemon.run(task_status=task_status))
            nursery.cancel_scope.cancel()

        async with beside, trio.open_nursery() as nursery:
            nursery.start_soon(life.stop_at, stops)
            if load is not None:
                hangups = stack.enter_context(trio.open_signal_receiver(signal.SIGHUP))
            await nursery.start(serve)
            ready()
            if load is not None:
                nursery.start_soon(_reload_at, hangups, daemon)
            if notifier.active:
                nursery.start_soon(life.beat)
    return drained == [True]


async def _reload_at(signals: AsyncIterator[int], daemon: Daemon) -> None:
    """Reload at each signal."""
    async for _ in signals:
        await daemon.reload()


class _LifeSigns:
    """What systemd is told while the daemon runs, and while it drains."""

    def __init__(self, daemon: Daemon, notifier: Notifier) -> None:
        self._daemon = daemon
        self._notifier = notifier
        self._log = get_logger()
        self._period = min(_BEAT, (notifier.watchdog_seconds or 2 * _BEAT) / 2)
        self._drained_by: float | None = None

    async def stop_at(self, signals: AsyncIterator[int]) -> None:
        """Drain at the first signal, end every connection at the second."""
        async for _ in signals:
            if self._drained_by is None:
                # A route that a reload has removed may still drain.
                routes = [stats.route for stats in self._daemon.supervisor.stats()]
                longest = max((route.policy.drain_timeout for route in routes), default=0.0)
                self._drained_by = trio.current_time() + longest + _GRACE
            self._daemon.stop()
            self._extend_timeout()

    async def beat(self) -> None:
        """Give systemd life signs and the status, until cancelled."""
        while True:
            started = trio.current_time()
            if await self._is_alive():
                self._notifier.watchdog()
                self._extend_timeout()
            else:
                self._log.error("pump_hung", remedy="WatchdogSec= has systemd restart the service")
            self._daemon.tell_status()
            while not self._notifier.flush():  # noqa: ASYNC110 - systemd sets no Event
                await trio.sleep(_RETRY)
            await trio.sleep_until(started + self._period)

    async def _is_alive(self) -> bool:
        with trio.move_on_after(self._period / 2):
            await self._daemon.alive()
            return True
        return False

    def _extend_timeout(self) -> None:
        """While draining: TimeoutStopSec= must not end what drain_timeout allows."""
        if self._drained_by is not None:
            left = self._drained_by - trio.current_time()
            if left > 0:
                self._notifier.extend_timeout(min(left, 3 * self._period))


def _with_socket(config: Config) -> Config:
    """Return the configuration with the operator's socket where the service manager has it."""
    return replace(config, admin=of_service(config.admin, os.environ))
