"""The compiled module as the type checker sees it; `pump.h` is the contract."""

from typing import Any, Protocol, TypeAlias

Pump: TypeAlias = Any  # struct vsp_pump *
Limit: TypeAlias = Any  # struct vsp_limit *
Relay: TypeAlias = Any  # struct vsp_relay *

class End(Protocol):
    tag: int
    upstream_bytes: int
    downstream_bytes: int
    reason: int
    error: int

class Lib(Protocol):
    VSP_FINISHED: int
    VSP_HALF_CLOSE_TIMEOUT: int
    VSP_IDLE_TIMEOUT: int
    VSP_MAX_LIFETIME: int
    VSP_CLIENT_RESET: int
    VSP_TARGET_RESET: int
    VSP_CANCELLED: int

    def vsp_limit_new(self, rate: int, /) -> Limit: ...
    def vsp_limit_unref(self, limit: Limit, /) -> None: ...
    def vsp_pump_new(self, threads: int, ret: Any, /) -> int: ...
    def vsp_pump_free(self, pump: Pump, /) -> None: ...
    def vsp_pump_fd(self, pump: Pump, /) -> int: ...
    def vsp_pump_add(
        self,
        pump: Pump,
        tag: int,
        client: int,
        target: int,
        policy: Any,
        ret: Any,
        /,
    ) -> int: ...
    def vsp_relay_cancel(self, relay: Relay, /) -> None: ...
    def vsp_relay_upstream(self, relay: Relay, /) -> int: ...
    def vsp_relay_downstream(self, relay: Relay, /) -> int: ...
    def vsp_relay_active(self, relay: Relay, /) -> int: ...
    def vsp_relay_upstream_done(self, relay: Relay, /) -> bool: ...
    def vsp_relay_downstream_done(self, relay: Relay, /) -> bool: ...
    def vsp_pump_ask(self, pump: Pump, /) -> None: ...
    def vsp_pump_silent(self, pump: Pump, /) -> int: ...
    def vsp_pump_reap(self, pump: Pump, ends: Any, room: int, /) -> int: ...

class Ffi(Protocol):
    NULL: Any

    def gc(self, handle: Any, destructor: Any, /) -> Any: ...
    def new(self, kind: str, /) -> Any: ...

lib: Lib
ffi: Ffi
