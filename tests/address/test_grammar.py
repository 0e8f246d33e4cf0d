"""The address grammar: every kind is read, printed and read back; no text is a crash."""

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.address.endpoint import (
    CID_ANY,
    CID_NAMES,
    KINDS,
    PORT_ANY,
    FdEndpoint,
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.address.grammar import expand_ports, parse_listen, parse_target
from vsockproxy.errors import AddressError

NUMBERS = st.integers(0, 0xFFFFFFFF)
SPECIFIC = st.integers(0, 0xFFFFFFFE)
TCP_PORTS = st.integers(0, 0xFFFF)
HOSTS = st.one_of(
    st.none(),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-zA-Z]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?(\.[a-z]{2,5}){0,2}", fullmatch=True),
)


def is_one_address(host: str | None) -> bool:
    return host not in ("0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:0:0")


# Paths may hold colons, spaces and letters of any script; 30 of them fit every system.
PATHS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda path: not path.startswith("@"))
GUESTS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,12}", fullmatch=True).filter(
    lambda name: name not in CID_NAMES and name not in KINDS
)
UNIX = st.one_of(PATHS, PATHS.map(lambda name: "@" + name)).map(UnixEndpoint)

LISTENS: st.SearchStrategy[ListenEndpoint] = st.one_of(
    st.builds(TcpEndpoint, HOSTS, TCP_PORTS),
    st.builds(VsockEndpoint, NUMBERS, NUMBERS, st.booleans()),
    UNIX,
    st.builds(MuxEndpoint, PATHS, NUMBERS),
    st.from_regex(r"[!-9;-~]{1,40}", fullmatch=True).map(FdEndpoint),
)
TARGETS: st.SearchStrategy[Target] = st.one_of(
    st.builds(TcpEndpoint, HOSTS.filter(is_one_address), st.integers(1, 0xFFFF)),
    st.builds(VsockEndpoint, SPECIFIC, SPECIFIC, st.booleans()),
    UNIX,
    st.builds(MuxEndpoint, PATHS, SPECIFIC, st.sampled_from(["ok", "none"])),
    st.builds(GuestEndpoint, GUESTS, SPECIFIC),
)
# Text that is nearly an address finds more than text from anywhere.
NEARLY = st.lists(
    st.one_of(
        st.sampled_from(
            [*KINDS, *CID_NAMES, ":", "[", "]", "-", ",", ",to_host", "::1", "0", "80", "65536"]
        ),
        st.sampled_from(
            ["8000-8010", "@", "/x", ".", "٣", "²", "%eth0", "\ud800", "\0", "9" * 5000]
        ),
        st.text(max_size=3),
    ),
    max_size=7,
).map("".join)


@given(LISTENS)
def test_every_listener_is_read_back_from_its_text(endpoint: ListenEndpoint) -> None:
    assert parse_listen(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("tcp:0.0.0.0", "127.0.0.1"),
        ("[::]", "[::1]"),
        ("[0:0:0:0:0:0:0:0]", "[::1]"),
        ("[::ffff:0.0.0.0]", "[::1]"),
        ("tcp:[::%lo]", "[::1]"),
    ],
)
def test_every_address_of_a_listener_is_no_target(host: str, own: str) -> None:
    with pytest.raises(AddressError, match=re.escape(f"for this machine write {own}")):
        parse_target(f"{host}:80")


@given(TARGETS)
def test_every_target_is_read_back_from_its_text(endpoint: Target) -> None:
    assert parse_target(str(endpoint)) == endpoint


@given(st.one_of(NEARLY, st.text()))
def test_no_text_is_a_crash(text: str) -> None:
    for parse in (parse_listen, parse_target):
        try:
            endpoint = parse(text)
        except AddressError:
            continue
        assert parse(str(endpoint)) == endpoint


