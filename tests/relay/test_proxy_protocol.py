"""The PROXY protocol: headers round-trip, and invalid ones are malformed."""

from __future__ import annotations

import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.relay.proxy_protocol import (
    HEADER_MAX,
    LINE_MAX,
    SIGNATURE,
    TLV_VSOCK,
    Header,
    HeaderReader,
    InetAddress,
    MalformedHeaderError,
    UnixAddress,
    Version,
    VsockAddress,
    build_header,
    parse_header,
)

PORTS = st.integers(0, 0xFFFF)
WORDS = st.integers(0, 0xFFFFFFFF)
IPV4 = st.builds(InetAddress, st.ip_addresses(v=4), PORTS)
IPV6 = st.builds(InetAddress, st.ip_addresses(v=6), PORTS)
INET = st.one_of(st.builds(Header, IPV4, IPV4), st.builds(Header, IPV6, IPV6))
VSOCK = st.builds(VsockAddress, WORDS, WORDS).map(Header)
PATHS = st.binary(min_size=1, max_size=100).filter(lambda path: b"\0" not in path)
UNIX = st.builds(UnixAddress, st.one_of(st.just(b""), PATHS, PATHS.map(lambda name: b"\0" + name)))
HEADERS = st.one_of(INET, VSOCK, st.builds(Header, UNIX, UNIX), st.just(Header()))
VERSIONS: Final[tuple[Version, ...]] = ("v1", "v2")

CLIENT = Header(
    InetAddress(IPv4Address("192.168.0.1"), 56324), InetAddress(IPv4Address("192.168.0.11"), 443)
)


def block(command: int, transport: int, body: bytes) -> bytes:
    return SIGNATURE + bytes([command, transport]) + struct.pack("!H", len(body)) + body


def read(stream: bytes, sizes: list[int]) -> tuple[bytes, bytes]:
    """Read one header as `preamble` does; ``sizes`` are the bytes that each peek sees."""
    reader, taken = HeaderReader(), 0
    for size in [*sizes, *[1] * len(stream)]:
        if reader.done or taken == len(stream):
            break
        taken += reader.feed(stream[taken : taken + min(size, reader.room)])
    return reader.data, stream[taken:]


# ---- the specification's own words ----


def test_the_line_of_the_specification_is_written_and_read() -> None:
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    assert build_header("v1", CLIENT) == line
    assert parse_header(line) == CLIENT


def test_the_block_of_a_tcp4_client_is_laid_out_as_specified() -> None:
    assert build_header("v2", CLIENT) == bytes.fromhex(
        "0d0a0d0a000d0a515549540a 21 11 000c c0a80001 c0a8000b dc04 01bb"
    )


def test_a_guest_is_local_with_its_cid_and_port_in_a_tlv() -> None:
    header = build_header("v2", Header(VsockAddress(7, 1025)))
    assert header == block(0x20, 0x00, bytes([TLV_VSOCK]) + struct.pack("!HII", 8, 7, 1025))
    assert 0xE0 <= TLV_VSOCK <= 0xEF
    assert build_header("v1", Header(VsockAddress(7, 1025))) == b"PROXY UNKNOWN\r\n"


def test_a_client_without_an_address_is_local() -> None:
    assert build_header("v2", Header()) == block(0x20, 0x00, b"")


def test_a_guest_under_the_command_proxy_is_read() -> None:
    """Another sender's, and that of a version before."""
    tlv = bytes([TLV_VSOCK]) + struct.pack("!HII", 8, 7, 1025)
    assert parse_header(block(0x21, 0x00, tlv)) == Header(VsockAddress(7, 1025))


def test_a_unix_client_has_two_paths_of_108_bytes() -> None:
    header = build_header("v2", Header(UnixAddress(b""), UnixAddress(b"/run/front.sock")))
    assert header == block(0x21, 0x31, bytes(108) + b"/run/front.sock".ljust(108, b"\0"))
    assert len(header) == 16 + 216


@pytest.mark.parametrize(
    "version_6", ["::ffff:192.0.2.1", "2001:db8::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
)
def test_a_version_1_line_has_at_most_107_bytes(version_6: str) -> None:
    end = InetAddress(ip_address(version_6), 65535)
    line = build_header("v1", Header(end, end))
    assert len(line) <= 104 < LINE_MAX
    assert parse_header(line) == Header(end, end)


def test_mixed_ip_versions_are_written_as_ipv6() -> None:
    four, six = InetAddress(IPv4Address("192.0.2.1"), 1), InetAddress(IPv6Address("::1"), 2)
    mapped = InetAddress(IPv6Address("::ffff:192.0.2.1"), 1)
    for version in VERSIONS:
        assert parse_header(build_header(version, Header(four, six))) == Header(mapped, six)


# ---- headers that receivers take ----

BEGIN = "0d0a0d0a000d0a515549540a"

# Each was sent to HAProxy 2.6.12, nginx 1.22.1 and go-proxyproto 0.8.0, and the connection served.
# They close, or some of them: 21 00 (PROXY and UNSPEC), and 21 31 (PROXY and AF_UNIX).
TAKEN = {
    "TCP4": (CLIENT, f"{BEGIN} 21 11 000c c0a80001 c0a8000b dc04 01bb"),
    "TCP6": (
        Header(InetAddress(IPv6Address("::1"), 1), InetAddress(IPv6Address("2001:db8::2"), 80)),
        f"{BEGIN} 21 21 0024 00000000000000000000000000000001 20010db8000000000000000000000002"
        " 0001 0050",
    ),
    "vsock": (Header(VsockAddress(7, 1025)), f"{BEGIN} 20 00 000b e5 0008 00000007 00000401"),
    "unix": (Header(), f"{BEGIN} 20 00 0000"),
}


@pytest.mark.parametrize(("header", "taken"), TAKEN.values(), ids=TAKEN)
def test_a_header_is_one_that_receivers_take(header: Header, taken: str) -> None:
    assert build_header("v2", header) == bytes.fromhex(taken)
    assert parse_header(bytes.fromhex(taken)) == header


# ---- properties ----


@given(HEADERS)
def test_a_version_2_header_round_trips(header: Header) -> None:
    assert parse_header(build_header("v2", header)) == header


@given(HEADERS)
def test_version_1_has_tcp_addresses_only(header: Header) -> None:
    read_back = parse_header(build_header("v1", header))
    assert read_back == (header if isinstance(header.source, InetAddress) else Header())


@given(st.sampled_from(VERSIONS), HEADERS, st.binary(max_size=300), st.lists(st.integers(1, 120)))
def test_any_chunking_gives_the_header_and_leaves_the_rest(
    version: Version, header: Header, rest: bytes, sizes: list[int]
) -> None:
    written = build_header(version, header)
    assert read(written + rest, sizes) == (written, rest)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(SIGNATURE.__add__)))
