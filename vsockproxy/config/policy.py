"""Which policy keys can be combined with one another and with a route's addresses.

Owns: `fit_policy`, which makes one route's policy from its own keys and the defaults.  Must not
know key paths: those are `load`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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
    is_behind_a_mux,
)
from vsockproxy.config.access import CidRule, ClientKind, GuestRule, Rule
from vsockproxy.config.by_name import OUTWARDS, ByName
from vsockproxy.config.guest import Mux, MuxGlob, UnixSockets
from vsockproxy.config.guest_finder import GuestFinder
from vsockproxy.config.problems import NotedError
from vsockproxy.config.settings import Policy
from vsockproxy.errors import AddressError

_CLIENTS: Final[dict[ClientKind, str]] = {
    "tcp": "IP addresses",
    "vsock": "CIDs",
    "unix": "users and groups",
}
_FILE_KEYS: Final = ("mode", "owner", "group")
_TCP_KEYS: Final = ("keepalive", "user_timeout", "nodelay")
_VSOCK_KEYS: Final = ("buffer_max", "buffer_size")
_TARGET_KEYS: Final = ("target_allow", "target_deny")
_STATE_KEYS: Final = ("fail_fast", "probe_interval", "ready_when_up", "balance")


@dataclass(frozen=True, slots=True)
class Fitted:
    """One route's policy, and its problems: keys, each with a sentence."""

    policy: Policy
    problems: list[tuple[str, str]] = field(default_factory=list)


def fit_policy(
    policy: Policy,
    own: Collection[str],
    listen: ListenEndpoint,
    targets: Sequence[Target],
    guests: GuestFinder,
    *,
    by_name: ByName | None = None,
) -> Fitted:
    """Return the policy of a route.

    A key of the defaults that does not fit the route's addresses is ignored; a key of the route
    itself that does not fit is a problem.

    Args:
      own: the keys that are set in the route itself.
      by_name: how clients name their targets, in place of ``targets``.
    """
    if by_name is not None:
        return _fit_by_name(policy, own, listen, by_name, guests)
    over_tcp = [target for target in targets if isinstance(target, TcpEndpoint)]
    if not over_tcp:
        policy = replace(policy, target_allow=None, target_deny=())
    fitted = _fit_rules(policy, own, listen, guests)
    fitted.problems.extend(_misplaced(own, listen, targets))
    fitted.problems.extend(_contradictions(fitted.policy, own))
    for key in _TARGET_KEYS:
        if any(pattern.sources for pattern in getattr(policy, key) or ()):
            words = "from needs by: the target of this route is the same for all clients"
            fitted.problems.append((key, words))
    if policy.target_allow == ():
        words = 'an empty list would deny every target: write "off" to allow all'
        fitted.problems.append(("target_allow", words))
        return fitted
    objections = (policy.destinations.objection(target) for target in over_tcp)
    fitted.problems.extend(("target", why) for why in objections if why)
    return fitted


def _fit_by_name(
    policy: Policy,
    own: Collection[str],
    listen: ListenEndpoint,
    by_name: ByName,
    guests: GuestFinder,
) -> Fitted:
    """Return the policy of a route whose clients name their targets: none has a state."""
    default = Policy()
    policy = replace(policy, **{key: getattr(default, key) for key in _STATE_KEYS})
    over_tcp = any(isinstance(target, TcpEndpoint) for _, target in by_name.fixed)
    if not (by_name.leads_out or over_tcp):
        policy = replace(policy, target_allow=None, target_deny=())
    fitted = _fit_rules(policy, own, listen, guests)
    fitted.problems.extend(_misplaced_file_keys(own, listen))
    fitted.problems.extend(_strangers(policy, own, listen, by_name, guests))
    words = "cannot be combined with by: no target is known before a client names it"
    fitted.problems.extend(_all(own, _STATE_KEYS, words))
    if not (by_name.leads_out or over_tcp):
        outwards = ", ".join(sorted(OUTWARDS))
        words = f"needs a TCP target in to, or by with one of {outwards}"
        fitted.problems.extend(_all(own, _TARGET_KEYS, words))
    if by_name.leads_out and not by_name.to and policy.target_allow is None:
        words = (
            f'"{by_name.by}" needs target_allow, the names and networks that clients may reach:'
            ' add it, as in ["deb.debian.org:80", "*.pypi.org:443"]; [] is none'
        )
        fitted.problems.append(("by", words))
    fitted.problems.extend(_contradictions(fitted.policy, own))
    return fitted


