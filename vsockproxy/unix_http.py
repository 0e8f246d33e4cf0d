"""HTTP over a Unix socket, for the clients of the daemon, Incus and LXD.

Owns: `UnixConnection`.  Knows nothing of the requests.
"""

from __future__ import annotations

import socket
from http.client import HTTPConnection

from vsockproxy.address.sockaddr import unix_address


class UnixConnection(HTTPConnection):
    """HTTP over a Unix socket; ``@`` starts a name in Linux's abstract namespace."""

    def __init__(self, path: str, timeout: float) -> None:
        """Take a path, and a timeout in seconds for each operation."""
        super().__init__("localhost", timeout=timeout)
        self._path = unix_address(path)

    def connect(self) -> None:
        """Connect to the path; raise OSError."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
