"""Which targets a client may name: every spelling of an address that a name must not lead to."""

from __future__ import annotations

import ipaddress
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.destination import Pattern, parse_pattern
from vsockproxy.config.reach import Ip, Reach, check_asked, endpoint_of
from vsockproxy.errors import AddressError

EVERYWHERE: Final = ("0.0.0.0/0:*", "[::]/0:*")
OWN: Final = {"203.0.114.7", "10.0.0.1", "2a00::7", "fe80::7"}


def patterns(texts: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(map(parse_pattern, texts))


def is_own(ip: Ip) -> bool:
    """Fake the kernel: the machine's addresses are those of OWN and the loopback."""
    return str(ip) in OWN or ip.is_loopback


def objection(address: str, *allow: str, deny: tuple[str, ...] = (), name: str = "") -> str | None:
    reach = Reach(patterns(allow), patterns(deny))
    return reach.objection(TcpEndpoint(name or address, 443), address, is_own)


def embedded(text: str) -> list[str]:
    """Return the spellings of an IPv4 address within an IPv6 one."""
    number = int(ipaddress.IPv4Address(text))
    high, low = number >> 16, number & 0xFFFF
    return [
        f"::ffff:{text}",
        f"::ffff:{high:x}:{low:x}",
        f"64:ff9b::{high:x}:{low:x}",
        f"64:ff9b::{text}",
        f"2002:{high:x}:{low:x}::",
        f"2002:{high:x}:{low:x}::1",
        f"::{high:x}:{low:x}",  # IPv4-compatible, RFC 4291
        f"64:ff9b:1::{high:x}:{low:x}",  # NAT64 of a local network, RFC 8215
        f"2001:0:{high:x}:{low:x}::",  # Teredo
    ]


IPV4: Final = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.170.2"),
    *("169.254.1.1", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    *("100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16", "203.0.114.7"),
]
SPECIAL: Final = [
    *IPV4,
    *(spelling for address in IPV4 for spelling in embedded(address)),
    *("::", "::1", "0:0:0:0:0:0:0:1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%lo"),
    *("fec0::1", "fc00::1", "fdff::1", "ff02::1", "2001:db8::1", "100::1", "4000::1", "2a00::7"),
    *("::ffff:0:127.0.0.1", "::ffff:127.0.0.1%lo"),
    # EKS, Scaleway, OpenStack; ULA and deprecated forms of the loopback and of a network
    *("169.254.170.23", "169.254.42.42", "fd00:42::42", "fe80::a9fe:a9fe", "fd00:ec2::23"),
    *("::127.0.0.1", "::ffff:0.0.0.0", "64:ff9b::", "2002::", "2002:a9fe:a9fe::a9fe:a9fe"),
    *("64:ff9b::203.0.114.7", "2002:cb00:7207::", "::ffff:203.0.114.7", "fec0::a9fe:a9fe"),
    *("5f00::1", "0::ffff:7f00:1", "2001:20::1", "3fff::1", "64:ff9b:1:2::10.0.0.1"),
    *("127.0.0.53", "127.0.0.11", "0.0.0.1", "192.88.99.1", "100.127.255.254", "172.17.0.1"),
]


@pytest.mark.parametrize("address", SPECIAL)
def test_a_special_address_is_denied_in_every_spelling(address: str) -> None:
    assert objection(address, *EVERYWHERE) is not None
    assert objection(address, "evil.example:443", name="evil.example") is not None


@pytest.mark.parametrize("address", ["8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2a00::8"])
def test_a_public_address_is_reached_by_its_name_or_network(address: str) -> None:
    assert objection(address, *EVERYWHERE) is None
    assert objection(address, "good.example:443", name="good.example") is None


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("10.1.2.3", "10.0.0.0/8:443"),
        ("::ffff:10.1.2.3", "10.1.2.3:443"),
        ("64:ff9b::a01:203", "10.1.2.0/24:*"),
        ("127.0.0.1", "127.0.0.1:443"),
        ("127.0.0.1", "127.0.0.0/8:443"),
        ("0.0.0.0", "127.0.0.1:443"),
        ("::", "[::1]:443"),
        ("169.254.1.1", "169.254.0.0/16:443"),
        ("169.254.169.254", "169.254.169.254:443"),
        ("fd00::1", "[fd00::]/8:443"),
        ("10.0.0.1", "10.0.0.1:443"),
        ("203.0.114.7", "203.0.114.7:443"),
    ],
)
def test_an_address_rule_names_a_special_address(address: str, rule: str) -> None:
    assert objection(address, rule) is None
    assert objection(address, "db:443", rule, name="db") is None
    assert objection(address, rule, name="db") is None


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("127.0.0.1", "0.0.0.0/0:443"),
        ("10.1.2.3", "8.0.0.0/6:443"),
        ("169.254.169.254", "169.254.0.0/16:443"),
        ("fd00:ec2::254", "[fd00::]/8:443"),
        ("10.0.0.1", "10.0.0.0/8:443"),  # the machine's own
        ("203.0.114.7", "203.0.114.0/24:443"),  # the machine's own
        ("::1", "[::]/0:443"),
        ("10.1.2.3", "10.0.0.0/8:80"),
        ("fe80::a9fe:a9fe", "[fe80::]/10:443"),
        ("2002:7f00:1::", "[2002::]/16:443"),
        ("2002:7f00:1::", "[2002:7f00:1::]/48:443"),  # the inner address must be named
        ("64:ff9b::7f00:1", "[64:ff9b::]/96:443"),
        ("64:ff9b::a9fe:a9fe", "[64:ff9b::a9fe:a9fe]:443"),
        ("64:ff9b:1::7f00:1", "[64:ff9b::]/32:443"),
        ("::ffff:127.0.0.1", "[::ffff:0:0]/96:443"),
        ("0.0.0.0", "0.0.0.0/0:443"),
    ],
)
def test_a_wider_rule_does_not_name_it(address: str, rule: str) -> None:
    text = objection(address, rule, "db:443", name="db")
    assert text is not None
    assert "target_allow must name: add" in text


