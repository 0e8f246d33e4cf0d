"""The daemon's own HTTP servers in the configuration, as values: `AdminSettings`, `TlsSettings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vsockproxy.address.endpoint import UnixEndpoint


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
