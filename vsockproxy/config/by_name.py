"""Routes whose clients name their targets: the names, and where each leads, as values.

Owns: `ByName`, and its rules: the items of ``to``.  `reach` has the rules for names that lead out
of this machine; `admit.decision` applies both.

| target | means |
|---|---|
| ``sbx-{1}:443`` | a guest of ``[guests]``; ``{1}`` is the label for which ``name`` has ``*`` |
| ``web:{port}``, ``tcp:db:{port}`` | the port that the client asks for |
| every other target | itself |
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from vsockproxy.address.endpoint import (
    PORT_ANY,
    Dialable,
    GuestEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.address.grammar import parse_target
from vsockproxy.config.access import Rule
from vsockproxy.config.destination import NamePattern, parse_name, written_sources
from vsockproxy.config.guest import PORT_MARK, STAR, Guest, KnownGuests, StaticLocator, between
from vsockproxy.config.request import By, Request
from vsockproxy.config.value import shown
from vsockproxy.errors import AddressError

OUTWARDS: Final[frozenset[By]] = frozenset({"socks5", "http-connect", "proxy"})
"""The kinds that can lead to any name; the others need ``to``."""

LABEL_MARK: Final = "{1}"
TO_EXAMPLE: Final = '{ name = "*.vm.example.com", target = "sbx-{1}:443" }'

# RFC 1123, and _ which names of services and of guests have.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,62})")
_TEMPLATE: Final = re.compile(r"[A-Za-z0-9_-]*\{1\}[A-Za-z0-9_-]*:(?:[0-9]+|\{port\})")


@dataclass(frozen=True, slots=True)
class GuestPort:
    """A guest's port: `LABEL_MARK` in ``guest`` is replaced, and ``port`` None is the asked one."""

    guest: str
    port: int | None

    @property
    def any_port(self) -> bool:
        """Return whether the port is the one that the client asks for."""
        return self.port is None

    @property
    def is_template(self) -> bool:
        """Return whether the guest depends on the name that the client asks for."""
        return LABEL_MARK in self.guest


@dataclass(frozen=True, slots=True)
class Fixed:
    """A target in the configuration; with ``any_port`` at the port that the client asks for."""

    target: Dialable
    any_port: bool = False
    is_template: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class ToRule:
    """One item of ``to``: the names that it is for, and where they lead.

    Attributes:
      written: the target as written.
      sources: the clients that it is for; empty: all.
    """

    name: NamePattern
    leads: GuestPort | Fixed
    written: str
    sources: tuple[Rule, ...] = ()

    def matches(self, request: Request) -> bool:
        """Return whether the rule is for a name and a port; with `LABEL_MARK`: for one label."""
        if not self.name.matches(request.name, request.port):
            return False
        return not self.leads.is_template or _LABEL.fullmatch(self._star(request) or "") is not None

    def guest(self, request: Request) -> str:
        """Return the name of the guest that a matching request leads to, whether there is one."""
        assert isinstance(self.leads, GuestPort)
        return self.leads.guest.replace(LABEL_MARK, self._star(request) or "")

    def _star(self, request: Request) -> str | None:
        return between(self.name.name, STAR, request.name)

    def __str__(self) -> str:
        name = str(self.name).removesuffix(":*")
        return f"{name} = {self.written}{written_sources(self.sources)}"


@dataclass(frozen=True, slots=True)
class ByName:
    """The target of a route whose clients name it.

    Attributes:
      guest: the guest whose ports the clients name (``by = "mux"``).
      credentials: the file of the users that may ask, and the hashes of their passwords.
    """

    by: By
    to: tuple[ToRule, ...] = ()
    guest: str | None = None
    credentials: str | None = None
    kind: ClassVar[str] = "by"

    @property
    def leads_out(self) -> bool:
        """Return whether names that no rule is for may lead out of this machine."""
        return self.by in OUTWARDS

    @property
    def fixed(self) -> list[tuple[str, Dialable]]:
        """Return the targets that no client has an influence on, each as written and as value."""
        leads = ((rule.written, rule.leads) for rule in self.to)
        return [(text, one.target) for text, one in leads if isinstance(one, Fixed)]

    def known(self, guests: KnownGuests) -> list[Target]:
        """Return the targets that do not depend on what a client asks for.

        Without those whose guest is not in ``guests``, as after a reload.
        """
        known: list[Target] = []
        for rule in self.to:
            leads = rule.leads
            if leads.any_port or leads.is_template:
                continue
            if isinstance(leads, Fixed):
                known.append(leads.target)
            elif guest := guests.find(leads.guest):
                known.append(guest_at(guest, leads.port, None))
        return known

    def __str__(self) -> str:
        return f"by {self.by}"


