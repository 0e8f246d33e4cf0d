"""Which addresses of this machine a listener occupies, and conflicts between listeners.

Owns: telling that two listeners cannot both be had, before a kernel is asked.  Opens nothing and
resolves no name: two names of one machine are only found to clash when they are bound.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from vsockproxy.address.endpoint import (
    CID_ANY,
    FdEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)

Claim = tuple[str, str, int]
"""Family, address in it (`ANY` for all of them), port."""

ANY: Final = ""

_LOOPBACK: Final = (None, "localhost")


class Claims:
    """The occupied addresses, each with the name of its owner."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, int], dict[str, str]] = {}

    def take(self, listen: ListenEndpoint, owner: str) -> str | None:
        """Occupy every address of ``listen``; return the owner of one that is occupied, or None."""
        clash: str | None = None
        for family, address, port in listen_claims(listen):
            owners = self._owners.setdefault((family, port), {})
            clash = clash or _clash(owners, address)
            owners.setdefault(address, owner)
        return clash


def _clash(owners: dict[str, str], address: str) -> str | None:
    if address == ANY and owners:
        return next(iter(owners.values()))
    return owners.get(address) or owners.get(ANY)


def listen_claims(listen: ListenEndpoint) -> tuple[Claim, ...]:
    """Return the addresses that a listener occupies.

    ``[::]`` is every IPv6 address and no IPv4 one: each family has its own socket.
    """
    match listen:
        case TcpEndpoint(host=host, port=port):
            return _tcp_claims(host, port)
        case VsockEndpoint(cid=cid, port=port):
            return (("vsock", ANY if cid == CID_ANY else str(cid), port),)
        case UnixEndpoint(path=path):
            return (("unix", path, 0),)
        case MuxEndpoint():
            return (("unix", listen.listen_path, 0),)
        case FdEndpoint(name=name):
            return (("fd", name, 0),)


def _tcp_claims(host: str | None, port: int) -> tuple[Claim, ...]:
    if host in _LOOPBACK:
        return (("IPv4", "127.0.0.1", port), ("IPv6", "::1", port))
    assert host is not None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return (("name", host.lower(), port),)
    return ((f"IPv{address.version}", ANY if address.is_unspecified else str(address), port),)
