"""A configuration as a plain tree, with the place of each key in its file.

Owns: `Document`, `KeyProblem`, and how a key path is written.  Must not know any key's meaning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

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
    """A problem with a key; ``place`` is given only where it is not the key's own."""

    path: KeyPath
    message: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a configuration, the place of each key, and the problems of its text.

    Attributes:
      source: the file's name, for error messages.
      tree: tables, lists and plain values; keys are texts in every format.
      places: where each key stands; empty for TOML, whose parser gives no positions.
      problems: problems that did not stop the parser, such as a doubled key, whose second
        value is left out.
    """

    source: str
    tree: dict[str, Plain]
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    problems: tuple[KeyProblem, ...] = ()

    def error(self, problems: Iterable[KeyProblem]) -> ConfigError:
        """Return one error for all problems, in the order of their keys in the file."""
        ranks = {path: rank for rank, path in enumerate(key_paths(self.tree))}
        ranked = [(_nearest(one.path, ranks), self._located(one)) for one in problems]
        ranked.sort(key=lambda one: (one[1].line or 0, one[1].column or 0, one[0] or 0))
        return ConfigError(self.source, tuple(problem for _, problem in ranked))

    def _located(self, problem: KeyProblem) -> Problem:
        place = problem.place or _nearest(problem.path, self.places) or (None, None)
        return Problem(write_path(problem.path), problem.message, *place)


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


_Entry = TypeVar("_Entry")


def _nearest(path: KeyPath, table: Mapping[KeyPath, _Entry]) -> _Entry | None:
    """Return the entry of ``path``, or of the closest key around it where ``path`` is missing."""
    for size in range(len(path), 0, -1):
        if path[:size] in table:
            return table[path[:size]]
    return None
