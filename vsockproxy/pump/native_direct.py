"""Direct routes of the native pump: what C accepts and dials, as Python knows it.

Owns: `NativeRoute` and `NativeLimit`, and `DirectNews`, which turns a piece of news into a call of
`Clients`.  A connection that is over before it is reported costs no object here.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

import trio
from outcome import Error, Value

from vsockproxy.pump._native._pump import ffi, lib
from vsockproxy.pump.direct import (
    Clients,
    DialCause,
    DialFailure,
    Dialled,
    DirectTarget,
    Durations,
    Ending,
    Opening,
    Tally,
)
from vsockproxy.pump.native_relay import (
    REASONS,
    LiveRelay,
    News,
    Slots,
    fill_policy,
    milliseconds,
    raise_errno,
    release,
)

_MICRO: Final = 1e-6
_NO_BOUND: Final = 2**63 - 1
_TALLY: Final = struct.Struct(f"@QQ{lib.VSP_REASONS}QQQq{lib.VSP_BUCKETS}Qq{lib.VSP_BUCKETS}Qq")
assert _TALLY.size == ffi.sizeof("struct vsp_tally")
_NO_LIMIT: Final = 2**62
_NO_TAG: Final = 0xFFFFFFFF  # of a relay that has not been reported, or could not be
_CAUSES: Final[dict[int, DialCause]] = {
    lib.VSP_ERRNO: "errno",
    lib.VSP_CLOSED_BEFORE_OK: "closed_before_ok",
    lib.VSP_MALFORMED: "protocol",
}


class NativeLimit:
    """A ``struct vsp_limit``; see `direct.ConnectionLimit`.

    Attributes:
      reported: the open connections that were reported.
    """

    __slots__ = ("c_limit", "reported")

    def __init__(self) -> None:
        limit = lib.vsp_limit_new()
        if limit == ffi.NULL:
            raise MemoryError
        self.c_limit = ffi.gc(limit, lib.vsp_limit_unref)
        self.reported = 0

    def allow(self, most: float) -> None:
        """See `direct.ConnectionLimit`."""
        lib.vsp_limit_set(self.c_limit, int(min(most, _NO_LIMIT)))

    @property
    def unreported(self) -> int:
        """See `direct.ConnectionLimit`."""
        return lib.vsp_limit_live(self.c_limit) - self.reported


class DirectRoutes:
    """The direct routes of one pump, and what is reported of their connections.

    Attributes:
      limit: those of all routes together.
      ends: where tasks wait for ends of connections to be told.
    """

    def __init__(self, pump: Any, relays: Slots[Any]) -> None:
        """Share the table of ``relays`` with the pump: a tag names one in either's news."""
        self.limit = NativeLimit()
        self.ends = trio.lowlevel.ParkingLot()
        self._pump = pump
        self._relays = relays
        self._clients: Slots[tuple[Clients, NativeLimit]] = Slots()
        self._servers: Slots[Callable[[int], None]] = Slots()
        self._error = ffi.new("int *")
        self._tally = ffi.new("struct vsp_tally *")

    def route(self) -> NativeRoute:
        """Return a new route."""
        return NativeRoute(self)

    def halt(self) -> None:
        """Wake the tasks whose servers have halted."""
        while (tag := lib.vsp_pump_halted(self._pump, self._error)) >= 0:
            wake = self._servers[tag]
            assert wake is not None
            wake(self._error[0])

    def count(self) -> None:
        """Tell the clients of direct routes of the connections that were only counted.

        Raises: what they raise; the next call goes on with those of another route.
        """
        while lib.vsp_pump_tally(self._pump, self._tally):
            route, *numbers = _TALLY.unpack(ffi.buffer(self._tally))
            known = self._clients[route]
            assert known is not None
            self.ends.unpark_all()
            known[0].counted(_tally(numbers))

    def tell(self, news: News) -> None:
        """Tell the clients of a direct route of one connection.

        Raises: what they raise; the connection is then known to be over, is live, or is ended.
        """
        try:
            self._tell(news)
        finally:
            if news.what & lib.VSP_NEWS_ENDED:
                release(news)
                self.ends.unpark_all()

    def _tell(self, news: News) -> None:
        known = self._clients[news.route]
        assert known is not None
        clients, limit = known
        if news.unanswered >= 0:
            clients.unanswered(news.unanswered)
        ended = _ending(news) if news.what & lib.VSP_NEWS_ENDED else None
        dialled = _dialled(news) if news.what & lib.VSP_NEWS_CONNECTED else None
        if news.what & lib.VSP_NEWS_OPENED:
            if ended is not None:
                clients.passed(_opening(news), dialled, ended)
                return
            live = self._open(clients, limit, news)
        elif news.tag == _NO_TAG:  # its opening could not be told
            return
        else:
            known_live = self._relays[news.tag]
            assert known_live is not None
            live = known_live
        try:
            if dialled is not None:
                clients.connected(live.meter, dialled)
        finally:
            if ended is not None:
                self._close(live, limit, news)
                clients.ended(live.meter, ended)

    def _open(self, clients: Clients, limit: NativeLimit, news: News) -> LiveRelay:
        handle = ffi.cast("struct vsp_relay *", news.relay)
        tag = None
        try:
            live = LiveRelay(handle)
            tag = self._relays.take(live)
            live.meter = clients.opened(_opening(news), live)
        except Exception:
            if tag is not None:
                self._relays.free(tag)
            lib.vsp_relay_cancel(handle)  # no view shows it and no kill finds it
            raise
        lib.vsp_relay_set_tag(handle, tag)
        limit.reported += 1
        self.limit.reported += 1
        return live

    def _close(self, live: LiveRelay, limit: NativeLimit, news: News) -> None:
        limit.reported -= 1
        self.limit.reported -= 1
        self._relays.free(news.tag)
        live.meter.settle(news.upstream_bytes, news.downstream_bytes)

    # ---- what a route calls ----

    def add(self, clients: Clients, limit: NativeLimit) -> int:
        """Return the number that names clients in news."""
        return self._clients.take((clients, limit))

    def forget(self, number: int) -> None:
        """Forget clients for which no news can come any more."""
        self._clients.free(number)

    async def serve(
        self, listener: int, target: DirectTarget, number: int, limit: NativeLimit
    ) -> None:
        """See `direct.DirectRoute.serve`."""
        task = trio.lowlevel.current_task()
        server = ffi.new("struct vsp_server **")
        # Kept alive: the policy's shared bandwidths are `target`'s until C has its own references.
        c_target = _struct_of(target)

        def wake(error: int) -> None:
            halted = OSError(error, os.strerror(error))
            trio.lowlevel.reschedule(task, Error(halted) if error else Value(None))

        def stop(_: object) -> trio.lowlevel.Abort:
            lib.vsp_server_stop(server[0])
            server[0] = ffi.NULL
            return trio.lowlevel.Abort.SUCCEEDED

        tag = self._servers.take(wake)
        try:
            raise_errno(
                lib.vsp_pump_serve(
                    self._pump,
                    tag,
                    number,
                    listener,
                    c_target,
                    limit.c_limit,
                    self.limit.c_limit,
                    server,
                )
            )
            del c_target
            await trio.lowlevel.wait_task_rescheduled(stop)
        finally:
            if server[0] != ffi.NULL:
                lib.vsp_server_stop(server[0])
            self._servers.free(tag)


