"""One relay of the C threads as Python knows it: the news of it, its handle, its policy.

Owns: `News`, `LiveRelay` and `Slots`, which both kinds of relay need: those whose task awaits them
(`native`) and those of direct routes (`native_direct`).
"""

from __future__ import annotations

import os
import struct
from typing import Any, Final, Generic, NamedTuple, TypeVar

from vsockproxy.pump._native._pump import ffi, lib
from vsockproxy.pump.transfer import Bounds, EndReason, Meter

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

_NO_SHARED: Final = (ffi.NULL, ffi.NULL)
_LAYOUT: Final = struct.Struct("@QQQqqqQIIIIIiiII32s128s0Q")
assert _LAYOUT.size == ffi.sizeof("struct vsp_news")


class News(NamedTuple):
    """A ``struct vsp_news``, by its fields."""

    relay: int
    upstream_bytes: int
    downstream_bytes: int
    opened_us: int
    connected_us: int
    ended_us: int
    vmm_port: int
    tag: int
    what: int
    reason: int
    route: int
    cause: int
    error: int
    unanswered: int
    line_size: int
    address_size: int
    line: bytes
    address: bytes


class NewsRoom:
    """Space for the news that one call reaps."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.structs = ffi.new(f"struct vsp_news[{size}]")
        self._bytes = ffi.buffer(self.structs)

    def read(self, number: int) -> list[News]:
        """Return the first ``number`` pieces of news."""
        data = self._bytes[: number * _LAYOUT.size]
        return list(map(News._make, _LAYOUT.iter_unpack(data)))


Item = TypeVar("Item")


class Slots(Generic[Item]):
    """A table whose items have a small number each: cheaper than a key, for idle connections."""

    def __init__(self) -> None:
        self._items: list[Item | None] = []
        self._free: list[int] = []

    def take(self, item: Item) -> int:
        """Return the number of a new item."""
        if not self._free:
            self._items.append(item)
            return len(self._items) - 1
        number = self._free.pop()
        self._items[number] = item
        return number

    def free(self, number: int) -> None:
        """Forget an item; its number names another one soon."""
        self._items[number] = None
        self._free.append(number)

    def __getitem__(self, number: int) -> Item | None:
        return self._items[number]

    def __len__(self) -> int:
        return len(self._items) - len(self._free)


class LiveRelay:
    """A relay under way: the `LiveTransfer` that its meter reads, until its end is reported."""

    __slots__ = ("meter", "relay")

    meter: Meter

    def __init__(self, relay: Any) -> None:
        """Read a ``struct vsp_relay *``; ``meter`` is set before its end is reported."""
        self.relay = relay

    def upstream_bytes(self) -> int:
        """See `LiveTransfer`."""
        return lib.vsp_relay_upstream(self.relay)

    def downstream_bytes(self) -> int:
        """See `LiveTransfer`."""
        return lib.vsp_relay_downstream(self.relay)

    def active(self) -> float:
        """See `LiveTransfer`."""
        return lib.vsp_relay_active(self.relay) / 1000

    def upstream_done(self) -> bool:
        """See `LiveTransfer`."""
        return lib.vsp_relay_upstream_done(self.relay)

    def downstream_done(self) -> bool:
        """See `LiveTransfer`."""
        return lib.vsp_relay_downstream_done(self.relay)

    def descriptor(self, target: bool) -> int:
        """See `LiveTransfer`."""
        return lib.vsp_relay_descriptor(self.relay, target)

    def duplicate(self, target: bool) -> int:
        """See `LiveTransfer`."""
        copy = lib.vsp_relay_duplicate(self.relay, target)
        raise_errno(copy)
        return copy

    def stop(self) -> None:
        """See `LiveTransfer`."""
        lib.vsp_relay_cancel(self.relay)


def release(news: News) -> None:
    """Give back the relay whose end was told."""
    lib.vsp_relay_release(ffi.cast("struct vsp_relay *", news.relay))


def fill_policy(policy: Any, bounds: Bounds) -> None:
    """Write bounds into a ``struct vsp_policy``."""
    policy.idle_ms = milliseconds(bounds.idle_timeout)
    policy.half_close_ms = milliseconds(bounds.half_close_timeout)
    policy.lifetime_ms = milliseconds(bounds.max_lifetime)
    policy.hold_ms = milliseconds(bounds.half_close_hold)
    policy.linger_ms = milliseconds(bounds.linger_timeout)
    policy.vmm = bounds.vmm
    policy.rate = bounds.bandwidth or 0
    policy.upstream_shared, policy.downstream_shared = bounds.shared or _NO_SHARED


def milliseconds(seconds: float | None) -> int:
    """Return a bound for C, where 0 is no bound: even the shortest is at least 1 ms."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def raise_errno(status: int) -> None:
    """Raise the OSError of a call that returned a negative errno."""
    if status < 0:
        raise OSError(-status, os.strerror(-status))