def _fit_rules(
    policy: Policy, own: Collection[str], listen: ListenEndpoint, guests: GuestFinder
) -> Fitted:
    problems: list[tuple[str, str]] = []
    lists: dict[str, tuple[Rule, ...] | None] = {}
    for key in ("allow", "deny", "proxy_trusted"):
        rules: tuple[Rule, ...] | None = getattr(policy, key)
        try:
            known = tuple(_with_cid(rule, guests) for rule in rules or ())
        except AddressError as error:
            problems.append((key, str(error)))
            continue
        # A PROXY header can name a client of another family than the listener's.
        kind = None if policy.accept_proxy and key != "proxy_trusted" else _kind(listen)
        fitting = tuple(rule for rule in known if kind in (None, rule.kind))
        if key in own and fitting != known:
            others = sorted({_CLIENTS[rule.kind] for rule in known if rule not in fitting})
            problems.append((key, f"has {' and '.join(others)}, which {listen} does not know"))
        lists[key] = None if key == "allow" and not fitting else fitting
    return Fitted(replace(policy, **lists), problems)  # type: ignore[arg-type] # by key


def _with_cid(rule: Rule, guests: GuestFinder) -> Rule:
    if not isinstance(rule, GuestRule):
        return rule
    try:
        cid = guests.cid(rule.guest)
    except NotedError:
        return rule
    return CidRule(cid, cid)


def _strangers(
    policy: Policy,
    own: Collection[str],
    listen: ListenEndpoint,
    by_name: ByName,
    guests: GuestFinder,
) -> Iterator[tuple[str, str]]:
    """Yield the first rule of each key whose ``from`` no client of the listener can match."""
    rules = [("to", rule) for rule in by_name.to]
    for key in _TARGET_KEYS:
        rules += [(key, one) for one in getattr(policy, key) or () if key in own]
    for key, rule in rules:
        for source in rule.sources:
            if not _can_be_client(source, listen, guests, accept_proxy=policy.accept_proxy):
                kind = _kind(listen)
                known = f", which knows {_CLIENTS[kind]}" if kind else ""
                words = f"{str(rule)!r}: {source} matches no client of {listen}{known}: change from"
                yield key, words


def _can_be_client(
    rule: Rule, listen: ListenEndpoint, guests: GuestFinder, *, accept_proxy: bool
) -> bool:
    if isinstance(rule, GuestRule):
        locator = guests.find(rule.guest).locator
        if isinstance(locator, Mux | MuxGlob):  # its VMM connects to the socket beside its own
            return isinstance(listen, MuxEndpoint)
        if isinstance(locator, UnixSockets):
            return False
    return accept_proxy or _kind(listen) in (None, rule.kind)


def _kind(listen: ListenEndpoint) -> ClientKind | None:
    """Return the kind of a listener's clients; None for a socket from systemd: any kind."""
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
    """Yield the route's own keys that do not apply to its addresses."""
    ends = (listen, *targets)
    yield from _misplaced_file_keys(own, listen)
    if not any(isinstance(end, TcpEndpoint | FdEndpoint) for end in ends):
        yield from _all(own, _TCP_KEYS, "needs TCP: neither the listener nor the target is TCP")
    if not any(map(is_behind_a_mux, targets)):
        words = f"needs a vsock-mux target: {targets[0]} is not one"
        yield from _all(own, ("handshake_timeout",), words)
    if not any(map(_may_be_vsock, ends)):
        yield from _all(
            own, _VSOCK_KEYS, "needs vsock: neither the listener nor the target is vsock"
        )
    if not any(isinstance(target, TcpEndpoint) for target in targets):
        yield from _all(own, _TARGET_KEYS, f"needs a TCP target: {targets[0]} is not one")
    if len(targets) == 1:
        yield from _all(own, ("balance",), "needs several targets")


def _misplaced_file_keys(own: Collection[str], listen: ListenEndpoint) -> Iterator[tuple[str, str]]:
    if isinstance(listen, FdEndpoint):
        yield from _all(
            own, _FILE_KEYS, "is set in the systemd socket unit: use SocketMode= or SocketUser="
        )
    elif not isinstance(listen, UnixEndpoint | MuxEndpoint) or str(listen).startswith("unix:@"):
        yield from _all(own, _FILE_KEYS, f"needs a Unix listener with a file: {listen} has none")


def _may_be_vsock(end: ListenEndpoint | Target) -> bool:
    if isinstance(end, GuestEndpoint):
        return end.over == "vsock"
    return isinstance(end, VsockEndpoint | FdEndpoint)


def _all(own: Collection[str], keys: tuple[str, ...], words: str) -> Iterator[tuple[str, str]]:
    return ((key, words) for key in keys if key in own)


def _contradictions(policy: Policy, own: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield keys that contradict or miss another key."""
    if policy.accept_proxy and not policy.proxy_trusted:
        yield "accept_proxy", 'needs proxy_trusted, as in ["10.0.0.0/8"]'
    if policy.wait_for_guest is not None and policy.fail_fast:
        key = "fail_fast" if "fail_fast" in own else "wait_for_guest"
        yield (
            key,
            'wait_for_guest and fail_fast contradict each other: set one to "off" or false',
        )
    if policy.buffer_size and policy.buffer_max and policy.buffer_size > policy.buffer_max:
        key = next((key for key in _VSOCK_KEYS if key in own), "buffer_size")
        yield key, "buffer_size exceeds buffer_max"
