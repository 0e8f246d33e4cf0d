"""Addresses as values: ranges, equality, and the bytes that kernels and Hyper-V see."""

import dataclasses
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.address.endpoint import (
    CID_ANY,
    CID_HOST,
    PORT_ANY,
    FdEndpoint,
    GuestEndpoint,
    Layout,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
    port_to_service_guid,
    service_guid_to_port,
)
from vsockproxy.errors import AddressError

UINT32 = st.integers(0, 0xFFFFFFFF)

LINUX_TO_HOST = "28 00 00 00 39 30 00 00 02 00 00 00 01 00 00 00"
LINUX = "28 00 00 00 39 30 00 00 02 00 00 00 00 00 00 00"
DARWIN = "0c 28 00 00 39 30 00 00 02 00 00 00"


@pytest.mark.parametrize(
    ("endpoint", "layout", "wanted"),
    [
        (VsockEndpoint(2, 12345, to_host=True), "linux", LINUX_TO_HOST),
        (VsockEndpoint(2, 12345), "linux", LINUX),
        (VsockEndpoint(2, 12345), "darwin", DARWIN),
    ],
)
def test_a_vsock_address_packs_to_the_bytes_of_its_kernel_and_back(
    endpoint: VsockEndpoint, layout: Layout, wanted: str
) -> None:
    packed = bytes.fromhex(wanted)
    assert endpoint.to_sockaddr(layout) == packed
    assert VsockEndpoint.from_sockaddr(packed, layout) == endpoint


@given(UINT32, UINT32, st.booleans())
def test_every_vsock_address_survives_linux_bytes(cid: int, port: int, to_host: bool) -> None:
    endpoint = VsockEndpoint(cid, port, to_host)
    assert VsockEndpoint.from_sockaddr(endpoint.to_sockaddr("linux"), "linux") == endpoint


@given(UINT32, UINT32)
def test_every_vsock_address_survives_darwin_bytes(cid: int, port: int) -> None:
    endpoint = VsockEndpoint(cid, port)
    assert VsockEndpoint.from_sockaddr(endpoint.to_sockaddr("darwin"), "darwin") == endpoint


def test_only_bit_zero_of_the_flags_is_to_host() -> None:
    flags_two = bytes.fromhex(LINUX)[:12] + b"\x02\x00\x00\x00"
    assert not VsockEndpoint.from_sockaddr(flags_two, "linux").to_host


def test_a_longer_buffer_is_an_address_too() -> None:
    padded = bytes.fromhex(LINUX) + bytes(16)
    assert VsockEndpoint.from_sockaddr(padded, "linux") == VsockEndpoint(2, 12345)


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        (b"", "linux"),
        (bytes.fromhex(LINUX)[:15], "linux"),
        (bytes.fromhex(DARWIN)[:11], "darwin"),
        (b"\x02\x00" + bytes.fromhex(LINUX)[2:], "linux"),
        (b"\x0c\x02" + bytes.fromhex(DARWIN)[2:], "darwin"),
    ],
)
def test_bytes_that_are_not_a_vsock_address_are_an_error(data: bytes, layout: Layout) -> None:
    with pytest.raises(AddressError):
        VsockEndpoint.from_sockaddr(data, layout)


def test_to_host_is_an_error_on_darwin() -> None:
    with pytest.raises(AddressError, match="needs Linux"):
        VsockEndpoint(2, 1, to_host=True).to_sockaddr("darwin")


@pytest.mark.parametrize(("cid", "port"), [(1 << 32, 1), (1, 1 << 32), (-2, 1), (1, -2)])
def test_a_number_that_would_wrap_is_an_error(cid: int, port: int) -> None:
    with pytest.raises(AddressError, match="0 to 4294967295"):
        VsockEndpoint(cid, port)


def test_minus_one_is_any() -> None:
    assert VsockEndpoint(-1, -1) == VsockEndpoint(CID_ANY, PORT_ANY) == VsockEndpoint()


def test_a_cid_above_two_to_the_31_is_ordinary() -> None:
    assert str(VsockEndpoint(0xFFFFFFFE, 0x80000000)) == "vsock:4294967294:2147483648"


def test_equality_and_hash_are_over_cid_port_and_to_host() -> None:
    one, same = VsockEndpoint(CID_HOST, 1), VsockEndpoint(CID_HOST, 1)
    others = {VsockEndpoint(3, 1), VsockEndpoint(2, 2), VsockEndpoint(2, 1, to_host=True)}
    assert one == same
    assert hash(one) == hash(same)
    assert one not in others
    assert len(others) == 3
    plain: object = (CID_HOST, 1)
    assert one != plain


def test_an_address_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VsockEndpoint(2, 1).port = 2  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("port", "guid"),
    [
        (0, "00000000-facb-11e6-bd58-64006a7986d3"),
        (22, "00000016-facb-11e6-bd58-64006a7986d3"),
        (500000, "0007a120-facb-11e6-bd58-64006a7986d3"),
        (0x7FFFFFFF, "7fffffff-facb-11e6-bd58-64006a7986d3"),
    ],
)
def test_a_port_has_its_hyper_v_service_guid(port: int, guid: str) -> None:
    assert port_to_service_guid(port) == uuid.UUID(guid)
    assert service_guid_to_port(uuid.UUID(guid)) == port


def test_a_hyper_v_port_ends_at_31_bits() -> None:
    with pytest.raises(AddressError):
        port_to_service_guid(0x80000000)
    with pytest.raises(AddressError):
        service_guid_to_port(uuid.UUID("80000000-facb-11e6-bd58-64006a7986d3"))


def test_another_service_has_no_vsock_port() -> None:
    with pytest.raises(AddressError, match="not a vsock service"):
        service_guid_to_port(uuid.UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878"))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_tcp_port_has_16_bits(port: int) -> None:
    with pytest.raises(AddressError, match="0 to 65535"):
        TcpEndpoint("127.0.0.1", port)


@pytest.mark.parametrize("host", ["", "256.0.0.1", "1.2.3", "::g", "a b", "a/b", "x[", "é\n"])
def test_a_text_that_is_not_a_host_is_an_error(host: str) -> None:
    with pytest.raises(AddressError):
        TcpEndpoint(host, 80)


@pytest.mark.parametrize("path", ["", "@", "a\0b", "x" * 200, "é" * 100, "\ud800"])
def test_a_text_that_is_not_a_socket_path_is_an_error(path: str) -> None:
    with pytest.raises(AddressError):
        UnixEndpoint(path)
    with pytest.raises(AddressError):
        MuxEndpoint(path, 80)


def test_a_mux_needs_a_file() -> None:
    with pytest.raises(AddressError, match="abstract"):
        MuxEndpoint("@v", 80)


def test_the_guest_dials_a_mux_listener_at_the_path_with_the_port() -> None:
    assert MuxEndpoint("/run/v.sock", 52).listen_path == "/run/v.sock_52"


@pytest.mark.parametrize("name", ["", "a:b", "a b", "é", "x" * 256])
def test_a_name_that_systemd_does_not_allow_is_an_error(name: str) -> None:
    with pytest.raises(AddressError):
        FdEndpoint(name)


@pytest.mark.parametrize("name", ["", "3", "-a", "a.b", "any", "host", "tcp", "vsock-mux", "é"])
def test_a_guest_name_like_a_cid_a_host_or_a_prefix_is_an_error(name: str) -> None:
    with pytest.raises(AddressError):
        GuestEndpoint(name, 80)
