"""SOCKS 5: the messages of RFC 1928 and RFC 1929."""

from __future__ import annotations

import pytest

from tests.request.reading import Read, read
from vsockproxy.config.request import Request
from vsockproxy.request.reader import Asked, Credentials, Refusal
from vsockproxy.request.socks5 import Socks5

HELLO = b"\5\1\0"
BY_NAME = b"\5\1\0\3\x0bexample.com\x01\xbb"
ASKED = Asked(Request("example.com", 443), b"")


def plain(data: bytes) -> Read:
    return read(Socks5(wants_password=False), [data])


def with_password(data: bytes) -> Read:
    return read(Socks5(wants_password=True), [data])


def test_a_name_is_asked_for_after_the_method_is_chosen() -> None:
    reader = Socks5(wants_password=False)
    assert reader.feed(HELLO) is None
    assert reader.output == b"\5\0"
    assert reader.feed(BY_NAME) == ASKED


def test_what_comes_behind_the_request_is_replayed() -> None:
    assert plain(HELLO + BY_NAME + b"hello").asked == Asked(Request("example.com", 443), b"hello")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (b"\1\x7f\0\0\1", "127.0.0.1"),
        (b"\4" + bytes(15) + b"\1", "::1"),
        (b"\4" + bytes(10) + b"\xff\xff\x7f\0\0\1", "::ffff:127.0.0.1"),
        (b"\3\x0bExAmPlE.cOm", "example.com"),
        (b"\3\x0cexample.com.", "example.com"),
        (b"\3\x09127.0.0.1", "127.0.0.1"),
        (b"\3\x03::1", "::1"),
    ],
)
def test_an_address_and_a_name_are_written_plainly(address: bytes, name: str) -> None:
    found = plain(HELLO + b"\5\1\0" + address + b"\0\x50").asked
    assert found is not None
    assert found.request == Request(name, 80)


@pytest.mark.parametrize("name", [b"", b"a b", b"a\n", b"\xff", b"a..b", b"fe80::1%eth0", b"a/b"])
def test_a_name_that_is_none_is_malformed(name: bytes) -> None:
    found = plain(HELLO + b"\5\1\0\3" + bytes([len(name)]) + name + b"\0\x50")
    assert found.asked is None
    assert found.error is not None
    assert found.output == b"\5\0" + b"\5\1\0\1" + bytes(6)


def test_port_zero_is_malformed_and_answered() -> None:
    found = plain(HELLO + b"\5\1\0\1\x7f\0\0\1\0\0")
    assert found.error == "0 is not a port"
    assert found.output == b"\5\0" + b"\5\1\0\1" + bytes(6)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"\5\2\0\1\x7f\0\0\1\0\x50", 7),  # BIND
        (b"\5\3\0\1\x7f\0\0\1\0\x50", 7),  # UDP ASSOCIATE
        (b"\5\1\0\2\x7f\0\0\1\0\x50", 8),
    ],
)
def test_another_command_or_type_has_its_code(request_: bytes, code: int) -> None:
    found = plain(HELLO + request_)
    assert found.output == b"\5\0" + bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
    assert found.error is not None


@pytest.mark.parametrize("data", [b"\4\1\0\x50\x7f\0\0\1\0", b"GET / HTTP/1.1\r\n", b"\5\1\0\4"])
def test_another_version_is_malformed_and_has_no_answer(data: bytes) -> None:
    found = plain(data)
    assert found.error is not None
    assert found.output in (b"", b"\5\0")


def test_a_client_without_an_accepted_method_is_told() -> None:
    assert plain(b"\5\1\1").output == b"\5\xff"
    assert with_password(b"\5\1\0").output == b"\5\xff"


def test_a_user_and_password_are_checked_before_the_request_is_read() -> None:
    reader = Socks5(wants_password=True)
    assert reader.feed(b"\5\2\0\2") is None
    assert reader.output == b"\5\2"
    assert reader.feed(b"\1\5alice\6secret" + BY_NAME) == Credentials("alice", "secret")
    assert reader.output == b"\5\2"
    assert reader.authenticated() == Asked(Request("example.com", 443, "alice"), b"")
    assert reader.output == b"\5\2\1\0"
    assert reader.refused(Refusal("unauthenticated", "")) == b"\1\1"


def test_a_user_that_no_one_wants_is_accepted_and_not_believed() -> None:
    found = plain(b"\5\1\2\1\1u\0" + BY_NAME)
    assert found == Read(ASKED, None, b"\5\2\1\0", None)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("denied", 2),
        ("forbidden", 2),
        ("unreachable", 3),
        ("name", 4),
        ("no_transport", 4),
        ("refused", 5),
        ("timeout", 6),
        ("no_answer", 6),
        ("protocol", 1),
    ],
)
def test_each_failure_has_its_code(reason: str, code: int) -> None:
    reply = Socks5(wants_password=False).refused(Refusal(reason, ""))
    assert reply == bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("address", "reply"),
    [
        (("192.0.2.1", 4711), b"\5\0\0\1\xc0\0\2\1\x12\x67"),
        (("fe80::1%eth0", 80, 0, 2), b"\5\0\0\4\xfe\x80" + bytes(13) + b"\1\0\x50"),
        ((3, 1025), b"\5\0\0\1" + bytes(6)),  # vsock
        ("", b"\5\0\0\1" + bytes(6)),  # Unix
    ],
)
def test_the_reply_has_the_bound_address(address: object, reply: bytes) -> None:
    assert Socks5(wants_password=False).accepted(address) == reply
