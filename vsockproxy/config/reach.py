"""Which names and addresses a client that names its target may reach out of this machine.

Owns: `Reach`, and the special addresses, which a name alone never leads to: loopback, link-local,
metadata, private and the like, and those of this machine.  An *address* rule of ``target_allow``
must name them: a network that lies within their block.  An IPv4 address counts as itself in every
spelling (IPv4-mapped, NAT64, 6to4).  Resolves nothing: `dial` checks each address that it dials.
Sources: the IANA special-purpose address registries, RFC 6890.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.destination import NamePattern, NetworkPattern, Pattern
from vsockproxy.errors import AddressError

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The narrowest first: 169.254.169.254 is not reached by a rule for 169.254.0.0/16.
_SPECIAL: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    (
        "a metadata service",
        (
            *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.42.42"),
            *("100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd00:ec2::23"),
            *("fd20:ce::254", "fd00:42::42", "fe80::a9fe:a9fe"),
        ),
    ),
    ("a loopback address", ("127.0.0.0/8", "::1")),
    ("an unspecified address", ("0.0.0.0/8",)),
    ("a link-local address", ("169.254.0.0/16", "fe80::/10")),
    (
        "a private address",
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
            *("100.64.0.0/10", "fc00::/7", "fec0::/10", "64:ff9b:1::/48"),
        ),
    ),
    ("a multicast address", ("224.0.0.0/4", "ff00::/8")),
    (
        "a reserved address",
        (
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
            *("2001::/23", "2001:db8::/32", "3fff::/20"),
        ),
    ),
)
_BLOCKS: Final = [(word, ipaddress.ip_network(text)) for word, texts in _SPECIAL for text in texts]
_UNICAST: Final = IPv6Network("2000::/3")  # all that IANA has assigned
_NAT64: Final = IPv6Network("64:ff9b::/96")
_LOOPBACK: Final[dict[int, Ip]] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}

_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
# getaddrinfo(3) takes 127.1, 0x7f000001 and 017700000001 for addresses, as inet_aton(3) does.
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[Xx][0-9A-Fa-f]*)")


@dataclass(frozen=True, slots=True)
class Reach:
    """The rules of a route for the targets that its clients name; ``deny`` wins."""

    allow: tuple[Pattern, ...]
    deny: tuple[Pattern, ...] = ()

    def rules_for(self, target: TcpEndpoint) -> tuple[Pattern, ...]:
        """Return the rules that allow a target: its name or its address; empty if none does.

        A name that no name allows may be within the networks: its addresses are checked for that.
        """
        assert target.host is not None
        networks = tuple(
            one
            for one in self.allow
            if isinstance(one, NetworkPattern) and target.port in one.ports
        )
        ip = literal(target.host)
        if ip is not None:
            return tuple(one for one in networks if _is_in(ip, one.network))
        names = (one for one in self.allow if isinstance(one, NamePattern))
        return tuple(one for one in names if one.matches(target.host, target.port)) or networks

    def about(self, name: str, port: int | None) -> Reach:
        """Return the rules that can have a say about a name, and its addresses, at a port."""
        return Reach(
            tuple(one for one in self.allow if _concerns(one, name, port)),
            tuple(one for one in self.deny if _concerns(one, name, port)),
        )

    def denial(self, name: str, port: int | None) -> Pattern | None:
        """Return the rule that denies a name or an address as it is asked for."""
        return next((one for one in self.deny if _denies(one, name, port)), None)

    def objection(
        self, target: TcpEndpoint, address: str, is_own: Callable[[Ip], bool]
    ) -> str | None:
        """Return why an address of a target may not be dialled, with the remedy; None if it may.

        Args:
          address: as the socket module writes it.
          is_own: tells whether an address is this machine's.
        """
        ip, port = _without_scope(ipaddress.ip_address(address)), target.port
        for one in self.deny:
            if isinstance(one, NetworkPattern) and port in one.ports and _is_in(ip, one.network):
                return f'{address} matches "{one}" of target_deny'
        rules = self.rules_for(target)
        networks = [
            one.network
            for one in self.allow
            if isinstance(one, NetworkPattern) and port in one.ports and _is_in(ip, one.network)
        ]
        add = f'add "{NetworkPattern(ipaddress.ip_network(_plain(ip)), range(port, port + 1))}"'
        if not networks and not any(isinstance(one, NamePattern) for one in rules):
            return f"target_allow has no rule for {address}: {add}"
        word = _unnamed(ip, networks, is_own)
        return word and f"{address} is {word}, which target_allow must name: {add}"


def literal(name: str) -> Ip | None:
    """Return the address that a client asks for by its number; None for a name."""
    try:
        return _without_scope(ipaddress.ip_address(name))
    except ValueError:
        return None


def check_asked(name: str) -> None:
    """Raise `AddressError` unless a client's text is a host name in ASCII, or an IP address.

    A name in other letters could be one that the resolver takes for another name (RFC 3491).
    """
    is_address = literal(name) is not None and "%" not in name
    if not is_address and not _HOST.fullmatch(name):
        raise AddressError(f"{name!r} is neither a host name nor an IP address")


def check_askable(pattern: NamePattern) -> None:
    """Raise `AddressError` for a pattern of names that `check_asked` admits none of."""
    name = pattern.name.removeprefix("*.")
    if name == "*" or _HOST.fullmatch(name):
        return
    if not name.isascii():
        remedy = "a client asks in ASCII: write the form that begins with xn--"
    elif name.startswith("."):
        remedy = f"write *{name} for the names below it"
    else:
        remedy = "expected letters, digits, - and _, with single dots between"
    raise AddressError(f"{pattern.name!r} matches no name that a client can ask for: {remedy}")


def endpoint_of(name: str, port: int | None) -> TcpEndpoint:
    """Return the TCP endpoint that a client asks for.

    Raises:
      AddressError: the name is a number that only the resolver takes for an address, or the port
        is none.
    """
    if not port:
        raise AddressError(f"no port was asked for with {name}")
    if literal(name) is None and _NUMBER.fullmatch(name):
        raise AddressError(f"{name!r} is not an IP address: write it as in 192.0.2.1")
    return TcpEndpoint(name, port)


def _concerns(rule: Pattern, name: str, port: int | None) -> bool:
    """Return whether a rule matches a name, or may match its addresses."""
    port = rule.ports[0] if port is None else port
    return rule.matches(name, port) if isinstance(rule, NamePattern) else port in rule.ports


def _denies(rule: Pattern, name: str, port: int | None) -> bool:
    """Return whether a rule denies a request; one without a port could be for any port."""
    port = rule.ports[0] if port is None else port
    if isinstance(rule, NamePattern):
        return rule.matches(name, port)
    ip = literal(name)
    return ip is not None and port in rule.ports and _is_in(ip, rule.network)


def _unnamed(ip: Ip, networks: list[Network], is_own: Callable[[Ip], bool]) -> str | None:
    """Return what a special address is that none of the networks names; None for any other."""
    plain = _plain(ip)
    word, block = _special(plain)
    if word is not None and not any(_is_within(one, block) for one in networks):
        return word
    named = any(one.prefixlen == one.max_prefixlen for one in networks)
    if not named and not plain.is_loopback and (is_own(plain) or (ip != plain and is_own(ip))):
        return "an address of this machine"
    return None


def _special(ip: Ip) -> tuple[str | None, Network]:
    """Return what a special address is, and its block; None for an ordinary one."""
    for word, block in _BLOCKS:
        if ip.version == block.version and ip in block:
            return word, block
    is_assigned = ip.version == 4 or ip in _UNICAST
    return None if is_assigned else "a reserved address", ipaddress.ip_network(ip)


def _is_within(network: Network, block: Network) -> bool:
    return (
        isinstance(network, IPv4Network)
        and isinstance(block, IPv4Network)
        and network.subnet_of(block)
    ) or (
        isinstance(network, IPv6Network)
        and isinstance(block, IPv6Network)
        and network.subnet_of(block)
    )


def _is_in(ip: Ip, network: Network) -> bool:
    """Return whether an address is in a network, as it is written or as it is meant."""
    return ip in network or _plain(ip) in network


def _plain(ip: Ip) -> Ip:
    """Return the address that answers: an IPv4 one within an IPv6 one, the loopback for 0.0.0.0."""
    if isinstance(ip, IPv6Address):
        inner = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = inner or ip.ipv4_mapped or ip.sixtofour or ip
    return _LOOPBACK[ip.version] if ip.is_unspecified else ip


def _without_scope(ip: Ip) -> Ip:
    return IPv6Address(int(ip)) if isinstance(ip, IPv6Address) else ip
