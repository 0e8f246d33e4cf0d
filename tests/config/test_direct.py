"""Which routes are direct, and why others are not."""

from __future__ import annotations

from dataclasses import fields
from ipaddress import ip_network
from typing import Any

import pytest

from vsockproxy.address.endpoint import (
    GuestEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.access import NetworkRule
from vsockproxy.config.destination import NetworkPattern
from vsockproxy.config.direct import NEED_A_DECISION, why_not_direct
from vsockproxy.config.settings import Policy, Route

LISTEN = TcpEndpoint("127.0.0.1", 8080)
UNIX = UnixEndpoint("/run/guest.sock")
RULE = NetworkRule(ip_network("10.0.0.0/8"))

OTHER_VALUES: dict[str, Any] = {
    "wait_for_guest": 5.0,
    "fail_fast": True,
    "ready_when_up": True,
    "dial_on_data": True,
    "accept_proxy": True,
    "send_proxy": "v2",
    "allow": (),  # admits no client
    "deny": (RULE,),
    "max_connections_per_source": 1,
    "connection_rate": 5.0,
}

HELD_BY_THE_PUMP_OR_THE_LISTENER = {
    *("connect_timeout", "handshake_timeout", "idle_timeout", "half_close_timeout", "half_close"),
    *("half_close_hold", "linger_timeout", "max_lifetime", "drain_timeout", "backlog"),
    *("access_log", "log_empty", "keepalive", "user_timeout", "nodelay", "buffer_size"),
    *("buffer_max", "max_connections", "bandwidth", "connection_bandwidth", "probe_interval"),
    *("mode", "owner", "group"),
    "balance",  # of several targets
    "proxy_trusted",  # of accept_proxy
}
NAMED = {"direct", "over_limit", "target_allow", "target_deny"}


def test_every_key_of_a_policy_is_held_by_the_pump_or_makes_a_route_not_direct() -> None:
    keys = {field.name for field in fields(Policy)}
    assert keys == HELD_BY_THE_PUMP_OR_THE_LISTENER | NAMED | set(NEED_A_DECISION)


@pytest.mark.parametrize("key", NEED_A_DECISION)
def test_a_route_with_a_key_that_needs_a_decision_is_not_direct(key: str) -> None:
    policy = Policy(**{key: OTHER_VALUES[key]})
    assert why_not_direct(Route("web", LISTEN, UNIX, policy)) == f"{key} is set"


@pytest.mark.parametrize(
    "target",
    [
        UNIX,
        MuxEndpoint("/run/vm.sock", 80),
        VsockEndpoint(7, 80),
        TcpEndpoint("127.0.0.1", 80),
        TcpEndpoint("::1", 80),
    ],
    ids=str,
)
def test_a_route_to_a_fixed_address_is_direct(target: Target) -> None:
    assert why_not_direct(Route("web", LISTEN, target)) is None


@pytest.mark.parametrize(
    ("target", "policy", "words"),
    [
        (TcpEndpoint("db.lan", 80), Policy(), "the target's host name is resolved at each dial"),
        (
            TcpEndpoint(None, 80),
            Policy(),
            "the target has two addresses, 127.0.0.1 and ::1",
        ),
        (GuestEndpoint("web", 80), Policy(), "the guest is looked up at each dial"),
        (
            TcpEndpoint("10.1.2.3", 80),
            Policy(target_deny=(NetworkPattern(RULE.network, range(65536)),)),
            "target_allow and target_deny exclude the target",
        ),
        (UNIX, Policy(direct="off"), "direct = off"),
        (UNIX, Policy(over_limit="reject"), "over_limit = reject"),
    ],
)
def test_a_route_that_is_not_direct_has_a_reason(
    target: Target, policy: Policy, words: str
) -> None:
    assert why_not_direct(Route("web", LISTEN, target, policy)) == words


def test_a_route_with_several_targets_is_not_direct() -> None:
    route = Route("web", LISTEN, UNIX, Policy(), (UnixEndpoint("/run/other.sock"),))
    assert why_not_direct(route) == "there are several targets"
