"""The native pump: C threads behind one trio task.

Owns: the lifetime of the C threads, and the wake-up of the tasks that await a transfer.  The bytes
move in `_native` without the GIL; this module only hands sockets over and reaps ends.  Importing it
raises ImportError where the C files were not compiled: use `choice.open_pump`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio
from outcome import Outcome, Value, capture

from vsockproxy.pump._native._pump import ffi, lib
from vsockproxy.pump.reset import reset
from vsockproxy.pump.transfer import (
    Accepted,
    Bounds,
    EndReason,
    Meter,
    SharedBandwidth,
    Transfer,
)

if TYPE_CHECKING:
    from vsockproxy.pump._native._pump import End

_ACCEPT: Final = 64  # clients accepted by one call
_REAP: Final = 256  # ends reaped by one call
_ANSWER_POLL: Final = 0.002  # seconds; a thread that is well answers within a turn of its loop
_AFTER_ERROR: Final = 1.0  # seconds until ends are reaped again
_NO_SHARED: Final = (ffi.NULL, ffi.NULL)
REASONS: Final[dict[int, EndReason]] = {
    lib.VSP_FINISHED: "finished",
    lib.VSP_HALF_CLOSE_TIMEOUT: "half_close_timeout",
    lib.VSP_IDLE_TIMEOUT: "idle_timeout",
    lib.VSP_MAX_LIFETIME: "max_lifetime",
    lib.VSP_CLIENT_RESET: "client_reset",
    lib.VSP_TARGET_RESET: "target_reset",
    lib.VSP_CANCELLED: "killed",
    lib.VSP_NO_MEMORY: "no_memory",
}


_log = logging.getLogger(__name__)


class NativePump:
    """Moves bytes in C threads; made by `choice.open_pump`, which runs `serve` beside it."""

    name = "native"

    def __init__(self, threads: int) -> None:
        """Start ``threads`` C threads; raises OSError where the system has none to give."""
        self.why = f"compiled; {threads} thread{'s' if threads > 1 else ''}"
        self._policy = ffi.new("struct vsp_policy *")
        self._ends = ffi.new(f"struct vsp_end[{_REAP}]")
        self._clients = ffi.new(f"struct vsp_client[{_ACCEPT}]")
        self._relay = ffi.new("struct vsp_relay **")
        pump = ffi.new("struct vsp_pump **")
        _raise_errno(lib.vsp_pump_new(threads, pump))
        self._pump = pump[0]
        self._bounds: Bounds | None = None
        # A transfer's tag is its place in the list: cheaper than a key, for an idle connection.
        self._transfers: list[_NativeTransfer | None] = []
        self._free: list[int] = []
        self._reaped = 0  # ends in `_ends`
        self._told = 0  # of them

    def accept(self, listener: int, room: int) -> list[Accepted]:
        """See `Pump.accept`."""
        clients = self._clients
        number = lib.vsp_accept(listener, clients, min(room, _ACCEPT))
        _raise_errno(number)
        return [
            (client.fd, bytes(ffi.buffer(client.address, client.size)))
            for client in clients[0:number]
        ]

    def transfer(
        self, client: int, target: int, bounds: Bounds, meter: Meter
    ) -> Awaitable[Transfer]:
        """See `Pump.transfer`.

        Not a coroutine: its frame would cost memory for each idle connection.
        """
        tag = self._free.pop() if self._free else self._grow()
        transfer = _NativeTransfer(meter)
        try:
            _raise_errno(
                lib.vsp_pump_add(
                    self._pump,
                    tag,
                    client,
                    target,
                    self._policy_of(bounds),
                    self._relay,
                )
            )
        except Exception:
            self._free.append(tag)
            reset(socket.socket(fileno=client))
            reset(socket.socket(fileno=target))
            raise
        self._transfers[tag] = transfer
        transfer.begin(self._relay[0])
        return trio.lowlevel.wait_task_rescheduled(transfer)  # noqa: ASYNC105 - by the caller

    def _grow(self) -> int:
        self._transfers.append(None)
        return len(self._transfers) - 1

    def _policy_of(self, bounds: Bounds) -> Any:
        """Return the bounds for C, valid until the next call."""
        policy = self._policy
        if bounds is self._bounds:  # most connections are of the same route as the one before
            return policy
        self._bounds = None  # an error below must not leave half of them in use
        policy.idle_ms = _milliseconds(bounds.idle_timeout)
        policy.half_close_ms = _milliseconds(bounds.half_close_timeout)
        policy.lifetime_ms = _milliseconds(bounds.max_lifetime)
        policy.hold_ms = _milliseconds(bounds.half_close_hold)
        policy.linger_ms = _milliseconds(bounds.linger_timeout)
        policy.vmm = bounds.vmm
        policy.rate = bounds.bandwidth or 0
        policy.upstream_shared, policy.downstream_shared = bounds.shared or _NO_SHARED
        self._bounds = bounds
        return policy

    def share(self, bandwidth: int) -> SharedBandwidth:
        """See `Pump.share`."""
        shared = lib.vsp_bandwidth_new(bandwidth)
        if shared == ffi.NULL:
            _raise_errno(-errno.ENOMEM)
        return ffi.gc(shared, lib.vsp_bandwidth_unref)

    async def serve(self) -> None:
        """Wake the tasks whose transfers have ended; runs until cancelled."""
        descriptor = lib.vsp_pump_fd(self._pump)
        while True:
            try:
                while self._reap() == _REAP:
                    pass
                await trio.lowlevel.wait_readable(descriptor)
            except Exception:  # noqa: BLE001 - without this task no transfer would ever end
                _log.exception("the ends of transfers cannot be told; it is tried again")
                await trio.sleep(_AFTER_ERROR)

    def _reap(self) -> int:
        """Wake the tasks of up to `_REAP` ended transfers; return how many.

        Raises: what waking raises; the next call goes on with the same end.
        """
        if self._told == self._reaped:
            self._told = 0
            self._reaped = lib.vsp_pump_reap(self._pump, self._ends, _REAP)
        number = self._reaped - self._told
        while self._told < self._reaped:
            self._tell(self._ends[self._told])
            self._told += 1
        return number

    def _tell(self, end: End) -> None:
        transfer = self._transfers[end.tag]
        assert transfer is not None
        # Here and not when the task runs: the relay that the meter reads has been freed.
        transfer.meter.settle(end.upstream_bytes, end.downstream_bytes)
        transfer.wake(Transfer(end.upstream_bytes, end.downstream_bytes, REASONS[end.reason]))
        self._transfers[end.tag] = None
        self._free.append(end.tag)

    async def alive(self) -> None:
        """See `Pump.alive`."""
        lib.vsp_pump_ask(self._pump)
        while lib.vsp_pump_silent(self._pump):  # noqa: ASYNC110 - no C thread sets an Event
            await trio.sleep(_ANSWER_POLL)
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop the threads; every transfer must have ended."""
        assert len(self._free) == len(self._transfers)
        lib.vsp_pump_free(self._pump)


