"""The daemon as a process: its signals.

Owns: which signal does what, and what runs beside the daemon. Knows no command and prints
nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace

import trio

from vsockproxy.admin.socket_path import of_service
from vsockproxy.admit.descriptors import raise_limit
from vsockproxy.config.settings import Config
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.daemon.reload import Load
from vsockproxy.daemon.watchdog import LifeSigns
from vsockproxy.systemd import Notifier, inherited_sockets


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
        life = LifeSigns(daemon, notifier)

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


def _with_socket(config: Config) -> Config:
    """Return the configuration with the operator's socket where the service manager has it."""
    return replace(config, admin=of_service(config.admin, os.environ))
