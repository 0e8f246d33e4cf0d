"""What concerns the process and no route, as values: the log, the control socket, certificates.

Owns: the declaration of the keys of ``[log]``.  `settings` has the rest of the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.key import key

LogFormat = Literal["auto", "human", "logfmt", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The keys of ``[log]``."""

    level: LogLevel = key("info", "The least severe level that is logged")
    format: LogFormat = key("auto", "`auto` is `human` on a terminal and `logfmt` elsewhere")


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The daemon's control socket: its file, and the users that may connect to it.

    Attributes:
      socket: ``"auto"`` is in the folder that a service manager made; None is no socket.
      group: None is the daemon's own.
    """

    socket: UnixEndpoint | Literal["auto"] | None = "auto"
    mode: int = 0o600
    group: int | None = None

    @property
    def listen(self) -> UnixEndpoint | None:
        """Return the socket's address; None where it is ``"auto"`` or there is no socket."""
        return self.socket if isinstance(self.socket, UnixEndpoint) else None


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
