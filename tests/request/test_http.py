"""HTTP's requests: CONNECT, absolute form, and Host."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from tests.request.reading import Read, read
from vsockproxy.config.request import Request
from vsockproxy.request.http_connect import HttpConnect
from vsockproxy.request.http_host import HttpHost
from vsockproxy.request.reader import Asked, Credentials, Refusal

CONNECT = b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n"
BASIC = b"Proxy-Authorization: Basic " + base64.b64encode(b"alice:se:cret") + b"\r\n"


def to_proxy(data: bytes, *, wants_password: bool = False) -> Read:
    return read(HttpConnect(wants_password=wants_password), [data])


def to_host(data: bytes) -> Read:
    return read(HttpHost(), [data])


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


# ---- CONNECT ----


def test_connect_asks_for_a_name_and_a_port_and_replays_the_rest() -> None:
    found = to_proxy(CONNECT + b"\r\n\x16\x03\x01")
    assert found.asked == Asked(Request("example.com", 443), b"\x16\x03\x01")
    assert found.output == b""


def test_an_accepted_connect_is_answered_without_a_body() -> None:
    reader = HttpConnect(wants_password=False)
    read(reader, [CONNECT + b"\r\n"])
    assert reader.accepted(("127.0.0.1", 1)) == b"HTTP/1.1 200 Connection established\r\n\r\n"


@pytest.mark.parametrize(
    "target", ["[::1]:443", "[::ffff:127.0.0.1]:443", "127.0.0.1:443", "EXAMPLE.com.:443"]
)
def test_connect_takes_an_address(target: str) -> None:
    found = to_proxy(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    name = target.rpartition(":")[0].strip("[]").lower().removesuffix(".")
    assert found.asked == Asked(Request(name, 443), b"")


@pytest.mark.parametrize(
    "target",
    [
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:99999999",
        ":443",
        "user@example.com:443",
        "[::1:443",
        "[fe80::1%25eth0]:443",
        "::1:443",
        "http://example.com:443",
        "/",
        "ex%61mple.com:443",
    ],
)
def test_a_target_that_is_not_host_and_port_is_answered_400(target: str) -> None:
    found = to_proxy(f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert found.error is not None
    assert status(found.output) == 400
    assert found.error.encode() in found.output


@pytest.mark.parametrize("header", [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_body_of_connect_is_malformed(header: bytes) -> None:
    assert status(to_proxy(CONNECT + header + b"\r\nabc").output) == 400


def test_connect_with_a_length_of_0_is_served() -> None:
    found = to_proxy(CONNECT + b"Content-Length: 0\r\n\r\nfirst")
    assert found.asked == Asked(Request("example.com", 443), b"first")


def test_a_length_of_thousands_of_digits_is_answered_400() -> None:
    assert status(to_proxy(CONNECT + b"Content-Length: %s\r\n\r\n" % (b"1" * 5000)).output) == 400


def test_credentials_are_those_of_basic() -> None:
    found = to_proxy(CONNECT + BASIC + b"\r\n", wants_password=True)
    assert found.credentials == Credentials("alice", "se:cret")
    assert found.asked == Asked(Request("example.com", 443, "alice"), b"")


@pytest.mark.parametrize(
    "header", [b"", b"Proxy-Authorization: Bearer x\r\n", b"Proxy-Authorization: Basic %\r\n"]
)
def test_missing_credentials_are_empty_ones(header: bytes) -> None:
    found = to_proxy(CONNECT + header + b"\r\n", wants_password=True)
    assert found.credentials == Credentials("", "")


def test_credentials_that_no_one_wants_are_not_believed() -> None:
    assert to_proxy(CONNECT + BASIC + b"\r\n").asked == Asked(Request("example.com", 443), b"")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("denied", 403),
        ("forbidden", 403),
        ("unauthenticated", 407),
        ("refused", 502),
        ("name", 502),
        ("timeout", 504),
        ("no_answer", 504),
    ],
)
def test_each_failure_has_its_status_and_its_sentence(reason: str, expected: int) -> None:
    answer = HttpConnect(wants_password=True).refused(Refusal(reason, "no: because"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status(answer) == expected
    assert body == b"vsockproxy: no: because\n"
    assert b"Content-Length: %d" % len(body) in head
    assert (b"Proxy-Authenticate: Basic" in head) == (expected == 407)


# ---- absolute form ----


def test_a_request_in_absolute_form_goes_on_with_a_path_and_ends_the_connection() -> None:
    found = to_proxy(
        b"POST http://Example.com:8080/a?b=c HTTP/1.1\r\nHost: other\r\nX-One: 1\r\n"
        b"Connection: X-Two, keep-alive\r\nX-Two: 2\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n"
        b"TE: trailers\r\nUpgrade: h2c\r\nContent-Length: 3\r\n" + BASIC + b"\r\nabc"
    )
    assert found.asked == Asked(
        Request("example.com", 8080),
        b"POST /a?b=c HTTP/1.1\r\nHost: Example.com:8080\r\nX-One: 1\r\nContent-Length: 3\r\n"
        b"Connection: close\r\n\r\nabc",
    )


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://a.b", "/"),
        ("HTTP://a.b/", "/"),
        ("http://a.b?q", "/?q"),
        ("http://a.b//c", "//c"),
        ("http://a.b:/c", "/c"),
    ],
)
def test_the_port_of_http_is_80_and_an_empty_path_is_the_root(target: str, path: str) -> None:
    found = to_proxy(f"GET {target} HTTP/1.0\r\n\r\n".encode())
    assert found.asked is not None
    assert found.asked.request == Request("a.b", 80)
    assert found.asked.replay.startswith(f"GET {path} HTTP/1.0\r\n".encode())


def test_connection_cannot_drop_the_length_of_the_body() -> None:
    found = to_proxy(
        b"POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: Transfer-Encoding, Content-Length\r\n\r\n0\r\n\r\n"
    )
    assert found.asked is not None
    assert b"Transfer-Encoding: chunked" in found.asked.replay


@pytest.mark.parametrize("target", ["https://a.b/", "/", "a.b:80", "ftp://a.b/", "http://u@a.b/"])
def test_another_form_is_answered_400(target: str) -> None:
    assert status(to_proxy(f"GET {target} HTTP/1.1\r\nHost: a.b\r\n\r\n".encode()).output) == 400


def test_an_accepted_request_in_absolute_form_has_the_targets_answer_alone() -> None:
    reader = HttpConnect(wants_password=False)
    read(reader, [b"HEAD http://a.b/ HTTP/1.1\r\nHost: a.b\r\n\r\n"])
    assert reader.accepted(("127.0.0.1", 1)) == b""
    assert reader.refused(Refusal("denied", "no")).endswith(b"\r\n\r\n"), "HEAD has no body"


# ---- Host ----


@pytest.mark.parametrize(
    ("host", "request_"),
    [
        ("Example.com", Request("example.com", 80)),
        ("example.com:8080", Request("example.com", 8080)),
        ("[::1]:80", Request("::1", 80)),
        ("127.0.0.1", Request("127.0.0.1", 80)),
    ],
)
def test_a_host_is_asked_for_and_every_byte_is_replayed(host: str, request_: Request) -> None:
    data = f"POST / HTTP/1.1\r\nhOST:  {host} \r\nContent-Length: 3\r\n\r\nabcPOST".encode()
    found = to_host(data)
    assert found == Read(Asked(request_, data), None, b"", None)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nHost: \r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
        b"GET / HTTP/1.1\r\nHost: a, b\r\n",
        b"GET http://b/ HTTP/1.1\r\nHost: a\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n",
        b"GET /\r\n",
        b"\x16\x03\x01\r\n",
    ],
)
def test_a_request_without_one_host_is_answered_400(head: bytes) -> None:
    found = to_host(head + b"\r\n")
    assert found.error is not None
    assert status(found.output) == 400


@pytest.mark.parametrize("reader", [HttpHost(), HttpConnect(wants_password=False)])
def test_http2_without_tls_is_refused_with_a_sentence(
    reader: HttpHost | HttpConnect,
) -> None:
    found = read(reader, [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
    assert found.error == "HTTP/2 without TLS is not served: use HTTP/1.1"
    assert status(found.output) == 505


@pytest.mark.parametrize("reader", [to_proxy, to_host])
def test_a_malformed_head_is_quoted_in_part(reader: Callable[[bytes], Read]) -> None:
    """The sentence is logged: clients must not choose how much."""
    found = reader(b"GET / HTTP/1.1\r\nHost: " + bytes(16000) + b"\r\n\r\n")
    assert found.error is not None
    assert found.error.startswith("illegal header line")
    assert len(found.error) < 200
    assert len(found.output) < 500
