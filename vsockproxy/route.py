"""A route and its policy, as frozen values: what the daemon was told to do.

Owns: `Policy`, `Route` and `Config`, with the defaults.  Made by `config` from a file,
by the command line for one-shot use, and by hand in tests; read by everything above.
Knows nothing of files, sockets or trio.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from vsockproxy.endpoint import (
    Dialable,
    FdEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)

HalfClose = Literal["auto", "forward", "hold"]
LogFormat = Literal["auto", "human", "logfmt", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
PumpChoice = Literal["auto", "native", "portable"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a route treats its connections; times are seconds, None is no bound.

    Attributes:
      connect_timeout: for one dial, handshake included.
      idle_timeout: no byte either way for so long ends the connection.
      half_close_timeout: after one side's EOF, no byte from the other for so long ends it.
      half_close: whether a client's FIN is passed on. ``hold`` keeps the write side open,
        for VMMs that answer a half-close by closing both ways; ``auto`` holds for
        vsock-mux and forwards for the rest.
      drain_timeout: how long live connections may go on once the route stops.
      backlog: of the listener; the kernel caps it at net.core.somaxconn.
      access_log: whether every connection's end is a line of the log.
    """

    connect_timeout: float = 5.0
    idle_timeout: float | None = None
    half_close_timeout: float | None = 300.0
    half_close: HalfClose = "auto"
    drain_timeout: float = 30.0
    backlog: int = 4096
    access_log: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """One listener and the one target its connections go to."""

    name: str
    listen: ListenEndpoint
    target: Dialable
    policy: Policy = Policy()

    @property
    def holds_half_close(self) -> bool:
        """Whether a client's FIN stays here instead of going on to the target."""
        if self.policy.half_close == "auto":
            return isinstance(self.target, MuxEndpoint)
        return self.policy.half_close == "hold"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how; ``auto`` is human on a terminal and logfmt elsewhere."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


@dataclass(frozen=True, slots=True)
class PumpSettings:
    """Which pump moves the bytes, and on how many threads (the native one)."""

    choice: PumpChoice = "auto"
    threads: int | None = None


MetricsListen = TcpEndpoint | UnixEndpoint | FdEndpoint


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon was told; ``source`` names the file, or the command line."""

    routes: tuple[Route, ...]
    metrics: MetricsListen | None = None
    log: LogSettings = LogSettings()
    pump: PumpSettings = PumpSettings()
    source: str = "command line"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when anything of it does."""
        return hashlib.sha256(repr(self).encode(errors="surrogateescape")).hexdigest()[:12]
