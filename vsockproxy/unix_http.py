"""HTTP over a Unix socket: for those who ask the daemon, Incus or LXD.

Owns: `UnixConnection`.  Knows nothing of what is asked.
"""

from __future__ import annotations

import socket
from http.client import HTTPConnection

from vsockproxy.address.sockaddr import unix_address


class UnixConnection(HTTPConnection):
    """HTTP over a Unix socket; ``@`` is Linux's abstract namespace."""

    def __init__(self, path: str, timeout: float) -> None:
        """``timeout`` is in seconds, for each step."""
        super().__init__("localhost", timeout=timeout)
        self._path = unix_address(path)

    def connect(self) -> None:
        """Connect to the path; raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
