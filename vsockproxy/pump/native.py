"""The native pump: C threads behind one trio task, and the choice between the pumps.

Owns: the lifetime of the C threads, the wake-up of the tasks that wait for a transfer, and
`open_pump`.  The bytes move in `_native/pump.c` without the GIL; this module only hands
sockets over and takes ends back.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio
from outcome import Outcome, Value, capture

from vsockproxy.config.settings import PumpSettings
from vsockproxy.pump.portable import PortablePump
from vsockproxy.pump.transfer import Accepted, Bounds, EndReason, Limit, Meter, Pump, Transfer

if TYPE_CHECKING:
    from vsockproxy.pump._native._pump import End, Ffi, Lib

_ACCEPT: Final = 64  # clients taken by one call
_REAP: Final = 256  # ends taken by one call
_ANSWER_POLL: Final = 0.002  # seconds; a thread that is well answers within a turn of its loop


class NativePump:
    """Moves bytes in C threads; made by `open_pump`, which runs `serve` beside it."""

    name = "native"

    def __init__(self, threads: int) -> None:
        """Start ``threads`` C threads; raises OSError if the system has none to give."""
        from vsockproxy.pump._native import _pump  # noqa: PLC0415 - it may not be compiled

        self.why = f"compiled; {threads} thread{'s' if threads > 1 else ''}"
        self._lib: Lib = _pump.lib
        self._ffi: Ffi = _pump.ffi
        self._null = self._ffi.NULL
        self._no_limits = (self._null, self._null)
        self._policy = _pump.ffi.new("struct vsp_policy *")
        self._ends = _pump.ffi.new(f"struct vsp_end[{_REAP}]")
        self._clients = _pump.ffi.new(f"struct vsp_client[{_ACCEPT}]")
        self._relay = _pump.ffi.new("struct vsp_relay **")
        pump = _pump.ffi.new("struct vsp_pump **")
        _raise_errno(self._lib.vsp_pump_new(threads, pump))
        self._pump = pump[0]
        self._bounds: Bounds | None = None
        # A list and the places free in it: an idle connection costs a place, no key.
        self._running: list[_Running | None] = []
        self._free: list[int] = []
        self._reasons: dict[int, EndReason] = {
            self._lib.VSP_FINISHED: "finished",
            self._lib.VSP_HALF_CLOSE_TIMEOUT: "half_close_timeout",
            self._lib.VSP_IDLE_TIMEOUT: "idle_timeout",
            self._lib.VSP_MAX_LIFETIME: "max_lifetime",
            self._lib.VSP_CLIENT_RESET: "client_reset",
            self._lib.VSP_TARGET_RESET: "target_reset",
            self._lib.VSP_CANCELLED: "killed",
        }

    def accept(self, listener: int, room: int) -> list[Accepted]:
        """See `Pump.accept`."""
        clients = self._clients
        number = self._lib.vsp_accept(listener, clients, min(room, _ACCEPT))
        _raise_errno(number)
        return [
            (client.fd, bytes(self._ffi.buffer(client.address, client.size)))
            for client in clients[0:number]
        ]

    def transfer(
        self, client: int, target: int, bounds: Bounds, meter: Meter
    ) -> Awaitable[Transfer]:
        """See `Pump.transfer`.

        No coroutine: a frame that waits is memory that each idle connection has.
        """
        tag = self._free.pop() if self._free else self._grow()
        try:
            _raise_errno(
                self._lib.vsp_pump_add(
                    self._pump,
                    tag,
                    client,
                    target,
                    self._policy_of(bounds),
                    self._relay,
                )
            )
        except OSError:
            self._free.append(tag)
            os.close(client)
            os.close(target)
            raise
        running = _Running(self._relay[0], meter)
        self._running[tag] = running
        meter.follow(running)
        return trio.lowlevel.wait_task_rescheduled(running)  # noqa: ASYNC105 - by the caller

    def _grow(self) -> int:
        self._running.append(None)
        return len(self._running) - 1

    def _policy_of(self, bounds: Bounds) -> Any:
        """The bounds for C; valid until the next call."""
        policy = self._policy
        if bounds is self._bounds:  # as the connection before: most come by one route
            return policy
        self._bounds = None  # until all of them are there
        policy.idle_ms = _milliseconds(bounds.idle_timeout)
        policy.half_close_ms = _milliseconds(bounds.half_close_timeout)
        policy.lifetime_ms = _milliseconds(bounds.max_lifetime)
        policy.hold = bounds.hold_half_close
        policy.rate = bounds.bandwidth or 0
        policy.upstream_shared, policy.downstream_shared = bounds.shared or self._no_limits
        self._bounds = bounds
        return policy

    def share(self, bandwidth: int) -> Limit:
        """See `Pump.share`."""
        limit = self._lib.vsp_bandwidth_new(bandwidth)
        if limit == self._null:
            _raise_errno(-errno.ENOMEM)
        return self._ffi.gc(limit, self._lib.vsp_bandwidth_unref)

    async def serve(self) -> None:
        """Wake the tasks whose transfers have ended; runs until cancelled."""
        descriptor = self._lib.vsp_pump_fd(self._pump)
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            while self._reap() == _REAP:
                pass

    def _reap(self) -> int:
        number = self._lib.vsp_pump_reap(self._pump, self._ends, _REAP)
        for index in range(number):
            end: End = self._ends[index]
            running = self._running[end.tag]
            assert running is not None
            self._running[end.tag] = None
            self._free.append(end.tag)
            # Now and not when the task runs: the relay that the meter reads is gone.
            running.meter.settle(end.upstream_bytes, end.downstream_bytes)
            reason = self._reasons[end.reason]
            outcome: Outcome[Transfer]
            if reason == "killed" and running.raise_cancel is not None:
                outcome = capture(running.raise_cancel)
            else:
                outcome = Value(Transfer(end.upstream_bytes, end.downstream_bytes, reason))
            trio.lowlevel.reschedule(running.task, outcome)
        return number

    async def alive(self) -> None:
        """See `Pump.alive`."""
        self._lib.vsp_pump_ask(self._pump)
        while self._lib.vsp_pump_silent(self._pump):  # noqa: ASYNC110 - no C thread sets an Event
            await trio.sleep(_ANSWER_POLL)
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop the threads; no transfer may be under way."""
        assert len(self._free) == len(self._running)
        self._lib.vsp_pump_free(self._pump)


