"""Which routes are direct: the pump accepts and dials for them, without a decision in Python.

Owns: `why_not_direct`, the one place that says so, from a route's configuration alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vsockproxy.address.endpoint import GuestEndpoint, TcpEndpoint
from vsockproxy.address.sockaddr import literal_addresses
from vsockproxy.config.settings import Policy, Route

NEED_A_DECISION: Final = (
    "wait_for_guest",
    "fail_fast",
    "ready_when_up",
    "dial_on_data",
    "accept_proxy",
    "send_proxy",
    "allow",
    "deny",
    "max_connections_per_source",
    "connection_rate",
)
"""Keys of a policy that, with another value than their default, need a decision for each client."""

_DEFAULTS: Final = Policy()


def why_not_direct(route: Route) -> str | None:
    """Return why a route is not direct, in words; None where it is.

    A direct route still needs the native pump.
    """
    return next(_reasons(route), None)


def _reasons(route: Route) -> Iterator[str]:
    yield from _reasons_of_policy(route.policy)
    if route.by is not None:
        yield "the clients name their targets"
    if len(route.targets) > 1:
        yield "there are several targets"
    if isinstance(route.target, GuestEndpoint):
        yield "the guest is looked up at each dial"
    if isinstance(route.target, TcpEndpoint):
        yield from _reasons_of_tcp(route.target, route.policy)


def _reasons_of_policy(policy: Policy) -> Iterator[str]:
    if policy.direct == "off":
        yield "direct = off"
    if policy.over_limit == "reject":
        yield "over_limit = reject"
    for key in NEED_A_DECISION:
        if getattr(policy, key) != getattr(_DEFAULTS, key):
            yield f"{key} is set"


def _reasons_of_tcp(target: TcpEndpoint, policy: Policy) -> Iterator[str]:
    addresses = literal_addresses(target)
    if addresses is None:
        yield "the target's host name is resolved at each dial"
    elif len(addresses) > 1:
        yield "the target has two addresses, 127.0.0.1 and ::1"
    elif not policy.destinations.admits(target, addresses[0][1][0]):
        yield "target_allow and target_deny exclude the target"
