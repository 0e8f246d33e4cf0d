"""A configuration in environment variables, for containers: one variable for each key.

Owns: the variables' names, which are the keys' paths in capitals (``[log] level`` is
``VSOCKPROXY_LOG_LEVEL``), and the reading of a text as a plain value.  The names come from the
models of `schema`; `load` reads the values as those of a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Final, TypeAlias, get_args, get_origin

from vsockproxy.config.document import Document, KeyPath, KeyProblem, Plain, write_path
from vsockproxy.config.load import build_config
from vsockproxy.config.schema import TABLES
from vsockproxy.config.settings import Config
from vsockproxy.config.source import PREFIX, settings
from vsockproxy.config.value import OFF
from vsockproxy.errors import ConfigError

SOURCE: Final = "environment"

_Path: TypeAlias = tuple[str, ...]
_Kinds: TypeAlias = frozenset[type]

_NAME: Final = "<NAME>"
"""In a key's path, the place of a guest's or a route's name."""

# Between routes, or the items of a list; but a comma also begins an option of a target.
_SEPARATOR: Final = re.compile(r"[,\n](?!\s*(?:to_host|handshake=none)\s*(?:[,\n]|$))")
# A number with a leading zero is a file's mode, which is a text.
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")


def known_settings(environ: Mapping[str, str]) -> list[str]:
    """Return the names of those `settings` that are a key's variable."""
    return [name for name in settings(environ) if _find(name)]


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each of those `settings` that are not a key's variable."""
    return [f"{name}: {_unknown(name)}" for name in settings(environ) if not _find(name)]


def variables() -> list[str]:
    """Return every key's variable; ``<NAME>`` stands for a guest's or a route's name."""
    return [_variable(path) for path in _KEYS]


def environment_config(environ: Mapping[str, str]) -> Config:
    """Return the configuration in `settings`.

    Raises:
      ConfigError: with all problems; each names its variable instead of a key path.
    """
    tables = _read(environ)
    try:
        return build_config(tables.document())
    except ConfigError as error:
        names = tables.names()
        problems = (replace(one, path=names.get(one.path, one.path)) for one in error.problems)
        raise ConfigError(SOURCE, tuple(problems)) from error


def environment_document(environ: Mapping[str, str]) -> Document:
    """Return `settings` in the form of a file; its problems have key paths."""
    return _read(environ).document()


def _read(environ: Mapping[str, str]) -> _Tables:
    tables = _Tables()
    for name, text in settings(environ).items():
        tables.add(name, text)
    return tables


class _Tables:
    """The tables that the variables describe, and the problems of the variables themselves."""

    def __init__(self) -> None:
        self._tables: dict[str, Any] = {}
        self._problems: list[KeyProblem] = []

    def add(self, variable: str, text: str) -> None:
        path = _find(variable)
        if path is None:
            self._note((variable,), _unknown(variable))
            return
        *above, last = path
        table = self._tables
        for key in above:
            table = table.setdefault(key, {})
        table[last] = self._value(path, text)

    def _value(self, path: _Path, text: str) -> Plain:
        kinds = _kinds(path)
        items = [item.strip() for item in _SEPARATOR.split(text) if item.strip()]
        if dict in kinds:
            return self._pairs(path, items)
        if kinds & {list, tuple} and items != [OFF]:
            return list(items)
        return _scalar(text.strip(), kinds)

    def _pairs(self, path: _Path, items: list[str]) -> Plain:
        pairs: dict[str, Plain] = {}
        for item in items:
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals:
                self._note(path, f"{item!r} has no target: write LISTEN=TARGET, as in 8080=3:80")
            elif key in pairs:
                self._note((*path, key), f"{key!r} is defined twice: remove one")
            else:
                pairs[key] = value
        return pairs

    def document(self) -> Document:
        """Return the variables in the form of a file."""
        tree = {key: self._listed(key) for key in self._tables}
        tried = any(problem.path[0] == "forward" for problem in self._problems)
        if not (tree.get("forward") or "route" in tree or tried):
            self._note(("forward",), "has no route: write one, as in 8080=3:80")
        return Document(SOURCE, tree, problems=tuple(self._problems))

    def _listed(self, key: str) -> Any:
        """Return a table; or a list of tables, each with its name, where a file has a list."""
        if key not in _LISTS:
            return self._tables[key]
        return [{"name": name, **table} for name, table in self._tables[key].items()]

    def names(self) -> dict[str, str]:
        """Return the variable of each key path, by the path as an error writes it."""
        names = {write_path(("forward", key)): _FORWARD for key in self._tables.get("forward", ())}
        for pattern in _KEYS:
            for name in self._tables.get(pattern[0], ()) if _NAME in pattern else [""]:
                path = _named(pattern, name)
                place = self._place(path)
                names[write_path(place)] = _variable(path)
                if place[:-1]:
                    names.setdefault(write_path(place[:-1]), f"{_variable(path[:-1])}_*")
        return names

    def _place(self, path: _Path) -> KeyPath:
        """Return a key's path in the tree, where tables of a list have an index."""
        if path[0] not in _LISTS:
            return path
        return (path[0], list(self._tables[path[0]]).index(path[1]), *path[2:])

    def _note(self, path: KeyPath, message: str) -> None:
        self._problems.append(KeyProblem(path, message))


