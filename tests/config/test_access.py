"""Access rules: their text, the clients that they match, and the reset of denied clients."""

from __future__ import annotations

import os
import socket
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_services import ORDINARY_USER, as_ordinary_user, needs_ipv6, open_folder
from tests.listen.running_route import serving, unix_at
from tests.sockets import ends_by_reset, no_descriptor_left_over
from vsockproxy.address.endpoint import AF_VSOCK, TcpEndpoint, UnixEndpoint
from vsockproxy.admit.peer import peer_at, peer_of
from vsockproxy.config.access import (
    Access,
    CidRule,
    GroupRule,
    GuestRule,
    NetworkRule,
    Peer,
    Rule,
    UserRule,
    ip_of,
    parse_rule,
)
from vsockproxy.config.settings import Policy
from vsockproxy.errors import AddressError, ListenError
from vsockproxy.listen.bind import listen

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users: run as root")


def rules(*texts: str) -> tuple[Rule, ...]:
    return tuple(map(parse_rule, texts))


def ip(text: str) -> Peer:
    return Peer(ip=ip_of(text))


# ---- rules ----


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("3", CidRule(3, 3)),
        ("3-10", CidRule(3, 10)),
        ("host", CidRule(2, 2)),
        ("web", GuestRule("web")),
        ("uid:1000", UserRule(1000)),
        ("uid:root", UserRule(0)),
        ("gid:0", GroupRule(0)),
    ],
)
def test_a_rule_prints_as_it_is_written(text: str, rule: Rule) -> None:
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "any",
            "-1",
            "10-3",
            "4294967295",
            "3-4294967295",
            "10.0.0.1/8",
            "1.2.3",
            "fe80::1%lo",
        ),
        *(
            "uid:",
            "uid:-1",
            "uid:no-such-user",
            "gid:no-such-group",
            "uid:a b",
            "٣",
            "::1/129",
            "a b",
        ),
        *("uid:\ud800", "\0"),
    ],
)
def test_a_text_that_is_not_a_rule_is_an_error(text: str) -> None:
    with pytest.raises(AddressError):
        parse_rule(text)


def test_an_address_inside_a_network_names_the_network() -> None:
    with pytest.raises(AddressError, match=r"write the network as 10\.0\.0\.0/8"):
        parse_rule("10.0.0.1/8")


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.1", "11.0.0.1"),
        ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
        ("::/0", "2001:db8::1", "127.0.0.1"),
        ("0.0.0.0/0", "::ffff:127.0.0.1", "::1"),
        ("fe80::/10", "fe80::1%7", "ff02::1"),
    ],
)
def test_a_network_matches_its_addresses(rule: str, inside: str, outside: str) -> None:
    assert parse_rule(rule).matches(ip(inside))
    assert not parse_rule(rule).matches(ip(outside))


def test_a_range_of_cids_includes_both_ends() -> None:
    rule = parse_rule("3-10")
    assert [cid for cid in range(12) if rule.matches(Peer(cid=cid))] == list(range(3, 11))


def test_a_rule_does_not_match_a_client_of_another_kind() -> None:
    peers = {"tcp": ip("10.0.0.3"), "vsock": Peer(cid=3), "unix": Peer(uid=3, gids=frozenset({3}))}
    for rule in rules("10.0.0.3", "3", "uid:3", "gid:3"):
        assert [kind for kind, peer in peers.items() if rule.matches(peer)] == [rule.kind]


def test_a_guest_without_a_known_cid_matches_no_client() -> None:
    assert not parse_rule("web").matches(Peer(cid=3))


# ---- the lists together ----


def test_deny_wins_and_an_allow_list_must_match() -> None:
    access = Access(rules("10.0.0.0/8"), rules("10.9.0.0/16"))
    assert access.admits(ip("10.1.0.1"))
    assert not access.admits(ip("10.9.0.1"))
    assert not access.admits(ip("192.0.2.1"))


def test_without_an_allow_list_every_client_not_denied_is_admitted() -> None:
    access = Access(deny=rules("10.0.0.0/8"))
    assert access.admits(ip("192.0.2.1"))
    assert not access.admits(ip("10.0.0.1"))


@pytest.mark.parametrize("access", [Access(rules("::/0")), Access(deny=rules("::/0")), Access(())])
def test_an_unidentified_client_matches_no_allow_list(access: Access) -> None:
    assert not access.admits(Peer())


def test_without_lists_every_client_is_admitted() -> None:
    assert not Access()
    assert Access().admits(Peer())


networks = st.builds(
    lambda address, bits: NetworkRule(
        ip_network((address, bits % (address.max_prefixlen + 1)), strict=False)
    ),
    st.ip_addresses(),
    st.integers(0, 128),
)


@given(st.ip_addresses(), st.lists(networks), st.lists(networks))
def test_admission_follows_the_two_lists(
    address: IPv4Address | IPv6Address, allow: list[Rule], deny: list[Rule]
) -> None:
    peer = Peer(ip=ip_of(str(address)))
    inside = [any(rule.matches(peer) for rule in some) for some in (allow, deny)]
    assert Access(tuple(allow), tuple(deny)).admits(peer) == (inside[0] and not inside[1])


# ---- what a client is counted under ----


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        (ip("192.0.2.1"), "192.0.2.1/32"),
        (ip("::ffff:192.0.2.1"), "192.0.2.1/32"),
        (ip("2001:db8:1:2:3::4"), "2001:db8:1:2::/64"),
        (Peer(cid=0), "vsock:0"),
        (Peer(uid=0), "uid:0"),
        (Peer(), None),
    ],
)
def test_a_source_is_an_address_a_site_a_guest_or_a_user(peer: Peer, source: str | None) -> None:
    assert peer.source == source


