"""Readers under any bytes, in any pieces."""

from __future__ import annotations

import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.request.reading import READERS, client_hello, read
from vsockproxy.request.reader import MOST

VALID: dict[str, bytes] = {
    "socks5": b"\5\2\0\2\5\1\0\3\x0bexample.com\x01\xbb",
    "socks5 with password": b"\5\2\0\2\1\5alice\6secret\5\1\0\4" + bytes(16) + b"\x01\xbb",
    "http-connect": b"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\nUser-Agent: x\r\n\r\n",
    "http-connect with password": (
        b"GET http://a.b/ HTTP/1.1\r\nHost: a.b\r\nProxy-Authorization: Basic YTpi\r\n\r\n"
    ),
    "sni": client_hello("a.example.com"),
    "http-host": b"GET / HTTP/1.1\r\nHost: a.b\r\nAccept: */*\r\n\r\n",
    "mux": b"CONNECT web 80\n",
    "mux of one guest": b"CONNECT 80\r\n",
}
REST = b"\5rest\r\n\r\n"

NAMES = pytest.mark.parametrize("name", READERS)


@NAMES
def test_one_byte_at_a_time_reads_as_the_whole(name: str) -> None:
    data = VALID[name] + REST
    whole = read(READERS[name](), [data])
    assert whole.asked is not None
    assert whole.asked.replay.endswith(REST)
    assert read(READERS[name](), [bytes([byte]) for byte in data]) == whole


@NAMES
def test_every_split_reads_as_the_whole(name: str) -> None:
    data = VALID[name] + REST
    whole = read(READERS[name](), [data])
    for at in range(1, len(data)):
        assert read(READERS[name](), [data[:at], data[at:]]) == whole, at


@NAMES
def test_every_beginning_waits_for_more(name: str) -> None:
    for end in range(len(VALID[name])):
        found = read(READERS[name](), [VALID[name][:end]])
        assert found.asked is None, end
        assert found.error is None, end


@NAMES
@given(data=st.data())
def test_changed_bytes_are_read_or_malformed(name: str, data: st.DataObject) -> None:
    """No other exception, and no name that could be anything but a name."""
    changed = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    check(name, bytes(changed))


@NAMES
@given(junk=st.binary(max_size=300))
def test_any_bytes_are_read_or_malformed(name: str, junk: bytes) -> None:
    check(name, junk)


@NAMES
@given(junk=st.text(alphabet="CONNECT GEThttp://a.b:[]80\r\n\t%@?#,;*", max_size=200))
def test_text_of_the_grammar_is_read_or_malformed(name: str, junk: str) -> None:
    check(name, junk.encode())


@NAMES
def test_a_request_without_an_end_grows_no_further_than_the_bound(name: str) -> None:
    """The driver stops there; until then, each byte costs about the same."""
    reader = READERS[name]()
    assert read(reader, [b"A" * 1000] * (MOST // 1000)).asked is None


def check(name: str, data: bytes) -> None:
    found = read(READERS[name](), [data])
    assert len(found.output) < 1000
    if found.asked is None:
        return
    request = found.asked.request
    assert len(found.asked.replay) <= len(data) + 100
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,253}", request.name):
        assert ip_address(request.name).version == 6
    lowest = 0 if name.startswith("mux") else 1  # vsock has a port 0, and TCP has none
    assert request.port is None or lowest <= request.port < 2**32 - 1
