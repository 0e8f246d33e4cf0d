"""What concerns the process and no route: its limits, log, control socket and metrics.

Owns: the declaration of the keys of ``[log]``, ``[limits]`` and ``[reload]``.  `settings` has the
rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vsockproxy.address.endpoint import FdEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.config import kinds
from vsockproxy.config.key import key
from vsockproxy.config.permission import Grant

LogFormat = Literal["auto", "human", "logfmt", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
MetricsListen = TcpEndpoint | UnixEndpoint | FdEndpoint
PageChoice = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The keys of ``[log]``."""

    level: LogLevel = key("info", "The least severe level that is logged")
    format: LogFormat = key("auto", "`auto` is `human` on a terminal and `logfmt` elsewhere")


@dataclass(frozen=True, slots=True)
class Limits:
    """The keys of ``[limits]``, for all routes together; None sets no bound."""

    max_connections: int | None = key(
        None,
        "Connections of all routes together at the same time. Clients over it are treated as their"
        " route's `over_limit` says",
        kinds.COUNT,
    )
    drain_delay: float = key(
        0.0,
        "How long clients are still accepted after the signal to stop, while `/readyz`"
        " answers 503: a load balancer needs this long to stop sending them."
        " A second signal ends it",
        kinds.TIME,
    )


@dataclass(frozen=True, slots=True)
class ReloadSettings:
    """The keys of ``[reload]``."""

    on_change: bool = key(
        False,
        "Reloads once the files of the configuration have changed, as a ConfigMap's do: see"
        " [Reload on a change](operations.md#reload-on-a-change)",
    )


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The daemon's control socket: its file, and the users that may connect to it.

    Attributes:
      socket: ``"auto"`` is in the folder that a service manager made; None is no socket.
      group: None is the daemon's own.
      may: what users and groups may do; None: all that the file's mode lets in read and steer.
    """

    socket: UnixEndpoint | Literal["auto"] | None = "auto"
    mode: int = 0o600
    group: int | None = None
    may: tuple[Grant, ...] | None = None

    @property
    def listen(self) -> UnixEndpoint | None:
        """Return the socket's address; None where it is ``"auto"`` or there is no socket."""
        return self.socket if isinstance(self.socket, UnixEndpoint) else None


@dataclass(frozen=True, slots=True)
class Written:
    """What a file says, for routes and guests that are added to it while it runs.

    Attributes:
      defaults: the table ``[defaults]``.
      include: the patterns of further files, as absolute paths.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    include: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """PEM files of a TLS server.

    Attributes:
      key: the private key; None: it is in the certificate's file.
      client_ca: the authorities whose clients are served; None asks clients for no certificate.
    """

    certificate: str
    key: str | None = None
    client_ca: str | None = None