def test_a_vsock_peer_is_its_cid() -> None:
    assert peer_at(AF_VSOCK, (7, 1025)) == Peer(cid=7)


def test_a_unix_peer_is_its_user_with_all_groups() -> None:
    here, there = socket.socketpair()
    with here, there:
        peer = peer_of(here.fileno(), here.family, "")
    assert peer.uid == os.geteuid()
    assert peer.gids == {os.getegid(), *os.getgroups()}


def test_a_tcp_peer_is_its_address() -> None:
    with socket.socket() as sock:
        assert peer_of(sock.fileno(), sock.family, ("192.0.2.1", 5)) == Peer(
            ip=ip_address("192.0.2.1")
        )


# ---- on a route ----


async def test_a_denied_client_is_reset_before_the_dial() -> None:
    async with serving(Policy(deny=rules("127.0.0.2"))) as route:
        assert await ends_by_reset(route.connect("127.0.0.2"))
        await route.rejected("denied")
        assert await route.exchange(b"x", "127.0.0.1") == b"x"
        assert route.stats.connections == 1
        [line] = route.events("client_rejected")
        assert line["reason"] == "denied"
        assert str(line["client"]).startswith("127.0.0.2:")


async def test_a_reload_changes_the_allowed_clients() -> None:
    async with serving(Policy(allow=rules("127.0.0.1"))) as route:
        assert await route.exchange(b"x", "127.0.0.1") == b"x"
        assert await ends_by_reset(route.connect("127.0.0.3"))
        live = await route.live("127.0.0.1")
        route.reconfigure(Policy(allow=rules("127.0.0.3")))
        assert await route.exchange(b"x", "127.0.0.3") == b"x"
        assert await ends_by_reset(route.connect("127.0.0.1"))
        await live.send_all(b"goes on")
        assert await live.receive_some() == b"goes on"
        await live.aclose()


@needs_ipv6
async def test_rules_match_ipv6_clients() -> None:
    async with serving(Policy(allow=rules("::1")), listen_at=TcpEndpoint("::1", 0)) as route:
        assert await route.exchange(b"x") == b"x"
        route.reconfigure(Policy(deny=rules("::/127")))
        assert await ends_by_reset(route.connect())


async def test_rules_match_the_user_of_a_unix_client(tmp_path: Path) -> None:
    policy = Policy(allow=(UserRule(os.geteuid()),))
    async with serving(policy, listen_at=unix_at(tmp_path)) as route:
        assert await route.exchange(b"x") == b"x"
        route.reconfigure(Policy(allow=(UserRule(os.geteuid() + 1),)))
        async with route.connect() as client:
            assert await client.receive_some() == b""
        await route.rejected("denied")


@needs_root
async def test_another_user_is_admitted_by_its_rule_only() -> None:
    with open_folder() as folder:
        policy = Policy(mode=0o666, allow=(UserRule(ORDINARY_USER),))
        async with serving(policy, listen_at=unix_at(folder)) as route:
            with as_ordinary_user():
                client = route.connect()
            async with client:
                await client.send_all(b"x")
                assert await client.receive_some() == b"x"
            async with route.connect() as client:
                assert await client.receive_some() == b""
            await route.rejected("denied")


# ---- the file of a Unix listener ----


def opened(endpoint: UnixEndpoint, policy: Policy) -> os.stat_result:
    """Open a listener with a policy; yield its file."""
    [listener] = listen(endpoint, 16, {}, policy)
    try:
        return Path(endpoint.path).stat()
    finally:
        listener.close()


def test_a_socket_file_has_the_configured_mode_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        assert opened(unix_at(tmp_path), Policy(mode=0o660)).st_mode & 0o777 == 0o660
        assert opened(unix_at(tmp_path), Policy()).st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


@needs_root
def test_a_socket_file_gets_the_configured_owner_and_group(tmp_path: Path) -> None:
    found = opened(unix_at(tmp_path), Policy(owner=ORDINARY_USER, group=1))
    assert (found.st_uid, found.st_gid) == (ORDINARY_USER, 1)


@needs_root
def test_an_owner_that_cannot_be_set_is_an_error_and_leaves_no_file() -> None:
    with open_folder() as folder, as_other_owner(folder), no_descriptor_left_over():
        with pytest.raises(ListenError, match="only root can give") as caught:
            opened(unix_at(folder), Policy(owner=0))
        assert caught.value.reason == "denied"
        assert list(folder.iterdir()) == []


async def test_a_reload_changes_the_mode(tmp_path: Path) -> None:
    endpoint = unix_at(tmp_path)
    async with serving(Policy(mode=0o600), listen_at=endpoint) as route:
        route.reconfigure(Policy(mode=0o666))
        assert os.stat(endpoint.path).st_mode & 0o777 == 0o666  # noqa: PTH116 - a quick one


@needs_root
async def test_a_reload_that_cannot_change_the_owner_is_logged_and_succeeds() -> None:
    with open_folder() as folder, as_other_owner(folder):
        async with serving(Policy(), listen_at=unix_at(folder)) as route:
            route.reconfigure(Policy(owner=0))
            assert len(route.events("listener_options_failed")) == 1
            assert await route.exchange(b"x") == b"x"


def as_other_owner(folder: Path) -> AbstractContextManager[None]:
    """Make an ordinary user the owner of the folder."""
    os.chown(folder, ORDINARY_USER, -1)
    return as_ordinary_user()
