"""What the keys of a policy mean together, and beside the addresses of their route.

Owns: `fit_policy`, which makes of what was written for many routes what one route does, and
says what cannot be meant.  Reads no file: `config` knows where each key stands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from vsockproxy.address.endpoint import (
    FdEndpoint,
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.access import CidRule, GuestRule, Kind, Rule
from vsockproxy.config.settings import Policy
from vsockproxy.errors import AddressError

FindCid = Callable[[str], int | None]
"""The CID of a guest; None where the guest is wrong already. Raises `AddressError`."""

_CLIENTS: Final[dict[Kind, str]] = {
    "tcp": "IP addresses",
    "vsock": "CIDs",
    "unix": "users and groups",
}
_FILE_KEYS: Final = ("mode", "owner", "group", "missing_folder")
_TCP_KEYS: Final = ("keepalive", "user_timeout", "nodelay")
_VSOCK_KEYS: Final = ("buffer_max", "buffer_size")
_TARGET_KEYS: Final = ("target_allow", "target_deny")


@dataclass(frozen=True, slots=True)
class Fitted:
    """One route's policy, and what is wrong with it: keys, each with a sentence."""

    policy: Policy
    complaints: list[tuple[str, str]] = field(default_factory=list)


def fit_policy(
    policy: Policy,
    own: Collection[str],
    listen: ListenEndpoint,
    targets: Sequence[Target],
    find_cid: FindCid,
) -> Fitted:
    """The policy of a route; ``own`` are the keys that stand in the route itself.

    What comes from the defaults says nothing where it does not fit; what is the route's own
    must.
    """
    over_tcp = [target for target in targets if isinstance(target, TcpEndpoint)]
    if not over_tcp:
        policy = replace(policy, target_allow=None, target_deny=())
    fitted = _fit_rules(policy, own, listen, find_cid)
    fitted.complaints.extend(_misplaced(own, listen, targets))
    fitted.complaints.extend(_contradictions(fitted.policy, own))
    objections = (policy.destinations.objection(target) for target in over_tcp)
    fitted.complaints.extend(("target", why) for why in objections if why)
    return fitted


def _fit_rules(
    policy: Policy, own: Collection[str], listen: ListenEndpoint, find_cid: FindCid
) -> Fitted:
    complaints: list[tuple[str, str]] = []
    lists: dict[str, tuple[Rule, ...] | None] = {}
    for key in ("allow", "deny", "proxy_trusted"):
        rules: tuple[Rule, ...] | None = getattr(policy, key)
        try:
            known = tuple(_with_cid(rule, find_cid) for rule in rules or ())
        except AddressError as error:
            complaints.append((key, str(error)))
            continue
        # Whom a PROXY header speaks of need not come by the listener's own family.
        kind = None if policy.accept_proxy and key != "proxy_trusted" else _kind(listen)
        fitting = tuple(rule for rule in known if kind in (None, rule.kind))
        if key in own and fitting != known:
            strangers = sorted({_CLIENTS[rule.kind] for rule in known if rule not in fitting})
            complaints.append((key, f"has {' and '.join(strangers)}, and {listen} knows none"))
        lists[key] = None if key == "allow" and not fitting else fitting
    return Fitted(replace(policy, **lists), complaints)  # type: ignore[arg-type] # by key


def _with_cid(rule: Rule, find_cid: FindCid) -> Rule:
    if not isinstance(rule, GuestRule):
        return rule
    cid = find_cid(rule.guest)
    return rule if cid is None else CidRule(cid, cid)


def _kind(listen: ListenEndpoint) -> Kind | None:
    """How a listener knows its clients; None for a socket of systemd's, which may be any."""
    match listen:
        case TcpEndpoint():
            return "tcp"
        case VsockEndpoint():
            return "vsock"
        case FdEndpoint():
            return None
        case UnixEndpoint() | MuxEndpoint():
            return "unix"


def _misplaced(
    own: Collection[str], listen: ListenEndpoint, targets: Sequence[Target]
) -> Iterator[tuple[str, str]]:
    """The route's own keys that are for other kinds of addresses."""
    ends = (listen, *targets)
    if isinstance(listen, FdEndpoint):
        yield from _all(own, _FILE_KEYS, "is systemd's to say: SocketMode=, SocketUser=")
    elif not isinstance(listen, UnixEndpoint | MuxEndpoint) or str(listen).startswith("unix:@"):
        yield from _all(own, _FILE_KEYS, f"is for the file of a Unix listener: {listen} has none")
    if not any(isinstance(end, TcpEndpoint | FdEndpoint) for end in ends):
        yield from _all(own, _TCP_KEYS, "is for TCP, and neither the listener nor the target is")
    if not any(map(_may_be_mux, targets)):
        words = f"is for a VMM's socket, and {targets[0]} is none"
        yield from _all(own, ("handshake_timeout",), words)
    if not any(map(_may_be_vsock, ends)):
        yield from _all(
            own, _VSOCK_KEYS, "is for vsock, and neither the listener nor the target is"
        )
    if not any(isinstance(target, TcpEndpoint) for target in targets):
        yield from _all(own, _TARGET_KEYS, f"is for a TCP target, and {targets[0]} is none")
    if len(targets) == 1:
        yield from _all(own, ("balance",), "is for a route with several targets")


def _may_be_mux(target: Target) -> bool:
    if isinstance(target, GuestEndpoint):
        return target.over == "vsock-mux"
    return isinstance(target, MuxEndpoint)


def _may_be_vsock(end: ListenEndpoint | Target) -> bool:
    if isinstance(end, GuestEndpoint):
        return end.over == "vsock"
    return isinstance(end, VsockEndpoint | FdEndpoint)


def _all(own: Collection[str], keys: tuple[str, ...], words: str) -> Iterator[tuple[str, str]]:
    return ((key, words) for key in keys if key in own)


def _contradictions(policy: Policy, own: Collection[str]) -> Iterator[tuple[str, str]]:
    """Keys that mean nothing, or nothing good, beside the others."""
    if policy.accept_proxy and not policy.proxy_trusted:
        yield "accept_proxy", 'needs proxy_trusted: whom to believe, as in ["10.0.0.0/8"]'
    if policy.wait_for_guest is not None and policy.fail_fast:
        key = "fail_fast" if "fail_fast" in own else "wait_for_guest"
        yield (
            key,
            'wait_for_guest holds whom fail_fast refuses: switch one of them off ("off", false)',
        )
    if policy.buffer_size and policy.buffer_max and policy.buffer_size > policy.buffer_max:
        key = next((key for key in _VSOCK_KEYS if key in own), "buffer_size")
        yield key, "buffer_size exceeds buffer_max"