def _library() -> Lib:
    """The compiled functions, for those who have no room to keep them."""
    from vsockproxy.pump._native import _pump  # noqa: PLC0415 - only the native pump's own get here

    return _pump.lib


class _Running:
    """The C side of one transfer, which a task awaits, until its end is reaped.

    Called, it is that task's ``abort_fn`` (`trio.lowlevel.wait_task_rescheduled`): one object
    less than a bound method, for each idle connection.
    """

    __slots__ = ("_handle", "meter", "raise_cancel", "task")

    def __init__(self, handle: Any, meter: Meter) -> None:
        self._handle = handle
        self.meter = meter
        self.task = trio.lowlevel.current_task()
        self.raise_cancel: Callable[[], NoReturn] | None = None

    def upstream_bytes(self) -> int:
        return _library().vsp_relay_upstream(self._handle)

    def downstream_bytes(self) -> int:
        return _library().vsp_relay_downstream(self._handle)

    def active(self) -> float:
        return _library().vsp_relay_active(self._handle) / 1000

    def upstream_done(self) -> bool:
        return _library().vsp_relay_upstream_done(self._handle)

    def downstream_done(self) -> bool:
        return _library().vsp_relay_downstream_done(self._handle)

    def descriptor(self, target: bool) -> int:
        return _library().vsp_relay_descriptor(self._handle, target)

    def duplicate(self, target: bool) -> int:
        copy = _library().vsp_relay_duplicate(self._handle, target)
        _raise_errno(copy)
        return copy

    def stop(self) -> None:
        _library().vsp_relay_cancel(self._handle)

    def __call__(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        """Cancel: the C thread closes the sockets and reports the end like any other."""
        self.raise_cancel = raise_cancel
        self.stop()
        return trio.lowlevel.Abort.FAILED


@asynccontextmanager
async def open_pump(settings: PumpSettings) -> AsyncIterator[Pump]:
    """The pump that the settings ask for, running until the block is left.

    ``auto`` is the native one where it was compiled and its threads start.  Raises OSError
    or ImportError where ``native`` was asked for and cannot be had.
    """
    if settings.choice == "portable":
        yield PortablePump("asked for")
        return
    try:
        pump = NativePump(settings.threads or _default_threads())
    except (ImportError, OSError) as error:
        if settings.choice == "native":
            raise
        yield PortablePump(_why_not(error))
        return
    try:
        async with trio.open_nursery() as nursery:
            # Shielded: a relay that is cancelled waits for its end, which serve() brings.
            serving = trio.CancelScope(shield=True)
            nursery.start_soon(_serve, pump, serving)
            try:
                yield pump
            finally:
                serving.cancel()
    finally:
        pump.close()


def _why_not(error: ImportError | OSError) -> str:
    """Why there is no native pump here, and what would bring it."""
    if isinstance(error, OSError):
        return f"the native pump's threads do not start: {error}"
    if sys.platform != "linux":
        return "the native pump needs Linux"
    return "the native pump was not compiled: install gcc and Python's headers, then reinstall"


async def _serve(pump: NativePump, scope: trio.CancelScope) -> None:
    with scope:
        await pump.serve()


def _default_threads() -> int:
    """One thread carries gigabytes a second; the accepting task wants a core as well."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def _milliseconds(seconds: float | None) -> int:
    """For the C side, where 0 is no bound: a bound, however short, is at least one."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _raise_errno(status: int) -> None:
    if status < 0:
        raise OSError(-status, os.strerror(-status))
