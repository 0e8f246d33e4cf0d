"""What a client asks for in its first bytes: a name and a port, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

By = Literal["socks5", "http-connect", "proxy", "sni", "http-host", "mux"]
"""What a client's first bytes name its target by; ``proxy`` is either of the first two."""


@dataclass(frozen=True, slots=True)
class Request:
    """Where a client wants to go.

    Attributes:
      name: as asked for, in lower case and without a trailing dot; of an IP address the text.
      port: None where the client names none: a TLS server name, a Host without a port.
      user: the user that has asked, where the route has credentials.
    """

    name: str
    port: int | None = None
    user: str | None = None

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        return name if self.port is None else f"{name}:{self.port}"
