"""The lines of a VMM's socket for many guests."""

from __future__ import annotations

import pytest

from tests.request.reading import read
from vsockproxy.config.request import Request
from vsockproxy.request.mux import Mux
from vsockproxy.request.reader import Asked, Refusal


def test_a_line_asks_for_a_guest_and_a_port() -> None:
    reader = Mux(None)
    assert read(reader, [b"CONNECT Web-1 80\nhello"]).asked == Asked(Request("web-1", 80), b"hello")
    assert reader.accepted("") == b"OK 80\n"
    assert reader.refused(Refusal("denied", "no")) == b""


@pytest.mark.parametrize("line", [b"CONNECT 1024\n", b"connect  1024 \r\n"])
def test_a_line_for_one_guest_asks_for_a_port(line: bytes) -> None:
    assert read(Mux("web"), [line]).asked == Asked(Request("web", 1024), b"")


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT 3 80\n",  # a CID is no guest
        b"CONNECT ../v 80\n",
        b"CONNECT web 80 90\n",
        b"CONNECT web 4294967295\n",
        b"CONNECT web -1\n",
        b"CONNECT 80\n",
        b"CONNECT w\xffb 80\n",
        b"\n",
        b"x" * 256,
    ],
)
def test_another_line_is_malformed(line: bytes) -> None:
    found = read(Mux(None), [line])
    assert found.error is not None
    assert found.output == b""


def test_a_guest_in_the_line_is_malformed_where_the_route_has_one() -> None:
    assert read(Mux("web"), [b"CONNECT db 80\n"]).error is not None
