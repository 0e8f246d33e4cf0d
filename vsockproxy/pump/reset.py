"""Reset a connection: close its socket so that a TCP peer sees an RST, not a clean end."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Final

_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds (socket(7))


def reset(sock: socket.socket) -> None:
    """Close a socket so that a TCP peer sees a reset; never raises.

    Other families only close: AF_VSOCK has no reset to send, and SO_LINGER blocks there.
    """
    with suppress(OSError):
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    with suppress(OSError):
        sock.close()


def reset_descriptor(descriptor: int, family: int) -> None:
    """Reset a stream socket that is only known by its descriptor, which is closed."""
    reset(socket.socket(family, socket.SOCK_STREAM, 0, descriptor))
