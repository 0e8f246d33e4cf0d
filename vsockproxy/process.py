"""The daemon as a process: a supervisor whose stops are the signals.

Owns: which signals mean what, and what runs beside the supervisor.  Knows no command and
prints nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from itertools import chain

import trio

from vsockproxy.route import Config
from vsockproxy.supervisor import Supervisor
from vsockproxy.systemd import inherited_sockets


async def supervise(
    config: Config, beside: AbstractAsyncContextManager[None], ready: Callable[[], object]
) -> bool:
    """Serve until SIGTERM or SIGINT has drained it, or a second one has ended it.

    ``beside`` is entered before and left after; ``ready`` is called once every listener is
    bound.  True when every connection ended by itself.  Raises `ListenError`, as it is or in
    exception groups.
    """
    drained: list[bool] = []
    with ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT))
        inherited = inherited_sockets(os.environ, os.getpid())
        for sock in chain.from_iterable(inherited.values()):
            stack.enter_context(sock)
        supervisor = Supervisor(config, inherited=inherited)

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            drained.append(await supervisor.run(task_status=task_status))
            nursery.cancel_scope.cancel()

        async with beside, trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at, signals, supervisor)
            await nursery.start(serve)
            ready()
    return drained == [True]


async def _stop_at(signals: AsyncIterator[int], supervisor: Supervisor) -> None:
    async for _ in signals:
        supervisor.stop()
