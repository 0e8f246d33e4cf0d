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
from typing import Any, Final, NoReturn

import trio
from outcome import Outcome, Value, capture

from vsockproxy.pump._native._pump import ffi, lib
from vsockproxy.pump.native_direct import DirectRoutes, NativeLimit, NativeRoute
from vsockproxy.pump.native_relay import (
    REASONS,
    LiveRelay,
    News,
    NewsRoom,
    Slots,
    fill_policy,
    raise_errno,
    release,
)
from vsockproxy.pump.reset import reset
from vsockproxy.pump.transfer import (
    Accepted,
    Bounds,
    Meter,
    SharedBandwidth,
    Transfer,
)

_ACCEPT: Final = 64  # clients accepted by one call
_REAP: Final = 256  # news reaped by one call
_GIVEN: Final = 0xFFFFFFFF  # the route of a relay whose sockets were given to the pump
_ANSWER_POLL: Final = 0.001  # seconds; a thread that is well answers within a turn of its loop
_AFTER_ERROR: Final = 1.0  # seconds until ends are reaped again


_log = logging.getLogger(__name__)


class NativePump:
    """Moves bytes in C threads; made by `choice.open_pump`, which runs `serve` beside it."""

    name = "native"

    def __init__(self, threads: int) -> None:
        """Start ``threads`` C threads; raises OSError where the system has none to give."""
        self.why = f"compiled; {threads} thread{'s' if threads > 1 else ''}"
        self._policy = ffi.new("struct vsp_policy *")
        self._room = NewsRoom(_REAP)
        self._clients = ffi.new(f"struct vsp_client[{_ACCEPT}]")
        self._relay = ffi.new("struct vsp_relay **")
        pump = ffi.new("struct vsp_pump **")
        raise_errno(lib.vsp_pump_new(threads, pump))
        self._pump = pump[0]
        self._bounds: Bounds | None = None
        self._relays: Slots[Any] = Slots()
        self._direct = DirectRoutes(self._pump, self._relays)
        self._news: list[News] = []
        self._reported = 0  # of it
        self._unread = 0  # news that was reaped and is still C's structs

    def accept(self, listener: int, room: int) -> list[Accepted]:
        """See `Pump.accept`."""
        clients = self._clients
        number = lib.vsp_accept(listener, clients, min(room, _ACCEPT))
        raise_errno(number)
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
        tag = None
        try:
            transfer = _NativeTransfer(meter)
            tag = self._relays.take(transfer)
            raise_errno(
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
            if tag is not None:
                self._relays.free(tag)
            reset(socket.socket(fileno=client))
            reset(socket.socket(fileno=target))
            raise
        transfer.begin(self._relay[0])
        return trio.lowlevel.wait_task_rescheduled(transfer)  # noqa: ASYNC105 - by the caller

    def _policy_of(self, bounds: Bounds) -> Any:
        """Return the bounds for C, valid until the next call."""
        policy = self._policy
        if bounds is self._bounds:  # most connections are of the same route as the one before
            return policy
        self._bounds = None  # an error below must not leave half of them in use
        fill_policy(policy, bounds)
        self._bounds = bounds
        return policy

    def share(self, bandwidth: int) -> SharedBandwidth:
        """See `Pump.share`."""
        shared = lib.vsp_bandwidth_new(bandwidth)
        if shared == ffi.NULL:
            raise_errno(-errno.ENOMEM)
        return ffi.gc(shared, lib.vsp_bandwidth_unref)

    @property
    def limit(self) -> NativeLimit:
        """See `Pump.limit`."""
        return self._direct.limit

    def route(self) -> NativeRoute:
        """See `Pump.route`."""
        return self._direct.route()

    async def serve(self) -> None:
        """Tell the news: wake the tasks whose transfers have ended; runs until cancelled."""
        descriptor = lib.vsp_pump_fd(self._pump)
        while True:
            try:
                while self._reap() == _REAP:
                    pass
                await trio.lowlevel.wait_readable(descriptor)
            except Exception:  # noqa: BLE001 - without this task no transfer would ever end
                _log.exception("the ends of transfers cannot be reported; it is tried again")
                await trio.sleep(_AFTER_ERROR)

    def _reap(self) -> int:
        """Tell up to `_REAP` pieces of news; return how many.

        Raises: what telling raises; the next call goes on with the same end.
        """
        if self._reported == len(self._news):
            # In this order, so that no error has a piece of news told twice, or not at all.
            self._news, self._reported = [], 0
            self._unread = self._unread or lib.vsp_pump_reap(self._pump, self._room.structs, _REAP)
            self._news = self._room.read(self._unread)
            self._unread = 0
        number = len(self._news)  # also where an error cut the batch: more may be behind it
        while self._reported < len(self._news):
            news = self._news[self._reported]
            if news.route != _GIVEN:
                self._reported += 1  # it is reported once, whatever happens
                self._tell_direct(news)
            else:
                self._tell(news)
                self._reported += 1
        if number < _REAP:
            try:
                self._direct.count()
            finally:
                self._direct.halt()
        return number

    def _tell(self, news: News) -> None:
        transfer = self._relays[news.tag]
        if transfer is not None:  # else an earlier call has come as far as here
            transfer.meter.settle(news.upstream_bytes, news.downstream_bytes)
            transfer.wake(
                Transfer(news.upstream_bytes, news.downstream_bytes, REASONS[news.reason])
            )
            self._relays.free(news.tag)
        release(news)

    def _tell_direct(self, news: News) -> None:
        try:
            self._direct.tell(news)
        except Exception:  # noqa: BLE001 - a defect in one connection affects no other
            _log.exception("a connection of a direct route cannot be counted")

    async def alive(self) -> None:
        """See `Pump.alive`."""
        lib.vsp_pump_ask(self._pump)
        while lib.vsp_pump_silent(self._pump):  # noqa: ASYNC110 - no C thread sets an Event
            await trio.sleep(_ANSWER_POLL)
        try:
            while self._reap() == _REAP:
                pass
        except Exception:  # noqa: BLE001 - `serve` logs the next one, and tries until there is none
            os.eventfd_write(lib.vsp_pump_fd(self._pump), 1)
        # The tasks that were woken run in the turn of the first one, before or after it.
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Stop the threads; every transfer must have ended."""
        assert not len(self._relays)
        lib.vsp_pump_free(self._pump)


class _NativeTransfer(LiveRelay):
    """One transfer under way: what its meter reads, and the task that awaits it.

    It has three roles in one object, because every idle connection has one and a second object
    would cost it about 100 bytes:

    - the `LiveTransfer` that the meter reads, until `NativePump` reaps the end and the C relay
      behind it is freed;
    - the ``abort_fn`` of the task that awaits the end (`trio.lowlevel.wait_task_rescheduled`):
      a bound method would be an object more;
    - what wakes that task.
    """

    __slots__ = ("_raise_cancel", "_task")

    def __init__(self, meter: Meter) -> None:
        """Prepare for `begin`; the current task has to await the end."""
        super().__init__(ffi.NULL)
        self.meter = meter
        self._task = trio.lowlevel.current_task()
        self._raise_cancel: Callable[[], NoReturn] | None = None

    def begin(self, relay: Any) -> None:
        """Follow a ``struct vsp_relay *``."""
        self.relay = relay
        self.meter.follow(self)

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
