"""The socket options of a policy.

Owns: which options those are, by address family and by the end that is the socket's.

What a listener has, the sockets that it accepts have too (Linux: sk_clone for TCP, the
parent's values in af_vsock.c), so nothing here costs a system call for each client.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from vsockproxy.address.endpoint import AF_VSOCK
from vsockproxy.config.settings import Policy

Option = tuple[int, int, int]
"""Level, name and value, as setsockopt(2) has them."""

Options = Mapping[int, tuple[Option, ...]]
"""The options by address family, in the order of setting."""

# linux/vm_sockets.h; CPython writes an int as the 64 bits that they take.
VSOCK_BUFFER_SIZE: Final = 0
VSOCK_BUFFER_MAX: Final = 2

CLIENTS_KEEPALIVE: Final = 300.0
"""The default in seconds: a client without power is detected after about 16 minutes."""

_PROBE_PAUSE: Final = 75  # seconds, the kernel's own (tcp(7)); shorter after a short silence
_KEEP_IDLE: Final[int] = getattr(socket, "TCP_KEEPIDLE", 0x10)  # Darwin's TCP_KEEPALIVE
_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux's


def listener_options(policy: Policy) -> Options:
    """Return the options of a listener, which its clients' sockets inherit."""
    keepalive = CLIENTS_KEEPALIVE if policy.keepalive == "auto" else policy.keepalive
    # Set even if it is off: a reload may change a listener on which it was on.
    tcp = (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, int(policy.nodelay)),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keepalive is not None)),
        *_probes(keepalive),
        *_user_timeout(policy.user_timeout or 0.0),
    )
    return _options(tcp, _vsock(policy))


def target_options(policy: Policy) -> Options:
    """Return the options of a target's socket that differ from the kernel's defaults."""
    tcp: list[Option] = []
    if policy.nodelay:
        tcp.append((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))
    if isinstance(policy.keepalive, int | float):
        tcp.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
        tcp.extend(_probes(policy.keepalive))
    if policy.user_timeout is not None:
        tcp.extend(_user_timeout(policy.user_timeout))
    return _options(tuple(tcp), _vsock(policy))


def apply(sock: socket.socket, family: int, options: Options) -> None:
    """Set the options of a socket's family; raise OSError."""
    for option in options.get(family, ()):  # `sock.family` costs more than setsockopt(2)
        sock.setsockopt(*option)


def _options(tcp: tuple[Option, ...], vsock: tuple[Option, ...]) -> Options:
    return {socket.AF_INET: tcp, socket.AF_INET6: tcp, AF_VSOCK: vsock}


def _probes(keepalive: float | None) -> tuple[Option, ...]:
    if keepalive is None:
        return ()
    idle = max(1, round(keepalive))
    return (
        (socket.IPPROTO_TCP, _KEEP_IDLE, idle),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(idle, _PROBE_PAUSE)),
    )


def _user_timeout(seconds: float) -> tuple[Option, ...]:
    """Return the option; zero means the kernel's default (tcp(7))."""
    if _USER_TIMEOUT is None:
        return ()
    return ((socket.IPPROTO_TCP, _USER_TIMEOUT, round(seconds * 1000)),)


def _vsock(policy: Policy) -> tuple[Option, ...]:
    """Return the limit first: the kernel caps a size at the limit of that moment."""
    values = (
        (VSOCK_BUFFER_MAX, policy.buffer_max),
        (VSOCK_BUFFER_SIZE, policy.buffer_size),
    )
    return tuple((AF_VSOCK, name, value) for name, value in values if value is not None)
