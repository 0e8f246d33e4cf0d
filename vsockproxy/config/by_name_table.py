"""From the keys of a route whose clients name their targets to its `ByName`.

Owns: which of these keys can be combined, and the problems of the items of ``to``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vsockproxy.address.endpoint import check_path
from vsockproxy.config.access import GuestRule, Rule, parse_sources
from vsockproxy.config.by_name import (
    LABEL_MARK,
    OUTWARDS,
    TO_EXAMPLE,
    ByName,
    Fixed,
    GuestPort,
    ToItem,
    ToRule,
    guest_rule,
    parse_leads,
)
from vsockproxy.config.credentials import check_credentials
from vsockproxy.config.destination import NamePattern, parse_name
from vsockproxy.config.document import KeyPath
from vsockproxy.config.guest import PORT_MARK, STAR, KnownGuests, between
from vsockproxy.config.problems import Problems
from vsockproxy.config.reach import check_askable
from vsockproxy.config.request import By
from vsockproxy.config.schema import RouteTable
from vsockproxy.config.settings import Policy
from vsockproxy.errors import AddressError

_BY_KEYS: Final = ("to", "guest", "credentials")
_TARGET_KEYS: Final = ("target", "targets", "to_host", "handshake")

CheckGuest = Callable[[str, str], object]
"""Takes a guest's name and the target that names it; raises `AddressError`, or `NotedError`."""


def without_by(table: RouteTable) -> Iterator[tuple[str, str]]:
    """Yield the keys of a route without ``by`` that need it."""
    for key in _BY_KEYS:
        if getattr(table, key) is not None:
            yield key, 'needs by, which says how clients name their targets, as in by = "sni"'


@dataclass(frozen=True, slots=True)
class ByNameReader:
    """Reads the keys of one route at ``path`` that has ``by``."""

    table: RouteTable
    path: KeyPath
    known: KnownGuests
    check_guest: CheckGuest
    problems: Problems

    def read(self, policy: Policy) -> ByName:
        """Return how the clients of the route name their targets.

        Raises:
          NotedError: keys have problems, which are in ``problems`` now.
        """
        table, by = self.table, self.table.by
        assert by is not None
        with self.problems.together():
            for key, message in _misplaced(table, by):
                with self.problems.collecting((*self.path, key)):
                    raise AddressError(message)
            items = enumerate(table.to or ())
            rules = [rule for item in items if (rule := self._rule(by, *item))]
            if table.guest is not None:
                with self.problems.collecting((*self.path, "guest")):
                    self.check_guest(table.guest, "")
                    rules.append(guest_rule(table.guest))
            self._check_sources_of(policy)
            if table.credentials is not None and by in OUTWARDS:
                with self.problems.collecting((*self.path, "credentials")):
                    check_credentials(table.credentials)
        return ByName(by, tuple(rules), table.guest, table.credentials)

    def _rule(self, by: By, number: int, item: ToItem) -> ToRule | None:
        """Return the rule of an item; None if it has problems, which are noted."""
        path = (*self.path, "to", number)
        name: NamePattern | None = None
        leads: GuestPort | Fixed | None = None
        sources: tuple[Rule, ...] = ()
        with self.problems.collecting((*path, "name")):
            name = _name(by, item.name)
        with self.problems.collecting((*path, "from")):
            sources = self._sources(item.sources)
        with self.problems.collecting((*path, "target")):
            leads = self._leads(by, item.target, name)
        return ToRule(name, leads, item.target, sources) if name and leads else None

    def _leads(self, by: By, text: str, name: NamePattern | None) -> GuestPort | Fixed:
        leads = parse_leads(text)
        if by == "sni" and leads.any_port:
            raise AddressError(
                f'{text!r}: by = "sni" knows no port: write one in place of {PORT_MARK}'
            )
        if isinstance(leads, Fixed):
            check_path(leads.target)
        elif not leads.is_template:
            self.check_guest(leads.guest, text)
        elif name is not None and STAR not in name.name:
            raise AddressError(
                f"{text!r}: {LABEL_MARK} stands for the * of name, which has none:"
                f' write a name such as "*.{name.name}"'
            )
        elif not _may_be_known(leads.guest, self.known):
            raise AddressError(
                f"{text!r}: no guest of [guests] has such a name: add one,"
                f" as in {leads.guest.replace(LABEL_MARK, STAR)!r}"
            )
        return leads

    def _sources(self, value: object) -> tuple[Rule, ...]:
        """Return the clients of ``from``; raise `AddressError`."""
        if value == ():
            return ()
        try:
            rules = parse_sources(value)
        except ValueError as error:
            raise AddressError(str(error)) from error
        self._check_guests(rules)
        return rules

    def _check_sources_of(self, policy: Policy) -> None:
        for key in ("target_allow", "target_deny"):
            own = key in self.table.model_fields_set
            with self.problems.collecting((*self.path, key) if own else ("defaults", key)):
                for pattern in getattr(policy, key) or ():
                    if isinstance(pattern, NamePattern):
                        check_askable(pattern)
                    self._check_guests(pattern.sources)

    def _check_guests(self, rules: tuple[Rule, ...]) -> None:
        for rule in rules:
            if isinstance(rule, GuestRule):
                self.check_guest(rule.guest, "")


def _name(by: By, text: str) -> NamePattern:
    """Return the names of an item of ``to``; raise `AddressError`."""
    name = parse_name(text)
    check_askable(name)
    if by == "sni" and ":" in text.removesuffix(":*"):
        raise AddressError(f'{text!r}: by = "sni" knows no port: write {name.name!r}')
    return name


def _misplaced(table: RouteTable, by: By) -> Iterator[tuple[str, str]]:
    """Yield the keys that contradict ``by`` or one another, and those that it misses."""
    for key in _TARGET_KEYS:
        if key in table.model_fields_set:
            yield key, f"cannot be combined with by, for clients name their targets: remove {key}"
    if table.guest is not None and by != "mux":
        yield "guest", 'needs by = "mux": remove it, or lead a name to the guest in to'
    if table.guest is not None and table.to is not None:
        yield "guest", "cannot be combined with to: remove one of them"
    if table.credentials is not None and by not in OUTWARDS:
        words = ", ".join(f'"{one}"' for one in sorted(OUTWARDS))
        yield "credentials", f'clients of by = "{by}" send none: remove it, or use one of {words}'
    if by not in OUTWARDS and table.to is None and table.guest is None:
        other = ', or guest = "web"' if by == "mux" else ""
        yield "to", f'is missing: by = "{by}" needs it, as in to = [{TO_EXAMPLE}]{other}'


def _may_be_known(template: str, known: KnownGuests) -> bool:
    """Return whether a guest, or a pattern, can have the name that a template makes."""
    before, _, after = template.partition(LABEL_MARK)
    for name in (*known.fixed, *(guest.name for guest in known.patterns)):
        head, star, tail = name.partition(STAR)
        if star and _overlap(head, before) and _overlap(tail[::-1], after[::-1]):
            return True
        if not star and between(template, LABEL_MARK, name):
            return True
    return False


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
