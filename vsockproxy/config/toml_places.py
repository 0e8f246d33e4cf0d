"""The place of each key in a TOML text, which tomllib does not tell.

Owns: `TomlPlaces`.  Expects a text that tomllib has read, so it finds tokens and reports nothing.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Final

from vsockproxy.config.document import KeyPath, Place

_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|(?P<comment>#[^\n]*)"
    r"|[\n\[\]{}=.,]"
    r"|[^\s\[\]{}=.,#\"']+",
    re.S,
)
_AFTER_VALUE: Final = frozenset(("\n", ",", "]", "}", ""))


class TomlPlaces(Mapping[KeyPath, Place]):
    """The places of a text's keys and list items; it is scanned at the first look-up."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _places(self) -> Mapping[KeyPath, Place]:
        return _Scan(self._text).places

    def __getitem__(self, path: KeyPath) -> Place:
        return self._places[path]

    def __iter__(self) -> Iterator[KeyPath]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Scan:
    """One pass over the tokens of a text; ``""`` is its end."""

    def __init__(self, text: str) -> None:
        self.places: dict[KeyPath, Place] = {}
        found = [match for match in _TOKEN.finditer(text) if not match["comment"]]
        self._tokens = [*((match[0], match.start()) for match in found), ("", len(text))]
        self._lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self._tables: dict[KeyPath, int] = {}  # how many [[headers]] each list has so far
        self._at = 0
        table: KeyPath = ()
        while self._next_after_newlines():
            if self._word == "[":
                table = self._header()
            else:
                self._entry(table)

    @property
    def _word(self) -> str:
        return self._tokens[self._at][0]

    def _next_after_newlines(self) -> str:
        while self._word == "\n":
            self._at += 1
        return self._word

    def _header(self) -> KeyPath:
        brackets = 2 if self._tokens[self._at + 1][0] == "[" else 1
        self._at += brackets
        path = self._keys((), is_list=brackets == 2)
        self._at += brackets
        return path

    def _entry(self, path: KeyPath) -> None:
        path = self._keys(path)
        self._at += 1  # the =
        self._value(path)

    def _keys(self, path: KeyPath, *, is_list: bool = False) -> KeyPath:
        """Return the path of a dotted key below another; with ``is_list`` of a list's new table."""
        while True:
            word, start = self._tokens[self._at]
            path = (*path, _key(word))
            self._note(path, start)
            self._at += 1
            is_last = self._word != "."
            if is_last and is_list:
                self._tables[path] = self._tables.get(path, 0) + 1
            if path in self._tables:
                path = (*path, self._tables[path] - 1)
                self._note(path, start)
            if is_last:
                return path
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        if self._word == "[":
            for index in self._items("]"):
                self._note((*path, index), self._tokens[self._at][1])
                self._value((*path, index))
        elif self._word == "{":
            for _ in self._items("}"):
                self._entry(path)
        else:
            while self._word not in _AFTER_VALUE:  # a float or a time has several
                self._at += 1

    def _items(self, end: str) -> Iterator[int]:
        """Yield the index of each item of a list or an inline table, for the caller to pass."""
        self._at += 1
        index = 0
        while self._next_after_newlines() != end:
            yield index
            index += 1
            if self._next_after_newlines() == ",":
                self._at += 1
        self._at += 1

    def _note(self, path: KeyPath, start: int) -> None:
        line = bisect_right(self._lines, start)
        self.places.setdefault(path, (line, start - self._lines[line - 1] + 1))


def _key(word: str) -> str:
    """Return a key without its quotes."""
    if word.startswith('"'):
        return str(tomllib.loads(f"key = {word}")["key"])
    return word.strip("'") if word.startswith("'") else word
