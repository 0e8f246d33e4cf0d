"""The CONNECT/OK handshake: valid and invalid lines, in any chunking."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.dial.mux_line import (
    LINE_MAX,
    LineReader,
    MalformedLineError,
    connect_request,
    ok_reply,
    parse_reply,
    parse_request,
)

ports = st.integers(0, 0xFFFFFFFF)


def read_line(stream: bytes, sizes: list[int]) -> tuple[bytes, bytes]:
    """Read one line as `dial` does; ``sizes`` are the bytes that each peek sees."""
    reader, taken = LineReader(), 0
    for size in [*sizes, *[1] * len(stream)]:
        if reader.done or taken == len(stream):
            break
        taken += reader.feed(stream[taken : taken + min(size, reader.room)])
    return reader.line, stream[taken:]


def test_a_request_is_the_verb_and_the_port_in_one_line() -> None:
    assert connect_request(1234) == b"CONNECT 1234\n"


@given(ports)
def test_both_lines_round_trip_for_every_number(port: int) -> None:
    assert parse_request(connect_request(port)) == port
    assert parse_reply(ok_reply(port)) == port


@given(ports, st.binary(max_size=80), st.lists(st.integers(1, 40)))
def test_any_chunking_gives_the_line_and_leaves_the_rest(
    number: int, rest: bytes, sizes: list[int]
) -> None:
    line, left = read_line(ok_reply(number) + rest, sizes)
    assert parse_reply(line) == number
    assert left == rest


@given(st.binary(max_size=80), st.lists(st.integers(1, 40)))
def test_any_chunking_of_any_bytes_gives_the_same_answer(stream: bytes, sizes: list[int]) -> None:
    def outcome(sizes: list[int]) -> object:
        try:
            return read_line(stream, sizes)
        except MalformedLineError as error:
            return error.line

    assert outcome(sizes) == outcome([])


@pytest.mark.parametrize("parse", [parse_reply, parse_request])
@given(line=st.binary(max_size=80) | st.from_regex(rb"(OK|CONNECT) [0-9]{0,25}[ \r]*\n?"))
def test_any_bytes_are_a_number_or_malformed(parse: Callable[[bytes], int], line: bytes) -> None:
    with suppress(MalformedLineError):
        assert parse(line) == int(line.split()[1])


def test_a_line_of_exactly_the_cap_is_read() -> None:
    line = b"OK 1" + b" " * (LINE_MAX - 5) + b"\n"
    assert read_line(line, []) == (line, b"")
    assert parse_reply(line) == 1


@pytest.mark.parametrize("sizes", [[], [LINE_MAX], [31, 1], [100]])
def test_a_line_beyond_the_cap_is_malformed_and_quoted_up_to_the_cap(sizes: list[int]) -> None:
    with pytest.raises(MalformedLineError) as caught:
        read_line(b"x" * 100, sizes)
    assert caught.value.line == b"x" * LINE_MAX


def test_a_complete_reader_takes_no_more_bytes() -> None:
    reader = LineReader()
    assert reader.feed(b"OK 1\nSSH-2.0") == 5
    assert reader.feed(b"SSH-2.0") == 0
    assert reader.line == b"OK 1\n"


@pytest.mark.parametrize(
    "line", [b"connect 22\n", b"Connect 22 \r\n", b"CONNECT  22\n", b"CONNECT 0022\n"]
)
def test_requests_accepted_by_vmms_are_parsed(line: bytes) -> None:
    assert parse_request(line) == 22


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"CONNECT\n",
        b"CONNECT 22",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 22 23\n",
        b"CONNECT 2_2\n",
        b"GET / HTTP/1.1\r\n",
        "CONNECT ٢٢\n".encode(),
    ],
)
def test_an_invalid_request_is_malformed_with_its_bytes(line: bytes) -> None:
    with pytest.raises(MalformedLineError) as caught:
        parse_request(line)
    assert caught.value.line == line


@pytest.mark.parametrize(
    "line", [b"OK\n", b"OK x\n", b"NO 1\n", b"ok 1\n", b"OK 1", b" OK 1\n", b"OK 1\nX"]
)
def test_an_invalid_reply_is_malformed_with_its_bytes(line: bytes) -> None:
    with pytest.raises(MalformedLineError):
        parse_reply(line)
