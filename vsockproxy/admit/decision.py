"""Whether a client may go where it asks to, and what that is.

Owns: `decide`, and the order of the rules: the name as such, its denial, ``to``, ``target_allow``.
The addresses of a name are not known here: `dial` checks each one with the verdict's rules.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from vsockproxy.address.endpoint import MuxEndpoint, Target
from vsockproxy.config.access import GuestRule, Peer, matches_any
from vsockproxy.config.by_name import ByName, Fixed, ToRule, guest_at, target_at
from vsockproxy.config.destination import Destinations, Pattern
from vsockproxy.config.guest import Cid, Mux, StaticLocator
from vsockproxy.config.reach import Reach, check_asked, endpoint_of
from vsockproxy.config.request import Request
from vsockproxy.config.settings import Route
from vsockproxy.errors import AddressError
from vsockproxy.guests.directory import Guests

_NOWHERE: Final = Destinations()
_Locate = Callable[[str], Awaitable[Cid | StaticLocator | None]]
"""Return where a guest is; None: it was not found."""

_NO_GUEST: Final = "its guest was not found"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request.

    Attributes:
      target: where it leads; None: it is denied.
      rule: the rule that decided, as written in the configuration; empty: none matched.
      reason: why it is denied, in a sentence for the log.
      destinations: what `dial` checks each address of the target with.
      told: the sentence for the client where the reason names a guest or a path; else empty.
    """

    target: Target | None
    rule: str = ""
    reason: str = ""
    destinations: Destinations | Reach = _NOWHERE
    told: str = ""


async def decide(
    request: Request, route: Route, peer: Peer, guests: Guests, deadline: float
) -> Verdict:
    """Return what becomes of a client's request.

    Not a checkpoint unless the ``from`` of a rule about this request names guests. They are looked
    up together until ``deadline`` (trio's time), and each is awaited only where a rule needs it:
    one that hangs delays neither another nor a client that an earlier rule admits. Raises nothing:
    a source that fails is a guest that was not found.

    Args:
      route: one whose clients name their targets.
      peer: the client, which the rules' ``from`` is for.
    """
    assert isinstance(route.target, ByName)
    try:
        check_asked(request.name)
    except AddressError as error:
        return Verdict(None, reason=str(error))
    leading = [rule for rule in route.target.to if rule.matches(request)]
    reach = route.policy.reach
    if not any(isinstance(rule.leads, Fixed) for rule in leading):  # whose target is another name
        reach = reach.about(request.name, request.port)
    async with _looking_up((*leading, *reach.allow, *reach.deny), guests, deadline) as locate:
        client = _Client(peer, route, locate)
        deny = await client.own(reach.deny)
        denied_by = Reach((), deny).denial(request.name, request.port)
        if denied_by is not None:
            return Verdict(None, f"target_deny {denied_by}", f"{request.name} is denied")
        for rule in leading:
            if await client.is_meant_by(rule):
                # A list for names that clients ask for is not for the targets of `to`.
                is_listed = route.policy.target_allow is not None and not route.target.leads_out
                allow = await client.own(reach.allow) if is_listed else None
                return _by_rule(rule, request, Destinations(allow, deny), guests)
        if route.target.leads_out and route.policy.reach.allow:
            return _outwards(request, Reach(await client.own(reach.allow), deny))
    return Verdict(None, reason=f"no rule allows {request.name}")


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
            return Verdict(None, written, f"no guest {name!r} in [guests]", told=_NO_GUEST)
        return Verdict(guest_at(guest, rule.leads.port, request.port), written)
    except AddressError as error:  # such as a socket's path that is too long
        return Verdict(None, written, str(error), told="no target can be made of it")


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
class _Client:
    """A client, as the rules' ``from`` knows it."""

    peer: Peer
    route: Route
    locate: _Locate

    async def own(self, patterns: tuple[Pattern, ...]) -> tuple[Pattern, ...]:
        """Return the patterns that are for this client."""
        return tuple([one for one in patterns if await self.is_meant_by(one)])

    async def is_meant_by(self, rule: ToRule | Pattern) -> bool:
        """Return whether a rule is for this client; without ``from`` it is for each."""
        if not rule.sources or matches_any(rule.sources, self.peer):
            return True
        for source in rule.sources:
            if isinstance(source, GuestRule) and await self._is_guest(source.guest):
                return True
        return False

    async def _is_guest(self, name: str) -> bool:
        found = await self.locate(name)
        if isinstance(found, Cid):
            return found.cid == self.peer.cid
        listen = self.route.listen  # a VMM connects to the socket beside its own
        if isinstance(found, Mux) and isinstance(listen, MuxEndpoint):
            return found.path == listen.path
        return False


@asynccontextmanager
async def _looking_up(
    rules: Iterable[ToRule | Pattern], guests: Guests, deadline: float
) -> AsyncIterator[_Locate]:
    """Look up the guests in the ``from`` of rules, until the block ends; yield what awaits one."""
    sources = (source for rule in rules for source in rule.sources)
    names = {source.guest for source in sources if isinstance(source, GuestRule)}
    found: dict[str, Cid | StaticLocator | None] = {}
    ended = {name: trio.Event() for name in names}

    async def look_up(name: str) -> None:
        found[name] = await guests.locate(name, deadline)
        ended[name].set()

    async def locate(name: str) -> Cid | StaticLocator | None:
        await ended[name].wait()
        return found[name]

    if not names:
        yield locate
        return
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(look_up, name)
        yield locate
        nursery.cancel_scope.cancel()
