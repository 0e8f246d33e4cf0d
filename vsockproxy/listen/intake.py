"""The last clients of a listening socket: keep further ones out before it is closed.

Owns: `stop_intake`. The kernel resets the clients in the backlog of a socket that is closed, so a
listener accepts them first; a client that came between the last accept and the close would be
lost all the same.
"""

from __future__ import annotations

import array
import socket
import struct
import sys
from contextlib import suppress
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # socket(7); not in the socket module

# Classic BPF over a TCP header: drop a segment with SYN, take every other one.
_INSTRUCTION: Final = struct.Struct("=HBBI")
_NO_SYN: Final = b"".join(
    _INSTRUCTION.pack(*instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte with the flags
        (0x45, 0, 1, 0x02),  # is SYN among them?
        (0x06, 0, 0, 0),  # drop it: the client sends it again
        (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
    )
)


def stop_intake(sock: socket.socket) -> None:
    """Have a listening socket queue no further client; those in its backlog can be accepted.

    A TCP client's SYN is dropped (Linux), and the client's kernel sends it again: another listener
    of that address gets it then. A Unix client is refused. A vsock socket is left as it is.
    """
    with suppress(OSError):
        if sock.family == getattr(socket, "AF_UNIX", None):
            sock.shutdown(socket.SHUT_RD)
        elif sock.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux":
            program = array.array("B", _NO_SYN)
            address, _ = program.buffer_info()
            length = len(_NO_SYN) // _INSTRUCTION.size
            sock.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", length, address)
            )