def guest_rule(guest: str) -> ToRule:
    """Return the rule by which every name leads to one guest, at the port asked for."""
    written = f"{guest}:{PORT_MARK}"
    return ToRule(parse_name(STAR), GuestPort(guest, None), written)


def parse_leads(text: str) -> GuestPort | Fixed:
    """Return where the target of a rule leads.

    Raises:
      AddressError: the text is not such a target.
    """
    if LABEL_MARK in text and not _TEMPLATE.fullmatch(text):
        raise AddressError(
            f"{text!r}: {LABEL_MARK} can only be a part of a guest's name,"
            f" as in sbx-{LABEL_MARK}:443"
        )
    plain = text.replace(LABEL_MARK, "x")
    any_port = plain.endswith(f":{PORT_MARK}")
    plain = f"{plain.removesuffix(PORT_MARK)}1" if any_port else plain
    if PORT_MARK in plain:
        raise AddressError(f"{text!r}: {PORT_MARK} can only be the port, at the end")
    try:
        target = parse_target(plain)
    except AddressError as error:
        raise AddressError(str(error).replace(repr(plain), repr(text))) from error
    if isinstance(target, GuestEndpoint):
        return GuestPort(text.rpartition(":")[0], None if any_port else target.port)
    if any_port and isinstance(target, UnixEndpoint):
        raise AddressError(f"{text!r} has no port: remove {PORT_MARK}")
    return Fixed(target, any_port)


def target_at(leads: Fixed, port: int | None) -> Dialable:
    """Return a target of the configuration, at the port asked for where it says so.

    Raises:
      AddressError: it needs a port that the client does not name, or names none that can be.
    """
    if not leads.any_port or isinstance(leads.target, UnixEndpoint):
        return leads.target
    return replace(leads.target, port=_asked(port, isinstance(leads.target, TcpEndpoint)))


def guest_at(guest: Guest, port: int | None, asked: int | None) -> Target:
    """Return a guest's port; ``asked`` where ``port`` is None.

    Raises:
      AddressError: it needs a port that the client does not name, or the guest's path is too long.
    """
    number = _asked(asked, is_tcp=False) if port is None else port
    if isinstance(guest.locator, StaticLocator):
        return guest.locator.address(number)
    return GuestEndpoint(guest.name, number, guest.locator.over)


def _asked(port: int | None, is_tcp: bool) -> int:
    if port is None:
        raise AddressError("the client names no port: write the port in place of {port}")
    if not 0 < port < (0x10000 if is_tcp else PORT_ANY):
        raise AddressError(f"{port} is not a port of the target")
    return port


@dataclass(frozen=True, slots=True)
class ToItem:
    """One item of ``to`` as written."""

    name: str
    target: str
    sources: object = ()


def parse_to(value: object) -> tuple[ToItem, ...]:
    """Return the items of ``to``, not read any further; a text is ``NAME=TARGET``.

    Raises:
      ValueError: the value is not a list of such tables.
    """
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is not a list: expected one, as in [{TO_EXAMPLE}]")
    if not value:
        raise ValueError(f"an empty list leads nowhere: expected one, as in [{TO_EXAMPLE}]")
    return tuple(_item(number, item) for number, item in enumerate(value))


def _item(number: int, item: object) -> ToItem:
    if isinstance(item, str):
        name, equals, target = (part.strip() for part in item.partition("="))
        item = {"name": name, "target": target} if equals else item
    if not isinstance(item, dict) or not _are_texts(item):
        raise ValueError(f"item {number} is not a rule: expected {TO_EXAMPLE}")
    if others := sorted(map(str, item.keys() - {"name", "target", "from"})):
        raise ValueError(f"item {number} has the unknown key {others[0]}: expected {TO_EXAMPLE}")
    return ToItem(item["name"], item["target"], item.get("from", ()))


def _are_texts(item: dict[str, object]) -> bool:
    return isinstance(item.get("name"), str) and isinstance(item.get("target"), str)