def test_any_bytes_are_a_header_or_malformed(data: bytes) -> None:
    with suppress(MalformedHeaderError):
        parse_header(data)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(SIGNATURE.__add__),
        st.from_regex(rb"PROXY [ -~]{0,120}\r\n?"),
    ),
    st.lists(st.integers(1, 40)),
)
def test_any_chunking_of_any_bytes_gives_the_same_answer(stream: bytes, sizes: list[int]) -> None:
    def outcome(sizes: list[int]) -> object:
        try:
            return read(stream, sizes)
        except MalformedHeaderError:
            return "malformed"

    assert outcome(sizes) == outcome([])


@given(HEADERS, st.integers(0, 300), st.integers(1, 255))
def test_a_changed_byte_never_crashes(header: Header, at: int, change: int) -> None:
    data = bytearray(build_header("v2", header))
    data[at % len(data)] ^= change
    with suppress(MalformedHeaderError):
        parse_header(bytes(data))


# ---- headers without a client ----


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ffff:: ::1 65535 65535\r\n",
        block(0x20, 0x00, b""),
        block(0x20, 0x11, bytes(12)),  # LOCAL: the rest is to be left aside
        block(0x20, 0xFF, b"anything"),
        block(0x20, 0x00, b"anything"),
        block(0x20, 0x00, b"\xe5\x00\x03abc"),
        block(0x20, 0x31, bytes(216)),
        block(0x21, 0x00, b""),
        block(0x21, 0x00, b"\x04\x00\x02ab"),
        block(0x21, 0x12, bytes(12)),  # a datagram's
        block(0x21, 0x10, bytes(12)),
        block(0x21, 0x32, bytes(216)),
    ],
)
def test_local_and_unknown_headers_have_no_addresses(data: bytes) -> None:
    assert parse_header(data) == Header()


def test_unknown_tlvs_are_ignored() -> None:
    plain = build_header("v2", CLIENT)
    assert parse_header(block(0x21, 0x11, plain[16:] + b"\x01\x00\x02h2\xe0\x00\x00")) == CLIENT


# ---- what is no header ----


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\n",
        b"proxy TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY  TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 \r\n",
        b"PROXY TCP4 192.168.0.01 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.256 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 056324 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 65536 443\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 -1 443\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 192.168.0.1 192.168.0.11 1 2\r\n",
        b"PROXY TCP6 fe80::1%lo fe80::1 1 2\r\n",
        b"PROXY TCP4 192.168.0.1 443\r\n",
        b"PROXY UDP4 192.168.0.1 192.168.0.11 1 2\r\n",
        b"PROXY UNKNOWN\r",
        b"PROXY UNKNOWNX\r\n",
        SIGNATURE,
        SIGNATURE + b"\x21\x11\x00\x0c",
        block(0x11, 0x11, bytes(12)),
        block(0x22, 0x11, bytes(12)),
        block(0x21, 0x41, bytes(12)),
        block(0x21, 0x13, bytes(12)),
        block(0x21, 0x11, bytes(11)),
        block(0x21, 0x21, bytes(35)),
        block(0x21, 0x31, bytes(215)),
        block(0x21, 0x11, bytes(12) + b"\x01\x00\x05h2"),
        block(0x21, 0x11, bytes(12) + b"\x01"),
        build_header("v2", CLIENT) + b"x",
    ],
)
def test_an_invalid_header_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedHeaderError):
        parse_header(data)


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"PROXZ",
        b"PROXY TCP4 192.168.0.1\n",
        b"PROXY " + b"x" * LINE_MAX,
        b"\r\n\r\n\0\r\nQUIX",
        SIGNATURE + b"\x21\x11" + struct.pack("!H", HEADER_MAX),
    ],
)
def test_a_wrong_first_byte_is_malformed_before_the_header_is_complete(data: bytes) -> None:
    with pytest.raises(MalformedHeaderError):
        read(data, [len(data)])


def test_a_malformed_header_is_quoted_up_to_64_bytes() -> None:
    with pytest.raises(MalformedHeaderError) as caught:
        read(b"x" * 1000, [1000])
    assert len(caught.value.data) <= 64
