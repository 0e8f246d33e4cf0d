"""`target_allow` and `target_deny`: patterns, their errors in a file, and their use at a dial."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.config.texts import errors, toml
from tests.daemon_process import command
from tests.listen.running_route import serving
from tests.sockets import ends_by_reset
from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.destination import Destinations, Pattern, parse_pattern
from vsockproxy.config.settings import Policy
from vsockproxy.dial.dial import dial
from vsockproxy.errors import AddressError, DialError

METADATA = "169.254.169.254"


def patterns(*texts: str) -> tuple[Pattern, ...]:
    return tuple(map(parse_pattern, texts))


def only(*texts: str) -> Destinations:
    return Destinations(allow=patterns(*texts))


def but(*texts: str) -> Destinations:
    return Destinations(deny=patterns(*texts))


# ---- patterns ----


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("10.0.0.0/8:443", "10.0.0.0/8:443"),
        ("10.1.2.3/32:1-65535", "10.1.2.3:*"),
        ("[fd00::]/8:*", "[fd00::]/8:*"),
        ("[fd00::/8]:443", "[fd00::]/8:443"),
        ("[::1]:5000-5010", "[::1]:5000-5010"),
        ("[::ffff:10.0.0.0]/104:80", "10.0.0.0/8:80"),
        ("*.Example.com.:443", "*.example.com:443"),
        ("db:7-7", "db:7"),
    ],
)
def test_a_pattern_is_a_host_and_ports(text: str, printed: str) -> None:
    assert str(parse_pattern(text)) == printed
    assert parse_pattern(printed) == parse_pattern(text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("", "expected HOST:PORTS"),
        ("db", "expected HOST:PORTS"),
        ("10.0.0.0/8", "expected HOST:PORTS"),
        ("[fd00::]/8", "expected HOST:PORTS"),
        ("fd00::/8:443", "expected HOST:PORTS"),
        ("tcp:db:443", "expected HOST:PORTS"),
        ("*:443", "0.0.0.0/0:443 and [::]/0:443"),
        ("a.*.com:443", "only allowed as *.DOMAIN"),
        ("10.0.0.1/8:443", "write the network as 10.0.0.0/8"),
        ("10.0.0.0/33:443", "10.0.0.0/33 is not a network"),
        ("[10.0.0.0]/8:443", "[10.0.0.0]/8 is not a network"),
        ("db:http", "443, 5000-5010 or *"),
        ("db:٣", "443, 5000-5010 or *"),
        ("db:0", "1 to 65535"),
        ("db:443-80", "lower port first"),
        ("db:65536", "1 to 65535"),
    ],
)
def test_a_text_that_is_not_a_pattern_is_an_error_with_a_remedy(text: str, remedy: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_pattern(text)
    assert remedy in str(caught.value)


@given(st.text(max_size=30))
def test_every_text_is_a_pattern_or_an_address_error(text: str) -> None:
    try:
        parsed = parse_pattern(text)
    except AddressError:
        return
    assert parse_pattern(str(parsed)) == parsed


# ---- a target, and the address that its name resolves to ----


@pytest.mark.parametrize(
    ("destinations", "host", "address", "admitted"),
    [
        (only("10.0.0.0/8:443"), "10.1.2.3", "10.1.2.3", True),
        (only("10.0.0.0/8:80"), "10.1.2.3", "10.1.2.3", False),
        (only("10.0.0.0/8:443"), "db", "10.1.2.3", True),
        (only("10.0.0.0/8:443"), "db", METADATA, False),
        (only("10.0.0.0/8:443"), "db", "::ffff:10.1.2.3", True),
        (only("[fd00::]/8:*"), "db", "fd00::1", True),
        (only("[fe80::]/10:*"), "fe80::1%lo", "fe80::1%lo", True),
        (only("[::]/0:*"), "db", "10.1.2.3", False),
        # A name is enough where no network is named, and not where one is.
        (only("*.example.com:443"), "db.Example.COM", METADATA, True),
        (only("*.example.com:443"), "db.example.com.", METADATA, True),
        (only("*.example.com:443"), "example.com", "10.1.2.3", False),
        (only("*.example.com:443"), "badexample.com", "10.1.2.3", False),
        (only("example.com:443"), "db.example.com", "10.1.2.3", False),
        (only("*.example.com:443", "10.0.0.0/8:443"), "db.example.com", "10.1.2.3", True),
        (only("*.example.com:443", "10.0.0.0/8:443"), "db.example.com", METADATA, False),
        (only("*.example.com:443", "10.0.0.0/8:443"), "db.example.org", "10.1.2.3", False),
        (only("*.example.com:443", "10.0.0.0/8:443"), "10.1.2.3", "10.1.2.3", True),
        (only("*.example.com:443"), "10.1.2.3", "10.1.2.3", False),
        (but("169.254.0.0/16:*"), "db", METADATA, False),
        (but("169.254.0.0/16:*"), "db", "::ffff:169.254.169.254", False),
        (but("169.254.0.0/16:*"), "db", "10.1.2.3", True),
        (but("*.example.com:443"), "db.example.com", "10.1.2.3", False),
        (
            Destinations(patterns("10.0.0.0/8:*"), patterns("10.9.0.0/16:*")),
            "db",
            "10.9.0.1",
            False,
        ),
        (Destinations(patterns("10.0.0.0/8:*"), patterns("10.9.0.0/16:*")), "db", "10.8.0.1", True),
        # This machine answers itself there.
        (but("127.0.0.0/8:*"), "db", "0.0.0.0", False),
        (but("[::1]:*"), "db", "::", False),
        (only("127.0.0.0/8:*"), None, "127.0.0.1", True),
        (only("127.0.0.0/8:*"), None, "::1", False),
        (Destinations(), "db", METADATA, True),
        (Destinations(allow=()), "db", "10.1.2.3", False),
        (Destinations(allow=()), "10.1.2.3", "10.1.2.3", False),
    ],
)
def test_an_address_is_checked_together_with_the_name_that_resolved_to_it(
    destinations: Destinations, host: str | None, address: str, admitted: bool
) -> None:
    assert destinations.admits(TcpEndpoint(host, 443), address) is admitted


# ---- in a file ----


def test_a_target_that_no_pattern_matches_is_an_error_at_the_target() -> None:
    assert errors(
        '[defaults]\ntarget_allow = ["10.0.0.0/8:5432", "*.example.com:443-444"]\n'
        '[[route]]\nlisten = "vsock::1"\ntarget = "tcp:10.0.0.1:5433"\n'
        '[[route]]\nlisten = "vsock::2"\ntarget = "tcp:db.internal:5432"\n'
        '[[route]]\nlisten = "vsock::3"\ntarget = "tcp:www.example.com:444"\n'
        '[[route]]\nlisten = "vsock::4"\ntarget = "tcp:80"\n'
        '[[route]]\nlisten = "vsock::5"\ntarget = "tcp:80"\n'
        'target_allow = "off"\ntarget_deny = ["127.0.0.1:80", "[::]/0:80"]\n'
        '[[route]]\nlisten = "vsock::6"\ntarget = "tcp:db:25"\n'
        'target_allow = "off"\ntarget_deny = ["db:1-1023"]\n'
    ) == [
        'route[0].target: target_allow does not match tcp:10.0.0.1:5433: add "10.0.0.1:5433"',
        "route[1].target: target_allow has no name that matches tcp:db.internal:5432:"
        ' add "db.internal:5432"',
        "route[2].target: target_allow has no network for port 444 of tcp:www.example.com:444:"
        ' add the network of www.example.com, as in "10.0.0.0/8:444"',
        'route[3].target: target_allow does not match tcp:80: add "127.0.0.1:80"',
        'route[4].target: tcp:80 matches "[::]/0:80" of target_deny:'
        " change the target or the pattern",
        'route[5].target: tcp:db:25 matches "db:1-1023" of target_deny:'
        " change the target or the pattern",
    ]


def test_the_short_form_names_its_route() -> None:
    assert errors(
        '[forward]\n"vsock::1" = "10.0.0.1:80"\n[defaults]\ntarget_allow = ["db:80"]'
    ) == ['forward."vsock::1": target_allow does not match tcp:10.0.0.1:80: add "10.0.0.1:80"']


def test_invalid_lists_are_errors_that_say_what_is_expected() -> None:
    assert errors(
        '[forward]\n80 = "3:80"\n[defaults]\ntarget_allow = 5\ntarget_deny = [25, "db"]\n'
    ) == [
        'defaults.target_allow: 5 is not a list: expected one, as in ["10.0.0.0/8:443",'
        ' "db.internal:5432"]',
        "defaults.target_deny: 25 is not a pattern: expected a text;"
        " 'db' is not a target pattern: expected HOST:PORTS, where HOST is a network"
        " (10.0.0.0/8, [fd00::]/8) or a name (db.internal, *.example.com),"
        " and PORTS is 443, 5000-5010 or *",
    ]


def test_an_empty_target_allow_is_an_error_of_a_tcp_target() -> None:
    assert errors('forward.80 = "10.0.0.1:80"\ndefaults.target_allow = []') == [
        'defaults.target_allow: an empty list would deny every target: write "off" to allow all'
    ]


def test_the_defaults_are_for_tcp_targets_and_a_routes_own_must_fit() -> None:
    text = '[forward]\n80 = "3:80"\n"vsock::1" = "10.0.0.1:80"\n[defaults]\n'
    text += 'target_allow = ["10.0.0.0/8:80"]'
    guest, host = toml(text).routes
    assert guest.policy.target_allow is None
    assert host.policy.target_allow == patterns("10.0.0.0/8:80")
    assert errors('[[route]]\nlisten = "80"\ntarget = "3:80"\ntarget_deny = ["10.0.0.0/8:80"]') == [
        "route[0].target_deny: needs a TCP target: vsock:3:80 is not one"
    ]


def test_check_shows_lists_as_a_file_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        '[forward]\n"vsock::1" = "10.0.0.1:80"\n[defaults]\ntarget_allow = ["10.0.0.0/8:80"]\n'
        'target_deny = ["[::]/0:*"]\nallow = [3, "5-9"]\n'
    )
    shown = command("check", file).stdout
    assert "allow=3,5-9 target_allow=10.0.0.0/8:80 target_deny=[::]/0:*" in shown
    file.write_text('[forward]\n"unix:/a" = "3:80"\n[defaults]\ndeny = ["gid:0", "uid:0"]')
    assert "deny=gid:0,uid:0" in command("check", file).stdout


# ---- at each dial ----

Resolve = Callable[..., Awaitable[list[tuple[object, ...]]]]


def resolving_to(*addresses: str) -> Resolve:
    """Fake the name server: it answers with these IPv4 addresses."""

    async def resolve(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    return resolve


async def test_a_resolved_address_outside_the_patterns_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", resolving_to(METADATA, "10.9.9.9"))
    with pytest.raises(DialError) as caught:
        await dial(TcpEndpoint("db.internal", 80), 5, destinations=only("127.0.0.0/8:*"))
    assert caught.value.reason == "forbidden"
    assert "exclude 169.254.169.254 and 1 more" in str(caught.value)


async def test_only_the_allowed_addresses_of_a_name_are_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", resolving_to("127.0.0.2", "127.0.0.3"))
    with socket.create_server(("127.0.0.2", 0)) as first:
        port = first.getsockname()[1]
        with socket.create_server(("127.0.0.3", port)) as second:
            target = TcpEndpoint("db.internal", port)
            with await dial(target, 5, destinations=only("127.0.0.3:*")) as sock:
                assert sock.getpeername()[0] == "127.0.0.3"
            second.accept()[0].close()
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.accept()


async def test_a_client_whose_target_is_forbidden_is_reset_counted_and_logged() -> None:
    async with serving(Policy(target_deny=patterns("127.0.0.0/8:*"))) as route:
        assert await ends_by_reset(route.connect())
        await route.closed("dial_forbidden")
        assert route.stats.dial_failures == {"forbidden": 1}
        [line] = route.events("dial_failed")
        assert line["reason"] == "forbidden"
        assert not route.events("connection_closed"), "one line a failure"


async def test_patterns_apply_to_a_target_with_send_proxy() -> None:
    policy = Policy(target_deny=patterns("127.0.0.0/8:*"), send_proxy="v2")
    async with serving(policy) as route:
        assert await ends_by_reset(route.connect())
        await route.closed("dial_forbidden")