def _types(annotation: object) -> Iterator[type]:
    """Yield the types in an annotation, however deep."""
    for one in (annotation, get_origin(annotation)):
        if isinstance(one, type):
            yield one
    for inner in get_args(annotation):
        yield from _types(inner)


_LISTS: Final = ("route",)
"""Tables that are a list in a file, and named by their ``name`` in variables."""

_NAMED: Final = (*_LISTS, "guests")
_KEYS: Final[dict[_Path, _Kinds]] = {
    ("forward",): frozenset({dict}),
    **{
        (table, _NAME, key) if table in _NAMED else (table, key): frozenset(
            _types(field.annotation)
        )
        for table, model in TABLES.items()
        for key, field in model.model_fields.items()
    },
}
"""The path of each key, and the types that its value can have."""


def _variable(path: _Path) -> str:
    return PREFIX + "_".join(part if part == _NAME else part.upper() for part in path)


_FORWARD: Final = _variable(("forward",))


def _named(pattern: _Path, name: str) -> _Path:
    return tuple(name if part == _NAME else part for part in pattern)


def _kinds(path: _Path) -> _Kinds:
    named = (path[0], _NAME, *path[2:])
    return _KEYS[named if named in _KEYS else path]


def _find(variable: str) -> _Path | None:
    """Return the key path of a variable; the longest key wins: names can have underscores."""
    found = [path for pattern in _KEYS if (path := _match(variable, pattern))]
    return max(found, key=lambda path: len(path[-1]), default=None)


def _match(variable: str, pattern: _Path) -> _Path | None:
    start, mark, end = _variable(pattern).partition(_NAME)
    name = variable.removeprefix(start).removesuffix(end) if mark else ""
    if start + name + end != variable or (mark and not re.fullmatch(r"[A-Z0-9_]+", name)):
        return None
    return _named(pattern, name.lower())


def _scalar(text: str, kinds: _Kinds) -> Plain:
    """Return a text as the plain value of a file; the models report a text that does not fit."""
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    if kinds & {int, float} and (match := _NUMBER.fullmatch(text)):
        return float(text) if match[1] else int(text)
    return text


def _unknown(variable: str) -> str:
    # The common prefix would make all variables similar.
    words = variable.removeprefix(PREFIX)
    close = get_close_matches(words, _candidates(words.split("_")), n=1)
    if close:
        return f"unknown variable: did you mean {PREFIX}{close[0]}?"
    return "unknown variable: the name is a key's path in capitals, as in VSOCKPROXY_LOG_LEVEL"


def _candidates(words: list[str]) -> set[str]:
    """Return every variable without the prefix, with each name that the words can contain."""
    names = ["_".join(words[1:end]) for end in range(2, len(words))]
    return {
        _variable(_named(path, name)).removeprefix(PREFIX)
        for path in _KEYS
        for name in (names if _NAME in path else [""])
    }
