"""The daemon as a process: its signals.

Owns: which signal does what, and what runs beside the daemon. Those that come before there is a
daemon are `early_signals`'s. Knows no command and prints nothing.

| signal | effect |
|---|---|
| SIGTERM, SIGINT | drain, after drain_delay; the second one ends every connection |
| SIGHUP | `reload`; where there is no file that could have changed, as SIGTERM |
| SIGUSR1, SIGUSR2 | a log line |
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from typing import Final

import trio

from vsockproxy import children
from vsockproxy.admin.socket_path import DefaultSocket
from vsockproxy.admit.descriptors import raise_limit
from vsockproxy.config.settings import Config
from vsockproxy.daemon import early_signals
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.daemon.reload import Load
from vsockproxy.daemon.watchdog import LifeSigns
from vsockproxy.errors import OrderError
from vsockproxy.log.output import get_logger
from vsockproxy.systemd import Notifier, inherited_sockets

_IGNORED: Final = (signal.SIGUSR1, signal.SIGUSR2)


async def supervise(
    config: Config,
    beside: AbstractAsyncContextManager[None],
    ready: Callable[[], object],
    load: Load | None = None,
    *,
    is_file: bool = True,
) -> bool:
    """Serve until a signal has drained the daemon, or a second one has ended it.

    Args:
      beside: entered before and left after.
      ready: called once every listener is open.
      load: reads the configuration again for a reload, in a thread; None for no reloads.
      is_file: whether it can have changed, so that SIGHUP asks for a reload.

    Returns:
      Whether no connection had to be ended.

    Raises:
      ListenError: as it is, or in exception groups.
    """
    drained: list[bool] = []
    soft, _ = raise_limit()
    children.give_limit(soft)
    reloads = load is not None and is_file
    with ExitStack() as stack:
        stops = stack.enter_context(trio.open_signal_receiver(*_stops(reloads), *_IGNORED))
        if reloads:
            hangups = stack.enter_context(trio.open_signal_receiver(signal.SIGHUP))
        early = early_signals.take()  # those that come from now on are received
        if set(early) & _stops(reloads):
            get_logger().info("stopped", drained=True)
            return True
        notifier = stack.enter_context(Notifier(os.environ, os.getpid()))
        control = DefaultSocket(os.environ, os.geteuid(), failed=_log_control_failure)
        daemon = Daemon(
            control.resolve(config),
            load=None if load is None else lambda: control.resolve(load()),
            inherited=inherited_sockets(os.environ, os.getpid()),
            store=notifier if notifier.active else None,
            notifier=notifier,
            control=control,
        )
        life = LifeSigns(daemon, notifier)

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            drained.append(await daemon.run(task_status=task_status))
            nursery.cancel_scope.cancel()

        async with beside, trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at, stops, life)
            if children.inherits_orphans():
                nursery.start_soon(children.reap_orphans)
            await nursery.start(serve)
            if not daemon.is_stopping:
                ready()
            if reloads:
                nursery.start_soon(_reload_at, hangups, daemon, signal.SIGHUP in early)
            if notifier.active:
                nursery.start_soon(life.beat)
    return drained == [True]


def _log_control_failure(error: str) -> None:
    remedy = 'set [admin] socket to a path, or to "off"'
    get_logger().warning("control_socket_failed", error=error, remedy=remedy)


def _stops(reloads: bool) -> set[int]:
    """Return the signals that end the daemon."""
    if reloads or early_signals.is_hangup_ignored():
        return set(early_signals.STOPS)
    return {*early_signals.STOPS, signal.SIGHUP}


async def _stop_at(signals: AsyncIterator[int], life: LifeSigns) -> None:
    """Drain at the first signal, end every connection at the second; log those of `_IGNORED`."""
    async for number in signals:
        if number in _IGNORED:
            get_logger().info("signal_ignored", signal=signal.Signals(number).name)
        else:
            life.stop()


async def _reload_at(signals: AsyncIterator[int], daemon: Daemon, at_once: bool) -> None:
    """Reload at each signal, and at once for one that came before the daemon was ready."""
    if at_once:
        await _reload(daemon)
    async for _ in signals:
        await _reload(daemon)


async def _reload(daemon: Daemon) -> None:
    with suppress(OrderError):  # the log has it
        await daemon.reload()
