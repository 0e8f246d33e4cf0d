"""Server names in ClientHellos."""

from __future__ import annotations

import ssl

import pytest

from tests.request.reading import client_hello, read
from vsockproxy.config.request import Request
from vsockproxy.request.reader import MOST, Asked, Refusal
from vsockproxy.request.sni import Sni


def test_the_server_name_is_asked_for_and_every_byte_is_replayed() -> None:
    hello = client_hello("a.Example.com")
    assert read(Sni(), [hello + b"more"]).asked == Asked(Request("a.example.com"), hello + b"more")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2])
def test_an_old_hello_is_read(version: ssl.TLSVersion) -> None:
    hello = client_hello("example.com", ciphers="ALL:@SECLEVEL=0", version=version)
    assert read(Sni(), [hello]).asked == Asked(Request("example.com"), hello)


def test_a_hello_of_several_records_is_read() -> None:
    hello = client_hello("example.com")
    body = hello[5:]
    records = b"".join(
        hello[:3] + len(piece).to_bytes(2, "big") + piece for piece in (body[:40], body[40:])
    )
    assert read(Sni(), [records]).asked == Asked(Request("example.com"), records)


def test_a_large_hello_with_unknown_extensions_is_read() -> None:
    """A browser's has GREASE (RFC 8701) and keys of a kilobyte: this one has all a record has."""
    hello = with_extensions(client_hello("example.com"), (0x0A0A, b""), (0x1A1A, bytes(15000)))
    assert 15000 < len(hello) <= MOST
    assert read(Sni(), [hello[:1400], hello[1400:2800], hello[2800:]]).asked == Asked(
        Request("example.com"), hello
    )


@pytest.mark.parametrize("size", [1, 536, 1400, 1 << 14])
def test_a_browsers_hello_is_read_in_any_segments(size: int) -> None:
    hello = browser_hello("shop.example.com")
    assert 1700 < len(hello) < 2000
    pieces = [hello[at : at + size] for at in range(0, len(hello), size)]
    assert read(Sni(), pieces).asked == Asked(Request("shop.example.com"), hello)


@pytest.mark.parametrize("name", [None, "192.0.2.1"])
def test_a_hello_without_a_name_is_refused(name: str | None) -> None:
    found = read(Sni(), [client_hello(name)])
    assert found.error == "the ClientHello has no server name"
    assert found.output == alert(109)  # missing_extension


@pytest.mark.parametrize(
    ("reason", "description"), [("denied", 112), ("forbidden", 112), ("refused", 80)]
)
def test_a_refused_hello_is_answered_with_an_alert(reason: str, description: int) -> None:
    reader = Sni()
    assert read(reader, [client_hello("example.com")]).asked
    assert reader.refused(Refusal(reason, "because")) == alert(description)


def test_a_name_that_is_not_ascii_is_malformed_and_writes_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    found = read(Sni(), [client_hello("abc.example.com").replace(b"abc", b"a\xffc")])
    assert found.error is not None
    assert found.output == alert(80)  # internal_error, by the ssl module
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [b"a c", b"a..", b"a%c", b"a/c", b"a\0c"])
def test_a_name_that_is_none_is_malformed_and_answered_with_an_alert(name: bytes) -> None:
    found = read(Sni(), [client_hello("abc.example.com").replace(b"abc", name)])
    assert found.error is not None
    assert found.output == alert(112)  # unrecognized_name


def test_a_hello_with_a_wrong_length_is_answered_with_openssls_alert() -> None:
    found = read(Sni(), [b"\x16\3\1\0\5\1\0\0\1\0"])
    assert found.error is not None
    assert found.output == alert(50)  # decode_error


def test_a_record_that_is_too_long_is_answered_with_openssls_alert() -> None:
    found = read(Sni(), [b"\x16\x03\x01\xff\xff" * 4])
    assert found.error is not None
    assert found.output == alert(22)  # record_overflow


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", bytes(64)])
def test_what_is_not_tls_is_malformed(data: bytes) -> None:
    found = read(Sni(), [data])
    assert found.error is not None
    assert found.output == b""


def alert(description: int) -> bytes:
    return b"\x15\3\3\0\2\2" + bytes([description])


def with_extensions(hello: bytes, *extensions: tuple[int, bytes]) -> bytes:
    """Return a ClientHello of one record with further extensions in front of its own."""
    body = hello[9:]
    at = 34 + 1 + body[34]  # version, random, session
    at += 2 + int.from_bytes(body[at : at + 2], "big")  # ciphers
    at += 1 + body[at]  # compressions
    added = b"".join(
        kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for kind, data in extensions
    )
    all_of_them = added + body[at + 2 :]
    body = body[:at] + len(all_of_them).to_bytes(2, "big") + all_of_them
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return hello[:3] + len(message).to_bytes(2, "big") + message


def browser_hello(name: str) -> bytes:
    """Return a ClientHello with what Chrome's has: GREASE, a post-quantum key, ECH's stand-in.

    Fake: the keys are no keys, which a reader of the name does not see.
    """

    def sized(data: bytes, width: int = 2) -> bytes:
        return len(data).to_bytes(width, "big") + data

    def numbers(text: str) -> bytes:
        return bytes.fromhex(text)

    keys = numbers("2a2a") + sized(b"\0") + numbers("11ec") + sized(bytes(1216))
    keys += numbers("001d") + sized(bytes(32))
    extensions = [
        ("3a3a", b""),  # GREASE
        ("ff01", b"\0"),
        ("0010", sized(b"\2h2\x08http/1.1")),
        ("0033", sized(keys)),
        ("fe0d", b"\0\0\1\0\1\7" + sized(bytes(32)) + sized(bytes(176))),  # ECH's GREASE
        ("002b", sized(numbers("6a6a03040303"), 1)),
        ("0012", b""),
        ("0000", sized(b"\0" + sized(name.encode()))),
        ("44cd", sized(b"\2h2")),
        ("000a", sized(numbers("2a2a11ec001d00170018"))),
        ("000b", sized(b"\0", 1)),
        ("000d", sized(numbers("04030804040105030805050108060601"))),
        ("001b", sized(numbers("0002"), 1)),
        ("0017", b""),
        ("0005", b"\1\0\0\0\0"),
        ("0023", b""),
        ("002d", sized(b"\1", 1)),
        ("dada", b"\0"),  # GREASE
    ]
    ciphers = "8a8a130113021303c02bc02fc02cc030cca9cca8c013c014009c009d002f0035"
    written = b"".join(numbers(kind) + sized(data) for kind, data in extensions)
    body = b"\3\3" + bytes(32) + sized(bytes(32), 1) + sized(numbers(ciphers)) + b"\1\0"
    message = b"\1" + sized(body + sized(written), 3)
    return b"\x16\3\1" + sized(message)