def test_an_objection_says_what_the_address_is_and_what_to_add() -> None:
    assert objection("::ffff:10.0.0.9", "db:443", name="db") == (
        '::ffff:10.0.0.9 is a private address, which target_allow must name: add "10.0.0.9:443"'
    )
    assert objection("203.0.114.7", "db:443", name="db") == (
        "203.0.114.7 is an address of this machine, which target_allow must name:"
        ' add "203.0.114.7:443"'
    )
    assert objection("8.8.8.8", "9.9.9.9:443", name="db") == (
        'target_allow has no rule for 8.8.8.8: add "8.8.8.8:443"'
    )


@pytest.mark.parametrize("address", ["10.9.0.1", *embedded("10.9.0.1")[:6]])
def test_a_denied_network_wins_in_every_spelling(address: str) -> None:
    text = objection(address, "10.0.0.0/8:*", "db:443", deny=("10.9.0.0/16:*",), name="db")
    assert text == f'{address} matches "10.9.0.0/16:*" of target_deny'


@pytest.mark.parametrize(
    ("rule", "name", "port"),
    [
        ("admin.vm:80", "admin.vm", 80),
        ("admin.vm:80", "ADMIN.vm.", 80),
        ("admin.vm:80", "admin.vm", None),  # Host and a server name can come without one
        ("*.vm:8000-8010", "a.vm", None),
        ("10.0.0.0/8:80", "10.0.0.1", None),
        ("127.0.0.0/8:*", "0.0.0.0", 1),
        ("127.0.0.0/8:*", "::ffff:0:0", 1),
        ("[::1]:*", "::", 1),
        ("[::ffff:10.0.0.0]/104:*", "10.0.0.1", 1),
    ],
)
def test_a_deny_rule_matches_every_spelling_of_what_is_asked_for(
    rule: str, name: str, port: int | None
) -> None:
    reach = Reach((), patterns((rule,)))
    assert reach.denial(name, port) == parse_pattern(rule)
    assert reach.denial("other.org", port) is None


def test_an_empty_list_reaches_nothing() -> None:
    nothing = Reach(())
    assert nothing.rules_for(TcpEndpoint("deb.debian.org", 80)) == ()
    assert nothing.rules_for(TcpEndpoint("8.8.8.8", 80)) == ()
    assert nothing.objection(TcpEndpoint("a", 80), "8.8.8.8", is_own) is not None


@pytest.mark.parametrize(
    "name",
    [
        *("2130706433", "127.1", "127.0.1", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
        *("0X7F.0.0.1", "127.0.0.1.5", "a.0x1", "127.0.0.01", "1", "0"),
        *("0x", "0X", "example.0x", "00000000000000000000000000177.0.0.1", "127.0x0.0.1"),
        *("127.0.0.256", "4294967297", "0x100000001", "1e0.1", "127.00.00.001"),
    ],
)
def test_a_number_that_only_the_resolver_takes_for_an_address_is_denied(name: str) -> None:
    with pytest.raises(AddressError, match="not an IP address: write it as in"):
        endpoint_of(name, 443)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "a..b", "a.b..", "-a.b", "a b", "a/b", "a\0b", "a\n", "[::1]", "a:80", "a%25"),
        *("fe80::1%lo", "::1%1", "a@b", "*.a", "{1}", "x" * 64, ".".join(["a" * 60] * 5)),
        *("\uff41.example", "a\u3002example", "\u2460.example", "\u0661.0.0.1", "ex\u00e4mple"),
    ],
)
def test_a_text_that_is_no_host_name_in_ascii_is_denied(name: str) -> None:
    with pytest.raises(AddressError, match="neither a host name nor an IP address"):
        check_asked(name)


@pytest.mark.parametrize("name", ["db", "a_b.example.com", "xn--exmple-cua.de", "::1", "10.0.0.1"])
def test_a_host_name_or_an_address_can_be_asked_for(name: str) -> None:
    check_asked(name)


@given(st.ip_addresses())
def test_every_address_that_everywhere_reaches_is_public(ip: Ip) -> None:
    if objection(str(ip), *EVERYWHERE) is None:
        special = (ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_unspecified)
        assert not any(special)
        plain = getattr(ip, "ipv4_mapped", None) or getattr(ip, "sixtofour", None) or ip
        assert plain.is_global or plain in ipaddress.ip_network("64:ff9b::/96")


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_has_one_verdict_in_every_spelling(ip: ipaddress.IPv4Address) -> None:
    for allow in (EVERYWHERE, ("10.0.0.0/8:*",), ()):
        verdicts = {objection(one, *allow) is None for one in (str(ip), *embedded(str(ip))[:6])}
        assert len(verdicts) == 1
