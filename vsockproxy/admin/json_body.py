"""The JSON of the control API's answers, in printable ASCII: curl(1) shows it on any terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel
from pydantic_core import to_json

_is_plain: Final = re.compile(rb"[ -~]*").fullmatch
_NOT_PLAIN: Final = re.compile(r"[^ -~]")


def json_pieces(answer: BaseModel) -> Iterator[bytes]:
    """Yield an answer as JSON, with a piece for each item of its lists: there can be thousands."""
    before = b"{"
    for name, value in answer:
        yield before + json_bytes(name) + b":"
        if isinstance(value, Iterator):
            yield from _json_list(value)
        else:
            yield json_bytes(value)
        before = b","
    yield b"}"


def _json_list(items: Iterator[object]) -> Iterator[bytes]:
    before = b"["
    for item in items:
        yield before + json_bytes(item)
        before = b","
    yield b"[]" if before == b"[" else b"]"


def json_bytes(value: object) -> bytes:
    """Return a value as JSON in printable ASCII."""
    content = to_json(value, inf_nan_mode="null")
    return content if _is_plain(content) else _NOT_PLAIN.sub(_escaped, content.decode()).encode()


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
