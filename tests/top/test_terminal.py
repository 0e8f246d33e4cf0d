"""Tests of the decoding of terminal bytes to keys."""

import pytest

from vsockproxy.top.terminal import keys


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1bOB", ["up", "down"]),
        (b"\x1b[5~\x1b[6~", ["page up", "page down"]),
        (b"\x1b", ["escape"]),
        (b"\t", ["tab"]),
        (b"ab\x7f\r", ["a", "b", "backspace", "enter"]),
        ("é€".encode(), ["é", "€"]),
        (b"\x1b[1;5Cx", ["x"]),
        (b"\xff\x00", ["\N{REPLACEMENT CHARACTER}"]),
    ],
)
def test_terminal_bytes_are_decoded_to_keys(data: bytes, names: list[str]) -> None:
    assert list(keys(data)) == names
