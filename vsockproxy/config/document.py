"""A configuration as a plain tree, with the place of each key in its file.

Owns: `Document`, `KeyProblem`, and how a key path is written.  Must not know any key's meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from vsockproxy.errors import ConfigError, Problem

Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | int | float | bool"
KeyPath: TypeAlias = tuple[str | int, ...]
Place: TypeAlias = tuple[int, int]
"""Line and column, from 1."""

MAX_DEPTH: Final = 8  # the deepest key of the models is at 3
TOO_DEEP: Final = f"is nested more than {MAX_DEPTH} levels deep: no key is"

_BARE_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """A problem with a key; ``place`` and ``source`` are given where they are not the key's own."""

    path: KeyPath
    message: str
    place: Place | None = None
    source: str = ""


class Part(NamedTuple):
    """Where a key of an included file stands: the file, and the key's path in it."""

    document: Document
    path: KeyPath


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a configuration, the place of each key, and the problems of its text.

    Attributes:
      source: the file's name, for error messages.
      tree: tables, lists and plain values; keys are texts in every format.
      places: where each key stands; empty where there is no text.
      problems: problems that did not stop the parser, such as a doubled key, whose second
        value is left out.
      parts: the entries that come from included files, by their paths in ``tree``.
    """

    source: str
    tree: dict[str, Plain]
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    problems: tuple[KeyProblem, ...] = ()
    parts: Mapping[KeyPath, Part] = field(default_factory=dict)

    def error(self, problems: Iterable[KeyProblem]) -> ConfigError:
        """Return one error for all problems, in the order of the files and of the keys in each."""
        ranks = {path: rank for rank, path in enumerate(key_paths(self.tree))}
        files = dict.fromkeys(["", *(part.document.source for part in self.parts.values())])
        order = list(files)

        def rank(one: tuple[int, Problem]) -> tuple[int, int, int, int]:
            rank, problem = one
            file = order.index(problem.source) if problem.source in files else len(order)
            return file, problem.line or 0, problem.column or 0, rank

        ranked = [(_nearest(one.path, ranks) or 0, self._located(one)) for one in problems]
        return ConfigError(self.source, tuple(problem for _, problem in sorted(ranked, key=rank)))

    def source_of(self, path: KeyPath) -> str:
        """Return the name of the file in which a key stands."""
        part = _nearest(path, self.parts)
        return part.document.source if part else self.source

    def place_of(self, path: KeyPath) -> Place | None:
        """Return the place of a key, or of the closest key around it."""
        place: Place | None = _nearest(path, self.places)
        return place

    def _located(self, problem: KeyProblem) -> Problem:
        document, path, source = self, problem.path, problem.source
        key = _nearest_key(path, self.parts)
        if key is not None and not source:
            document, start = self.parts[key]
            path, source = (*start, *path[len(key) :]), document.source
        line, column = problem.place or document.place_of(path) or (None, None)
        return Problem(write_path(path), problem.message, line, column, source)


def write_path(path: KeyPath) -> str:
    """Return a key path as an operator writes it: ``route[2].listen``, ``forward."8080"``.

    Lists count from 0, as in jq and Kubernetes.
    """
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if _BARE_KEY.fullmatch(key) else _quoted(key))
    return text


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=not key.isprintable())


def key_paths(tree: Plain, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield every key path of a tree, in its order, at most one level below `MAX_DEPTH`."""
    if path:
        yield path
    if len(path) > MAX_DEPTH:
        return
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from key_paths(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from key_paths(value, (*path, index))


def _nearest(path: KeyPath, table: Mapping[KeyPath, Any]) -> Any:
    """Return the entry of ``path``, or of the closest key around it where ``path`` is missing."""
    key = _nearest_key(path, table)
    return None if key is None else table[key]


def _nearest_key(path: KeyPath, table: Mapping[KeyPath, object]) -> KeyPath | None:
    return next((path[:size] for size in range(len(path), 0, -1) if path[:size] in table), None)
