"""Routes that would dial themselves, or each other in a loop such as 8080 -> 8081 -> 8080.

Opens nothing and resolves no name: a loop by a guest's or a host's name is not found.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from vsockproxy.address.endpoint import (
    CID_LOCAL,
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
)
from vsockproxy.config.listen_conflicts import ANY, Claim, listen_claims
from vsockproxy.config.settings import Route


def is_loop(listen: ListenEndpoint, target: Target) -> bool:
    """Return whether a route from ``listen`` to ``target`` would dial itself."""
    taken = set(listen_claims(listen))
    return any(
        claim in taken or (_is_this_machine(claim) and (claim[0], ANY, claim[2]) in taken)
        for claim in _target_claims(target)
    )


def find_loop(routes: Sequence[Route]) -> list[str]:
    """Return the names of routes that dial each other in a loop, the first also last; or none."""
    owners = {claim: route.name for route in routes for claim in listen_claims(route.listen)}
    try:
        TopologicalSorter({route.name: _dialled(route, owners) for route in routes}).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names[::-1]
    return []


def _dialled(route: Route, owners: Mapping[Claim, str]) -> Iterator[str]:
    """Yield the names of the routes whose listeners are targets of a route."""
    for target in route.targets:
        for claim in _target_claims(target):
            found = owners.get(claim)
            if found is None and _is_this_machine(claim):
                found = owners.get((claim[0], ANY, claim[2]))
            if found is not None:
                yield found


def _target_claims(target: Target) -> tuple[Claim, ...]:
    if isinstance(target, GuestEndpoint):  # its address is known at each dial only
        return ()
    if isinstance(target, MuxEndpoint):
        return (("unix", target.path, 0),)
    return listen_claims(target)


def _is_this_machine(claim: Claim) -> bool:
    family, address, _ = claim
    if family == "vsock":
        return address == str(CID_LOCAL)
    is_address = family in ("IPv4", "IPv6") and address != ANY
    return is_address and ipaddress.ip_address(address).is_loopback
