"""Target rules: which TCP targets may be dialled.

Owns: the grammar of a pattern, what a pattern matches, and `Destinations`.  Resolves no name:
`policy` checks the target as written, and `dial` checks each address before it dials it.

| written | matches |
|---|---|
| ``10.0.0.0/8:443``, ``[fd00::]/8:*`` | every address of the network, at these ports |
| ``10.1.2.3:5000-5010``, ``[::1]:*`` | one address; IPv4-mapped is IPv4 |
| ``db.internal:5432`` | the name, as the target is written |
| ``*.example.com:443`` | every name below ``example.com``, but not ``example.com`` |
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.access import Rule, ip_of, parse_network, parse_sources
from vsockproxy.config.value import OFF, parse_list, shown
from vsockproxy.errors import AddressError

PATTERNS_EXAMPLE: Final = '["10.0.0.0/8:443", "db.internal:5432"]'

_FROM_EXAMPLE: Final = '{ pattern = "db.internal:5432", from = "web" }'
_EVERY_PORT: Final = range(1, 0x10000)
_PATTERN: Final = re.compile(r"(?P<host>\[[^\]]*\](?:/[^:]*)?|[^:\[\]]+):(?P<ports>[^:\]]+)")
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_NAME: Final = re.compile(r"(?:\*\.)?[^\s:/\[\]@,%{}*]+")
_LOOPBACK: Final = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class NetworkPattern:
    """Matches addresses of an IP network, at some ports; ``sources`` as in `NamePattern`."""

    network: IPv4Network | IPv6Network
    ports: range
    sources: tuple[Rule, ...] = ()

    def matches(self, ip: IPv4Address | IPv6Address, port: int) -> bool:
        """Return whether the pattern has the address and the port."""
        return ip in self.network and port in self.ports

    def __str__(self) -> str:
        address, slash, bits = str(self.network).partition("/")
        host = f"[{address}]" if self.network.version == 6 else address
        mask = "" if self.network.prefixlen == self.network.max_prefixlen else slash + bits
        return f"{host}{mask}:{_write_ports(self.ports)}{written_sources(self.sources)}"


@dataclass(frozen=True, slots=True)
class NamePattern:
    """Matches a name in lower case, or with ``*.`` in front every name below, at some ports.

    ``*`` alone, which only `parse_name` reads, matches every name.  ``sources`` are the clients
    that the pattern is for, by ``from``; empty: all.
    """

    name: str
    ports: range
    sources: tuple[Rule, ...] = ()

    def matches(self, name: str, port: int | None) -> bool:
        """Return whether the pattern has the name, in any case, and the port.

        A pattern for every port also matches one beyond TCP's, and a client that asks for none.
        """
        plain = name.lower().removesuffix(".")
        found = plain.endswith(self.name[1:]) if self.name[0] == "*" else plain == self.name
        return found and (self.ports == _EVERY_PORT or (port is not None and port in self.ports))

    def __str__(self) -> str:
        return f"{self.name}:{_write_ports(self.ports)}{written_sources(self.sources)}"


Pattern = NetworkPattern | NamePattern


@dataclass(frozen=True, slots=True)
class Destinations:
    """A route's two lists of patterns; ``allow`` None allows all that ``deny`` does not match.

    ``deny`` wins.  Networks and names of ``allow`` are checked separately: if it has networks,
    an address must be in one of them, even one that a name resolved to; if it has names, a
    target that is written as a name must match one of them.
    """

    allow: tuple[Pattern, ...] | None = None
    deny: tuple[Pattern, ...] = ()

    def __bool__(self) -> bool:
        return self.allow is not None or bool(self.deny)

    def admits(self, target: TcpEndpoint, address: str) -> bool:
        """Return whether a target may be dialled at an IP address, its own or its name's."""
        ip, port = _reached(address), target.port
        if any(one.matches(ip, port) for one in _networks(self.deny)):
            return False
        networks = _networks(self.allow)
        if networks and not any(one.matches(ip, port) for one in networks):
            return False
        return self.objection(target) is None

    def objection(self, target: TcpEndpoint) -> str | None:
        """Return why a target can never be dialled, with the remedy; None if it may be.

        A name's addresses are not known here: `admits` checks them at each dial.
        """
        name = None if target.host is None or _is_address(target.host) else target.host
        if name is None:
            return self._objection_to_addresses(target)
        for one in _names(self.deny):
            if one.matches(name, target.port):
                return _denied(one, target)
        names, networks = _names(self.allow), _networks(self.allow)
        if (names or (self.allow is not None and not networks)) and not any(
            one.matches(name, target.port) for one in names
        ):
            return f'target_allow has no name that matches {target}: add "{name}:{target.port}"'
        if networks and not any(target.port in one.ports for one in networks):
            return (
                f"target_allow has no network for port {target.port} of {target}:"
                f' add the network of {name}, as in "10.0.0.0/8:{target.port}"'
            )
        return None

    def _objection_to_addresses(self, target: TcpEndpoint) -> str | None:
        """Return the objection to a target that is an address; one allowed address is enough."""
        addresses = _LOOPBACK if target.host is None else (target.host,)
        remaining = [_reached(address) for address in addresses]
        for one in _networks(self.deny):
            remaining = [ip for ip in remaining if not one.matches(ip, target.port)]
            if not remaining:
                return _denied(one, target)
        if self.allow is None:
            return None
        networks = _networks(self.allow)
        if any(one.matches(ip, target.port) for one in networks for ip in remaining):
            return None
        port = range(target.port, target.port + 1)
        missing = NetworkPattern(ipaddress.ip_network(remaining[0]), port)
        return f'target_allow does not match {target}: add "{missing}"'