@given(st.one_of(NEARLY, st.text()))
def test_no_text_is_a_crash_as_a_range(text: str) -> None:
    try:
        texts = expand_ports(text)
    except AddressError:
        return
    assert texts
    assert len(texts) <= 65536


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("8080", TcpEndpoint(None, 8080)),
        ("tcp:8080", TcpEndpoint(None, 8080)),
        ("0.0.0.0:80", TcpEndpoint("0.0.0.0", 80)),
        ("[::]:80", TcpEndpoint("::", 80)),
        ("tcp:[::1]:80", TcpEndpoint("::1", 80)),
        ("web:80", TcpEndpoint("web", 80)),
        ("vsock::80", VsockEndpoint(CID_ANY, 80)),
        ("vsock:any:80", VsockEndpoint(CID_ANY, 80)),
        ("vsock:-1:-1", VsockEndpoint(CID_ANY, PORT_ANY)),
        ("vsock[2:12345]", VsockEndpoint(2, 12345)),
        ("vsock:local:80", VsockEndpoint(1, 80)),
        ("unix:/a:b", UnixEndpoint("/a:b")),
        ("unix:@name", UnixEndpoint("@name")),
        ("vsock-mux:/a:b:80", MuxEndpoint("/a:b", 80)),
        ("fd:https", FdEndpoint("https")),
    ],
)
def test_a_listener_is_read(text: str, endpoint: ListenEndpoint) -> None:
    assert parse_listen(text) == endpoint


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("3:80", VsockEndpoint(3, 80)),
        ("host:80", VsockEndpoint(2, 80)),
        ("hypervisor:80", VsockEndpoint(0, 80)),
        ("4294967294:80", VsockEndpoint(4294967294, 80)),
        ("vsock:3:80,to_host", VsockEndpoint(3, 80, to_host=True)),
        ("web:80", GuestEndpoint("web", 80)),
        ("web.example:80", TcpEndpoint("web.example", 80)),
        ("10.0.0.1:80", TcpEndpoint("10.0.0.1", 80)),
        ("[::1]:80", TcpEndpoint("::1", 80)),
        ("tcp:web:80", TcpEndpoint("web", 80)),
        ("tcp:80", TcpEndpoint(None, 80)),
    ],
)
def test_a_target_is_read(text: str, endpoint: Target) -> None:
    assert parse_target(text) == endpoint


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3:80", "for a vsock listener write vsock:3:80"),
        ("::1:80", "in brackets: [::1]:80"),
        ("[web]:80", "only an IPv6 address can be in brackets"),
        ("vsock:3", "write vsock:CID:PORT"),
        ("vsock-mux:/run/v", "write vsock-mux:PATH:PORT"),
        ("vsock:3:80,x", "only option of a vsock address is to_host"),
        ("vsock-mux:/v:80,handshake=ok", "only option of a vsock-mux is handshake=none"),
        ("tcp:web:http", "'http' is not a TCP port"),
        ("vsock:guest:80", "'guest' is not a vsock CID"),
        ("1.2.3:80", "'1.2.3' is not an IP address"),
        ("٨٠", "is not a TCP port"),
        ("vsok:3:80", "'vsok' is not a kind of address: did you mean vsock:?"),
        ("mux:/run/v.sock:80", "did you mean vsock-mux:?"),
        ("unx:/run/v.sock", "did you mean unix:?"),
        ("http://0.0.0.0:80", "is a URL: write tcp:HOST:PORT"),
        ("udp:0.0.0.0:80", "'udp:0.0.0.0' is not a host"),
        ("fdd::1:80", "in brackets: [fdd::1]:80"),
        ("8000-", "write a range as 8000-8010"),
        ("10.0.0.1", "has no port"),
        ("", "has no port"),
    ],
)
def test_an_invalid_listener_is_an_error_with_a_remedy(text: str, wanted: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_listen(text)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fd:https", "an inherited socket only listens"),
        ("vsock::80", "name one CID, not any"),
        ("any:80", "name one CID, not any"),
        ("3:-1", "name one port, not any"),
        ("web:4294967295", "name one port, not any"),
        ("vsock-mux:/v:4294967295", "name one port, not any"),
        ("tcp:web:0", "TCP ports start at 1"),
        ("tcp:web:65536", "0 to 65535"),
        ("web", "expected CID:PORT, GUEST:PORT or tcp:HOST:PORT"),
        ("3x:80", "for a TCP target write tcp:HOST:PORT"),
        ("VSOCK:3:80", "did you mean vsock:?"),
        ("vsock_mux:/run/v.sock:80", "did you mean vsock-mux:?"),
        ("mux:/run/v.sock:80", "did you mean vsock-mux:?"),
        ("tpc:db:80", "did you mean tcp:?"),
        ("unx:/run/v.sock", "did you mean unix:?"),
        ("http://web:80/", "is a URL: write tcp:HOST:PORT"),
        ("web:http", "'http' is not a vsock port"),
        ("8000-", "write a range as 8000-8010"),
        ("3:8000-x", "write a range as 8000-8010"),
    ],
)
def test_an_invalid_target_is_an_error_with_a_remedy(text: str, wanted: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_target(text)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("8000-8002", ("8000", "8001", "8002")),
        ("tcp:0.0.0.0:8000-8001", ("tcp:0.0.0.0:8000", "tcp:0.0.0.0:8001")),
        ("3:9-10", ("3:9", "3:10")),
        ("vsock-mux:/v:5-5", ("vsock-mux:/v:5",)),
        ("8080", ("8080",)),
        ("unix:/run/a:1-2", ("unix:/run/a:1-2",)),
        ("fd:1-2", ("fd:1-2",)),
    ],
)
def test_a_port_range_expands_to_one_text_per_port(text: str, texts: tuple[str, ...]) -> None:
    assert expand_ports(text) == texts


@pytest.mark.parametrize("text", ["10-9", "0-65536"])
def test_a_reversed_or_too_long_range_is_an_error(text: str) -> None:
    with pytest.raises(AddressError, match="port range"):
        expand_ports(text)


def test_an_ipv6_zone_stays_with_its_address() -> None:
    endpoint = parse_target("tcp:[fe80::1%eth0]:80")
    assert endpoint == TcpEndpoint("fe80::1%eth0", 80)
    assert ipaddress.ip_address("fe80::1%eth0").is_link_local
    assert str(endpoint) == "tcp:[fe80::1%eth0]:80"


def test_a_bare_number_is_no_target_and_the_error_has_both_meanings() -> None:
    with pytest.raises(AddressError) as refused:
        parse_target("3")
    assert str(refused.value) == (
        "'3' is not a target: for a TCP port of this machine write tcp:3, for a port of CID 3 write"
        " 3:PORT"
    )


@pytest.mark.parametrize("text", ["/run/v.sock", "/run/v.sock:80", "@name"])
def test_a_path_as_a_target_is_told_to_need_its_kind(text: str) -> None:
    with pytest.raises(AddressError, match="write unix:PATH, or vsock-mux:PATH:PORT"):
        parse_target(text)
