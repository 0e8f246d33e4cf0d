"""Whether a client may go where it asks to, and what that is.

Owns: `decide`, and the order of the rules: the name as such, its denial, ``to``, ``target_allow``.
The addresses of a name are not known here: `dial` checks each one with the verdict's rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vsockproxy.address.endpoint import MuxEndpoint, Target
from vsockproxy.config.access import GuestRule, Peer, Rule
from vsockproxy.config.by_name import ByName, Fixed, ToRule, guest_at, target_at
from vsockproxy.config.destination import Destinations, Pattern
from vsockproxy.config.guest import Cid, Mux
from vsockproxy.config.reach import Reach, check_asked, endpoint_of
from vsockproxy.config.request import Request
from vsockproxy.config.settings import Route
from vsockproxy.errors import AddressError
from vsockproxy.guests.directory import Guests

_NOWHERE: Final = Destinations()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request.

    Attributes:
      target: where it leads; None: it is denied.
      rule: the rule that decided, as written in the configuration; empty: none matched.
      reason: why it is denied, in a sentence for the client.
      destinations: what `dial` checks each address of the target with.
    """

    target: Target | None
    rule: str = ""
    reason: str = ""
    destinations: Destinations | Reach = _NOWHERE


async def decide(
    request: Request, route: Route, peer: Peer, guests: Guests, deadline: float
) -> Verdict:
    """Return what becomes of a client's request.

    Not a checkpoint unless a rule's ``from`` names a guest, which is looked up until ``deadline``
    (trio's time). Raises nothing: a source that fails is a guest that was not found.

    Args:
      route: one whose clients name their targets.
      peer: the client, which the rules' ``from`` is for.
    """
    assert isinstance(route.target, ByName)
    source = _Source(peer, route, guests, deadline)
    try:
        check_asked(request.name)
    except AddressError as error:
        return Verdict(None, reason=str(error))
    reach = await source.reach()
    denied_by = reach.denial(request.name, request.port)
    if denied_by is not None:
        return Verdict(None, f"target_deny {denied_by}", f"{request.name} is denied")
    for rule in route.target.to:
        if rule.matches(request) and await source.is_one_of(rule.sources):
            return _by_rule(rule, request, _written_by_the_operator(route, reach), guests)
    if route.target.leads_out:
        return _outwards(request, reach)
    return Verdict(None, reason=f"no rule allows {request.name}")


def _written_by_the_operator(route: Route, reach: Reach) -> Destinations:
    """Return the client's rules for the TCP targets of ``to``; a list for asked ones is not."""
    assert isinstance(route.target, ByName)
    is_for_these = route.policy.target_allow is not None and not route.target.leads_out
    return Destinations(reach.allow if is_for_these else None, reach.deny)


def _by_rule(rule: ToRule, request: Request, destinations: Destinations, guests: Guests) -> Verdict:
    """Return the verdict of the first rule that matches."""
    written = f"to {rule}"
    try:
        if isinstance(rule.leads, Fixed):
            target: Target = target_at(rule.leads, request.port)
            return Verdict(target, written, destinations=destinations)
        name = rule.guest(request)
        guest = guests.find(name)
        if guest is None:
            return Verdict(None, written, f"no guest {name!r} in [guests]")
        return Verdict(guest_at(guest, rule.leads.port, request.port), written)
    except AddressError as error:
        return Verdict(None, written, str(error))


def _outwards(request: Request, reach: Reach) -> Verdict:
    """Return the verdict on a name, or an address, out of this machine."""
    try:
        target = endpoint_of(request.name, request.port)
    except AddressError as error:
        return Verdict(None, reason=str(error))
    rules = reach.rules_for(target)
    if not rules:
        return Verdict(None, reason=f"target_allow has no rule for {request.name}:{request.port}")
    written = ", ".join(map(str, rules))
    return Verdict(target, f"target_allow {written}", destinations=reach)


@dataclass(frozen=True, slots=True)
class _Source:
    """A client, as the rules' ``from`` knows it."""

    peer: Peer
    route: Route
    guests: Guests
    deadline: float

    async def is_one_of(self, rules: Sequence[Rule]) -> bool:
        """Return whether one of the rules matches the client; without rules, each client does."""
        for rule in rules:
            if await self._is(rule):
                return True
        return not rules

    async def reach(self) -> Reach:
        """Return the route's rules for targets that clients name, without those for others."""
        reach = self.route.policy.reach
        return Reach(await self._own(reach.allow), await self._own(reach.deny))

    async def _own(self, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
        return tuple([one for one in patterns if await self.is_one_of(one.sources)])

    async def _is(self, rule: Rule) -> bool:
        if not isinstance(rule, GuestRule):
            return rule.matches(self.peer)
        found = await self.guests.locate(rule.guest, self.deadline)
        if isinstance(found, Cid):
            return found.cid == self.peer.cid
        listen = self.route.listen  # a VMM connects to the socket beside its own
        if isinstance(found, Mux) and isinstance(listen, MuxEndpoint):
            return found.path == listen.path
        return False