def parse_patterns(value: object) -> tuple[Pattern, ...]:
    """Return the patterns in a list of texts, and of tables with ``pattern`` and ``from``.

    Raises:
      ValueError: the value is not a list, or items of it are not patterns.
    """
    return parse_list(value, _parse_item, PATTERNS_EXAMPLE)


def parse_target_allow(value: object) -> tuple[Pattern, ...] | None:
    """Return `parse_patterns`, or None for ``"off"``; raise ValueError as it does.

    An empty list is `policy`'s to judge: it suits a route whose clients name their targets.
    """
    return None if value == OFF else parse_patterns(value)


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that ``text`` describes.

    Raises:
      AddressError: the text is not a pattern; the message says what is expected.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise AddressError(
            f"{text!r} is not a target pattern: expected HOST:PORTS, where HOST is a network"
            " (10.0.0.0/8, [fd00::]/8) or a name (db.internal, *.example.com),"
            " and PORTS is 443, 5000-5010 or *"
        )
    host, ports = match["host"], _ports(text, match["ports"])
    if host == "*":
        written = match["ports"]
        raise AddressError(
            f"{text!r}: to match every host write 0.0.0.0/0:{written} and [::]/0:{written}"
        )
    if host.startswith("[") or re.fullmatch(r"[0-9./]+", host):
        return NetworkPattern(_network(text, host), ports)
    if not _NAME.fullmatch(host):
        raise AddressError(
            f"{text!r}: {host!r} is not a network or a name: * is only allowed as *.DOMAIN"
        )
    return NamePattern(host.lower().removesuffix("."), ports)


def parse_name(text: str) -> NamePattern:
    """Return the pattern in ``NAME``, ``*.DOMAIN`` or ``*``, each with ``:PORTS`` or without.

    Raises:
      AddressError: the text is not such a pattern.
    """
    host, colon, written = text.partition(":")
    if host != "*" and (not _NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+", host)):
        raise AddressError(
            f"{text!r} is not a name: expected db.example.com, *.example.com or *,"
            " and :PORTS to match only some ports"
        )
    ports = _ports(text, written) if colon else _EVERY_PORT
    return NamePattern(host.lower().removesuffix("."), ports)


def _parse_item(item: object) -> Pattern:
    if not isinstance(item, dict):
        return parse_pattern(_pattern_text(item))
    if item.keys() != {"pattern", "from"}:
        raise AddressError(f"a table is not a pattern: expected {_FROM_EXAMPLE}")
    return replace(
        parse_pattern(_pattern_text(item["pattern"])), sources=parse_sources(item["from"])
    )


def _pattern_text(item: object) -> str:
    if not isinstance(item, str):
        raise AddressError(f"{shown(item)} is not a pattern: expected a text")
    return item


def _network(text: str, host: str) -> IPv4Network | IPv6Network:
    address = host.replace("[", "").replace("]", "")
    network = parse_network(address)
    if network is None or (":" in address) != host.startswith("["):
        raise AddressError(
            f"{text!r}: {host} is not a network: expected one such as 10.0.0.0/8 or [fd00::]/8"
        )
    return network


def _ports(text: str, written: str) -> range:
    if written == "*":
        return _EVERY_PORT
    match = _PORTS.fullmatch(written)
    if match is None:
        raise AddressError(f"{text!r}: {written!r} is not a port: expected 443, 5000-5010 or *")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last < 0x10000:
        raise AddressError(f"{text!r}: ports are 1 to 65535, lower port first")
    return range(first, last + 1)


def _write_ports(ports: range) -> str:
    if ports == _EVERY_PORT:
        return "*"
    return f"{ports[0]}" if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


def written_sources(sources: tuple[Rule, ...]) -> str:
    """Return the clients of a rule as its text ends with them; empty for all."""
    return f" from {' '.join(map(str, sources))}" if sources else ""


def _denied(pattern: Pattern, target: TcpEndpoint) -> str:
    return f'{target} matches "{pattern}" of target_deny: change the target or the pattern'


def _reached(address: str) -> IPv4Address | IPv6Address:
    """Return the address that answers: for 0.0.0.0 and :: it is this machine's loopback."""
    ip = ip_of(address)
    return ip_of(_LOOPBACK[ip.version == 6]) if ip.is_unspecified else ip


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _networks(patterns: tuple[Pattern, ...] | None) -> list[NetworkPattern]:
    return [one for one in patterns or () if isinstance(one, NetworkPattern)]


def _names(patterns: tuple[Pattern, ...] | None) -> list[NamePattern]:
    return [one for one in patterns or () if isinstance(one, NamePattern)]
