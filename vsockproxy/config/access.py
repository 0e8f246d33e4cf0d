"""Access rules: which clients may connect.

Owns: the grammar of a rule, what a rule matches, `Peer`, and `Access`.  Reads no socket:
`admit.peer` makes a `Peer` from one.

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
from vsockproxy.config.unix_users import group_id, user_id
from vsockproxy.config.value import OFF, parse_list, shown
from vsockproxy.errors import AddressError

ClientKind = Literal["tcp", "vsock", "unix"]
"""The kind of client that a rule can match."""

RULES_EXAMPLE: Final = '["10.0.0.0/8", "uid:1000"]'

_CIDS: Final = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_SITE_BITS: Final = 64  # within a /64, an IPv6 site can use any address


@dataclass(frozen=True, slots=True)
class Peer:
    """A client's identity: its IP address, its CID, or its user and groups."""

    ip: IPv4Address | IPv6Address | None = None
    cid: int | None = None
    uid: int | None = None
    gids: frozenset[int] = frozenset()

    @property
    def source(self) -> str | None:
        """Return what the client is counted under: its IPv4 address, IPv6 /64, CID or user.

        None where nothing is known of the client.
        """
        if self.ip is not None:
            bits = _SITE_BITS if self.ip.version == 6 else self.ip.max_prefixlen
            return str(ipaddress.ip_network((self.ip, bits), strict=False))
        if self.cid is not None:
            return f"vsock:{self.cid}"
        return None if self.uid is None else f"uid:{self.uid}"


def ip_of(text: str) -> IPv4Address | IPv6Address:
    """Return an IP address that the socket module has written; an IPv4-mapped one as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """Matches the clients of an IP network."""

    network: IPv4Network | IPv6Network
    kind: ClassVar[ClientKind] = "tcp"

    def matches(self, peer: Peer) -> bool:
        """Return whether the client's address is in the network."""
        return peer.ip is not None and peer.ip in self.network

    def __str__(self) -> str:
        return str(self.network)


@dataclass(frozen=True, slots=True)
class CidRule:
    """Matches vsock clients with a CID from ``first`` to ``last``."""

    first: int
    last: int
    kind: ClassVar[ClientKind] = "vsock"

    def matches(self, peer: Peer) -> bool:
        """Return whether the client's CID is in the range."""
        return peer.cid is not None and self.first <= peer.cid <= self.last

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class UserRule:
    """Matches processes of a user, on a Unix socket."""

    uid: int
    kind: ClassVar[ClientKind] = "unix"

    def matches(self, peer: Peer) -> bool:
        """Return whether the client connected as that user."""
        return peer.uid == self.uid

    def __str__(self) -> str:
        return f"uid:{self.uid}"


@dataclass(frozen=True, slots=True)
class GroupRule:
    """Matches processes with a group, primary or supplementary, on a Unix socket."""

    gid: int
    kind: ClassVar[ClientKind] = "unix"

    def matches(self, peer: Peer) -> bool:
        """Return whether the client had that group when it connected."""
        return self.gid in peer.gids

    def __str__(self) -> str:
        return f"gid:{self.gid}"


@dataclass(frozen=True, slots=True)
class GuestRule:
    """Stands for the CID of a guest until `policy` replaces it by a `CidRule`."""

    guest: str
    kind: ClassVar[ClientKind] = "vsock"

    def matches(self, _peer: Peer) -> bool:
        """Return False: the name matches no client until it is replaced."""
        return False

    def __str__(self) -> str:
        return self.guest


Rule = NetworkRule | CidRule | UserRule | GroupRule | GuestRule


@dataclass(frozen=True, slots=True)
class Access:
    """A route's two lists of rules; ``allow`` None allows every client that is not denied."""

    allow: tuple[Rule, ...] | None = None
    deny: tuple[Rule, ...] = ()

    def __bool__(self) -> bool:
        return self.allow is not None or bool(self.deny)

    def admits(self, peer: Peer) -> bool:
        """Return whether the client may connect: no ``deny`` rule and an ``allow`` rule match.

        A client without any known identity is denied by both lists.
        """
        if peer.source is None or matches_any(self.deny, peer):
            return not self
        return self.allow is None or matches_any(self.allow, peer)


def matches_any(rules: Sequence[Rule], peer: Peer) -> bool:
    """Return whether one of the rules matches the client."""
    return any(rule.matches(peer) for rule in rules)


def parse_rules(value: object) -> tuple[Rule, ...]:
    """Return the rules in a list of texts and CIDs.

    Raises:
      ValueError: the value is not a list, or items of it are not rules.
    """
    return parse_list(value, lambda item: parse_rule(_rule_text(item)), RULES_EXAMPLE)


def parse_allow(value: object) -> tuple[Rule, ...] | None:
    """Return `parse_rules`, or None for ``"off"``.

    Raises:
      ValueError: as `parse_rules`, and for an empty list.
    """
    if value == OFF:
        return None
    rules = parse_rules(value)
    if not rules:
        raise ValueError('an empty list would deny every client: write "off" to allow all')
    return rules


def parse_sources(value: object) -> tuple[Rule, ...]:
    """Return the clients that a rule is ``from``: one text or CID, or a list of them.

    Raises:
      ValueError: as `parse_rules`, and for an empty list.
    """
    rules = parse_rules(value if isinstance(value, list) else [value])
    if not rules:
        raise ValueError("an empty list matches no client: remove from to match all")
    return rules


def parse_rule(text: str) -> Rule:
    """Return the rule that ``text`` describes.

    Raises:
      AddressError: the text is not a rule; the message says what is expected.
    """
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
            f"{text!r} is not a valid rule:"
            " expected an IP network, a CID, a guest, uid:NAME or gid:NAME"
        )
    return NetworkRule(network)


def parse_network(text: str) -> IPv4Network | IPv6Network | None:
    """Return the network in ``text``, an IPv4-mapped one as IPv4; None if it has none.

    Raises:
      AddressError: the text has bits set behind its prefix (10.0.0.1/8): it is ambiguous.
    """
    try:
        found = ipaddress.ip_network(text, strict=False)
        if "%" in text:  # the address that accept(2) gives has no scope
            return None
    except ValueError:
        return None
    if "/" in text and found.network_address != ipaddress.ip_address(text.partition("/")[0]):
        raise AddressError(f"{text!r} has host bits set: write the network as {found}")
    if isinstance(found, IPv6Network) and found.subnet_of(_MAPPED):
        below = int(found.network_address) & 0xFFFFFFFF
        return IPv4Network((below, found.prefixlen - _MAPPED.prefixlen))
    return found


def _rule_text(item: object) -> str:
    """Return the text of a rule; a CID may be written as a number."""
    if isinstance(item, int) and not isinstance(item, bool):
        return shown(item)
    if not isinstance(item, str):
        raise AddressError(f"{shown(item)} is not a rule: expected a text or a CID")
    return item


def _cid_rule(text: str, first: int, last: int) -> CidRule:
    if not first <= last < CID_ANY:
        raise AddressError(
            f"{text!r} is not a range of CIDs: expected 0 to {CID_ANY - 1}, lower CID first"
        )
    return CidRule(first, last)
