"""Who may connect: rules as values, and which of them speak of a client.

Owns: the grammar of a rule, what a rule matches, `Peer`, and `Access`.  Asks no socket:
`peer` finds out who a client is.

| written | matches |
|---|---|
| ``10.0.0.0/8``, ``10.1.2.3``, ``2001:db8::/32`` | a TCP client's address; IPv4-mapped is IPv4 |
| ``3``, ``3-10``, ``host`` | a vsock client's CID |
| ``GUEST`` | the CID of a guest of ``[guests]`` |
| ``uid:1000``, ``uid:alice``, ``gid:kvm`` | the user, or a group, of a Unix socket's client |
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import ClassVar, Final, Literal

from vsockproxy.address.endpoint import CID_ANY, CID_NAMES, GUEST_NAME
from vsockproxy.config.users import group_id, user_id
from vsockproxy.errors import AddressError

Kind = Literal["tcp", "vsock", "unix"]
"""What kind of client a rule speaks of."""

_CIDS: Final = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_SITE_BITS: Final = 64  # an IPv6 site hands out as many addresses as it likes below these


@dataclass(frozen=True, slots=True)
class Peer:
    """What is known of a client: its address, or its CID, or its user and groups."""

    ip: IPv4Address | IPv6Address | None = None
    cid: int | None = None
    uid: int | None = None
    gids: frozenset[int] = frozenset()

    @property
    def source(self) -> str | None:
        """Under what the client is counted: its IPv4 address, its IPv6 /64, its CID, its user.

        None where nothing is known of it.
        """
        if self.ip is not None:
            bits = _SITE_BITS if self.ip.version == 6 else self.ip.max_prefixlen
            return str(ipaddress.ip_network((self.ip, bits), strict=False))
        if self.cid is not None:
            return f"vsock:{self.cid}"
        return None if self.uid is None else f"uid:{self.uid}"


def ip_of(text: str) -> IPv4Address | IPv6Address:
    """The IP address that the socket module has spelt; an IPv4-mapped one is IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """Clients of an IP network."""

    network: IPv4Network | IPv6Network
    kind: ClassVar[Kind] = "tcp"

    def matches(self, peer: Peer) -> bool:
        """Whether the client's address is in the network."""
        return peer.ip is not None and peer.ip in self.network

    def __str__(self) -> str:
        return str(self.network)


@dataclass(frozen=True, slots=True)
class CidRule:
    """vsock clients with a CID from ``first`` to ``last``."""

    first: int
    last: int
    kind: ClassVar[Kind] = "vsock"

    def matches(self, peer: Peer) -> bool:
        """Whether the client's CID is one of them."""
        return peer.cid is not None and self.first <= peer.cid <= self.last

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class UserRule:
    """Processes of a user."""

    uid: int
    kind: ClassVar[Kind] = "unix"

    def matches(self, peer: Peer) -> bool:
        """Whether the client connected as that user."""
        return peer.uid == self.uid

    def __str__(self) -> str:
        return f"uid:{self.uid}"


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Processes with a group, as their own or as a supplementary one."""

    gid: int
    kind: ClassVar[Kind] = "unix"

    def matches(self, peer: Peer) -> bool:
        """Whether the client had that group when it connected."""
        return self.gid in peer.gids

    def __str__(self) -> str:
        return f"gid:{self.gid}"


@dataclass(frozen=True, slots=True)
class GuestRule:
    """A guest by its name; `config` puts a `CidRule` in its place."""

    guest: str
    kind: ClassVar[Kind] = "vsock"

    def matches(self, _peer: Peer) -> bool:
        """Nobody, as long as the name stands for no CID."""
        return False

    def __str__(self) -> str:
        return self.guest


Rule = NetworkRule | CidRule | UserRule | GroupRule | GuestRule


@dataclass(frozen=True, slots=True)
class Access:
    """A route's two lists; ``allow`` None lets everybody in who is not denied."""

    allow: tuple[Rule, ...] | None = None
    deny: tuple[Rule, ...] = ()

    def __bool__(self) -> bool:
        return self.allow is not None or bool(self.deny)

    def admits(self, peer: Peer) -> bool:
        """Whether the client may come in: deny wins, and an allow list must match.

        A client of whom nothing is known is let in by neither list.
        """
        if peer.source is None or matches_any(self.deny, peer):
            return not self
        return self.allow is None or matches_any(self.allow, peer)


def matches_any(rules: Sequence[Rule], peer: Peer) -> bool:
    """Whether one of the rules speaks of the client."""
    return any(rule.matches(peer) for rule in rules)


def parse_rule(text: str) -> Rule:
    """The rule that ``text`` spells; raises `AddressError` with what is wanted."""
    if text.startswith("uid:"):
        return UserRule(user_id(text[4:]))
    if text.startswith("gid:"):
        return GroupRule(group_id(text[4:]))
    if match := _CIDS.fullmatch(text) if text.isascii() else None:
        return _cid_rule(text, int(match[1]), int(match[2] or match[1]))
    if text in CID_NAMES and CID_NAMES[text] != CID_ANY:
        return CidRule(CID_NAMES[text], CID_NAMES[text])
    if GUEST_NAME.fullmatch(text) and text not in CID_NAMES:
        return GuestRule(text)
    network = parse_network(text)
    if network is None:
        raise AddressError(
            f"{text!r} speaks of nobody: write an IP network, a CID, a guest, uid:NAME or gid:NAME"
        )
    return NetworkRule(network)


def parse_network(text: str) -> IPv4Network | IPv6Network | None:
    """The network that ``text`` spells, IPv4-mapped ones as IPv4; None where it spells none.

    Raises `AddressError` for an address in a network, which may mean either.
    """
    try:
        found = ipaddress.ip_network(text, strict=False)
        if "%" in text:  # a scope is not of the address that accept gives
            return None
    except ValueError:
        return None
    if "/" in text and found.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise AddressError(f"{text!r} is an address in a network: write {found}")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        below = int(found.network_address) & 0xFFFFFFFF
        return IPv4Network((below, found.prefixlen - _MAPPED.prefixlen))
    return found


def _cid_rule(text: str, first: int, last: int) -> CidRule:
    if not first <= last < CID_ANY:
        raise AddressError(f"{text!r} is no range of CIDs: 0 to {CID_ANY - 1}, the lower one first")
    return CidRule(first, last)
