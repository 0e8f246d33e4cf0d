"""Whether an IP address is this machine's, as the kernel's routing has it.

bind(2) accepts exactly the machine's addresses and needs neither a list of interfaces, of which a
host of many guests has thousands, nor netlink, which the systemd units forbid.  With the sysctl
ip_nonlocal_bind it accepts every address: then the source of a route to an address is compared
with it, which finds the first address of each interface but no secondary one of the same network.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final

# RFC 5737 and RFC 3849: no machine has them.
_NO_MACHINES: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ANY_PORT: Final = 9  # connect(2) of a datagram socket sends nothing


def is_own(ip: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is this machine's; False for a family that it does not have."""
    text = str(ip)
    if not _binds(ip.version, text):
        return False
    return not _binds(ip.version, _NO_MACHINES[ip.version]) or _is_own_source(ip.version, text)


def _binds(version: int, text: str) -> bool:
    with suppress(OSError), socket.socket(_FAMILIES[version], socket.SOCK_DGRAM) as sock:
        sock.bind((text, 0))
        return True
    return False


def _is_own_source(version: int, text: str) -> bool:
    with suppress(OSError), socket.socket(_FAMILIES[version], socket.SOCK_DGRAM) as sock:
        sock.connect((text, _ANY_PORT))
        return bool(sock.getsockname()[0] == text)
    return False