class NativeRoute:
    """A direct route; see `direct.DirectRoute`."""

    def __init__(self, routes: DirectRoutes) -> None:
        self.limit = NativeLimit()
        self._routes = routes
        self._numbers: dict[Clients, int] = {}

    @property
    def _is_over(self) -> bool:
        return not lib.vsp_limit_unreported(self.limit.c_limit)

    async def outlast(self) -> None:
        """See `direct.DirectRoute`."""
        while not self._is_over:
            await self._routes.ends.park()

    async def serve(self, listener: int, target: DirectTarget, clients: Clients) -> None:
        """See `direct.DirectRoute`."""
        # The pump's sockets are audited as those of the socket module are.
        family = int.from_bytes(target.address[:2], sys.byteorder)
        sys.audit("socket.__new__", self, family, socket.SOCK_STREAM, 0)
        if clients not in self._numbers:
            self._forget_others()
            self._numbers[clients] = self._routes.add(clients, self.limit)
        await self._routes.serve(listener, target, self._numbers[clients], self.limit)

    def _forget_others(self) -> None:
        """Forget the clients of earlier configurations, if news of none of them can come."""
        if self._is_over:
            for number in self._numbers.values():
                self._routes.forget(number)
            self._numbers.clear()

    def close(self) -> None:
        """See `direct.DirectRoute`."""
        assert self._is_over
        self._forget_others()


# ---- values for C, and out of it ----


def _struct_of(target: DirectTarget) -> Any:
    """Return a target as a ``struct vsp_target``."""
    c_target = ffi.new("struct vsp_target *")
    ffi.memmove(c_target.address, target.address, len(target.address))
    c_target.address_size = len(target.address)
    c_target.connect_ms = milliseconds(target.connect_timeout)
    c_target.handshake_ms = milliseconds(target.handshake_timeout)
    ffi.memmove(c_target.request, target.request, len(target.request))
    c_target.answers = target.answers
    c_target.option_count = len(target.options)
    for option, (level, name, value) in zip(c_target.options, target.options, strict=False):
        option.level, option.name, option.value = level, name, value
    fill_policy(c_target.policy, target.bounds)
    c_target.tallied = target.buckets is not None
    for c_bounds, bounds in zip(
        (c_target.dial_bounds_us, c_target.life_bounds_us), target.buckets or (), strict=False
    ):
        assert len(bounds) < lib.VSP_BUCKETS
        for number in range(lib.VSP_BUCKETS - 1):
            c_bounds[number] = round(bounds[number] / _MICRO) if number < len(bounds) else _NO_BOUND
    return c_target


def _opening(news: News) -> Opening:
    return Opening(news.opened_us * _MICRO, news.address[: news.address_size])


def _dialled(news: News) -> Dialled:
    return Dialled((news.connected_us - news.opened_us) * _MICRO, news.vmm_port)


def _ending(news: News) -> Ending:
    failure = None
    if news.reason == lib.VSP_DIAL_FAILED:
        failure = DialFailure(_CAUSES[news.cause], news.error, news.line[: news.line_size])
    return Ending(
        REASONS.get(news.reason),
        failure,
        (news.ended_us - news.opened_us) * _MICRO,
        news.upstream_bytes,
        news.downstream_bytes,
    )


def _tally(numbers: list[int]) -> Tally:
    """Return the numbers of a ``struct vsp_tally`` behind its route."""
    numbers.reverse()  # so that they are popped in their order
    take = numbers.pop

    def durations() -> Durations:
        return Durations([take() for _ in range(lib.VSP_BUCKETS)], take() * _MICRO)

    number, ended = take(), [take() for _ in range(lib.VSP_REASONS)]
    ends = {REASONS[reason]: count for reason, count in enumerate(ended) if count}
    return Tally(number, ends, take(), take(), take() * _MICRO, durations(), durations())