class _NativeTransfer:
    """One transfer under way: what its meter reads, and the task that awaits it.

    It has three roles in one object, because every idle connection has one and a second object
    would cost it about 100 bytes:

    - the `LiveTransfer` that the meter reads, until `NativePump` reaps the end and the C relay
      behind it is freed;
    - the ``abort_fn`` of the task that awaits the end (`trio.lowlevel.wait_task_rescheduled`):
      a bound method would be an object more;
    - what wakes that task.
    """

    __slots__ = ("_raise_cancel", "_relay", "_task", "meter")

    def __init__(self, meter: Meter) -> None:
        """Prepare for `begin`; the current task has to await the end."""
        self.meter = meter
        self._task = trio.lowlevel.current_task()
        self._raise_cancel: Callable[[], NoReturn] | None = None

    def begin(self, relay: Any) -> None:
        """Follow a ``struct vsp_relay *``."""
        self._relay = relay
        self.meter.follow(self)

    # ---- the meter's source ----

    def upstream_bytes(self) -> int:
        return lib.vsp_relay_upstream(self._relay)

    def downstream_bytes(self) -> int:
        return lib.vsp_relay_downstream(self._relay)

    def active(self) -> float:
        return lib.vsp_relay_active(self._relay) / 1000

    def upstream_done(self) -> bool:
        return lib.vsp_relay_upstream_done(self._relay)

    def downstream_done(self) -> bool:
        return lib.vsp_relay_downstream_done(self._relay)

    def descriptor(self, target: bool) -> int:
        return lib.vsp_relay_descriptor(self._relay, target)

    def duplicate(self, target: bool) -> int:
        copy = lib.vsp_relay_duplicate(self._relay, target)
        _raise_errno(copy)
        return copy

    def stop(self) -> None:
        lib.vsp_relay_cancel(self._relay)

    # ---- the task that awaits the end ----

    def __call__(self, raise_cancel: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        """Stop the transfer as its task is cancelled; the task wakes when the end is reaped."""
        self._raise_cancel = raise_cancel
        self.stop()
        return trio.lowlevel.Abort.FAILED

    def wake(self, ended: Transfer) -> None:
        """Wake the task with the transfer's end, or with `trio.Cancelled` if that ended it."""
        outcome: Outcome[Transfer] = Value(ended)
        if ended.reason == "killed" and self._raise_cancel is not None:
            outcome = capture(self._raise_cancel)
        trio.lowlevel.reschedule(self._task, outcome)


def _milliseconds(seconds: float | None) -> int:
    """Return a bound for C, where 0 is no bound: even the shortest is at least 1 ms."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _raise_errno(status: int) -> None:
    if status < 0:
        raise OSError(-status, os.strerror(-status))
