"""A configuration in environment variables, for containers: one variable for each key.

Owns: the variables' names, which are the keys' paths in capitals (``[log] level`` is
``VSOCKPROXY_LOG_LEVEL``), and reading a text as the kind of value that a key takes.  The
names come from the models of `schema`; what the values mean is `config`'s, which reads the
same tree as from a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Final, TypeAlias, get_args, get_origin

from pydantic import BaseModel

from vsockproxy.config.document import Document, Finding, KeyPath, Plain, spell
from vsockproxy.config.duration import OFF
from vsockproxy.config.load import build_config
from vsockproxy.config.schema import FileTables
from vsockproxy.config.settings import Config
from vsockproxy.errors import ConfigError

PREFIX: Final = "VSOCKPROXY_"
FILE: Final = "VSOCKPROXY_CONFIG"
"""Names a file, and is no setting."""

ADMIN: Final = "VSOCKPROXY_ADMIN"
"""Names the socket of a running daemon, for those who ask it: no setting either."""

SOURCE: Final = "environment"

_Path: TypeAlias = tuple[str, ...]
_Kinds: TypeAlias = frozenset[type]

_NAME: Final = "<NAME>"
"""In a key's path, the second of its parts: a guest's or a route's own name."""

# Between routes, or the items of a list; a target can end in an option of its own.
_SEPARATOR: Final = re.compile(r"[,\n](?!\s*(?:to_host|handshake=none)\s*(?:[,\n]|$))")
# With a zero in front it is a file's mode.
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?")
# Kubernetes, and Docker's links, describe a service called vsockproxy, or vsockproxy-web, to
# every container: VSOCKPROXY_PORT=tcp://10.0.0.1:80 and these.
_OF_A_SERVICE: Final = re.compile(
    r"VSOCKPROXY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are meant for the configuration, known or not, sorted by name.

    An empty one is as good as none: a compose file cannot leave a variable out.
    """
    return {
        name: text
        for name, text in sorted(environ.items())
        if name.startswith(PREFIX)
        and name not in (FILE, ADMIN)
        and text.strip()
        and not _is_of_a_service(name, text)
    }


def known_settings(environ: Mapping[str, str]) -> list[str]:
    """The names of those `settings` that say something here."""
    return [name for name in settings(environ) if _find(name)]


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each of those `settings` that say nothing here."""
    return [f"{name}: {_unknown(name)}" for name in settings(environ) if not _find(name)]


def variables() -> list[str]:
    """Every variable that is a setting; ``<NAME>`` stands for a guest's or a route's name."""
    return [_variable(path) for path in _KEYS]


def environment_config(environ: Mapping[str, str]) -> Config:
    """The configuration in `settings`; raises `ConfigError`, which names the variables."""
    tables = _Tables()
    for name, text in settings(environ).items():
        tables.add(name, text)
    try:
        return build_config(tables.document())
    except ConfigError as error:
        names = tables.names()
        problems = (replace(one, path=names.get(one.path, one.path)) for one in error.problems)
        raise ConfigError(SOURCE, tuple(problems)) from error


class _Tables:
    """The tables that the variables give, and what is wrong with the variables as such."""

    def __init__(self) -> None:
        self._tables: dict[str, Any] = {}
        self._findings: list[Finding] = []

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
                self._note((*path, key), f"{key!r} stands twice")
            else:
                pairs[key] = value
        return pairs

    def document(self) -> Document:
        """The tree that a file would have given."""
        tree = {key: self._listed(key) for key in self._tables}
        tried = any(finding.path[0] == "forward" for finding in self._findings)
        if not (tree.get("forward") or "route" in tree or tried):
            self._note(("forward",), "has no route: write one, as in 8080=3:80")
        return Document(SOURCE, tree, findings=tuple(self._findings))

    def _listed(self, key: str) -> Any:
        """A table; as a list of tables, each with its name, where a file has a list."""
        if key not in _LISTS:
            return self._tables[key]
        return [{"name": name, **table} for name, table in self._tables[key].items()]

    def names(self) -> dict[str, str]:
        """The variable of each key path, as an error spells the path."""
        names = {spell(("forward", key)): _FORWARD for key in self._tables.get("forward", ())}
        for pattern in _KEYS:
            for name in self._tables.get(pattern[0], ()) if _NAME in pattern else [""]:
                path = _named(pattern, name)
                place = self._place(path)
                names[spell(place)] = _variable(path)
                if place[:-1]:
                    names.setdefault(spell(place[:-1]), f"{_variable(path[:-1])}_*")
        return names

    def _place(self, path: _Path) -> KeyPath:
        """Where a key stands in the tree: a list counts what the variables name."""
        if path[0] not in _LISTS:
            return path
        return (path[0], list(self._tables[path[0]]).index(path[1]), *path[2:])

    def _note(self, path: KeyPath, message: str) -> None:
        self._findings.append(Finding(path, message))


def _leaves(model: type[BaseModel], above: _Path = ()) -> Iterator[tuple[_Path, _Kinds]]:
    """Each key of a model and of those below it, and the types that its value can have."""
    for key, field in model.model_fields.items():
        path, kinds = (*above, key), frozenset(_types(field.annotation))
        inner = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if inner is None:
            yield path, kinds
        else:
            yield from _leaves(inner, (*path, _NAME) if kinds & {dict, list} else path)


def _types(annotation: object) -> Iterator[type]:
    """The types that an annotation speaks of, however deep."""
    for one in (annotation, get_origin(annotation)):
        if isinstance(one, type):
            yield one
    for inner in get_args(annotation):
        yield from _types(inner)


_KEYS: Final = dict(_leaves(FileTables))
_LISTS: Final = {
    path[0]
    for path in _KEYS
    if _NAME in path and list in _types(FileTables.model_fields[path[0]].annotation)
}


def _variable(path: _Path) -> str:
    return PREFIX + "_".join(part if part == _NAME else part.upper() for part in path)


_FORWARD: Final = _variable(("forward",))


def _named(pattern: _Path, name: str) -> _Path:
    return tuple(name if part == _NAME else part for part in pattern)


def _kinds(path: _Path) -> _Kinds:
    named = (path[0], _NAME, *path[2:])
    return _KEYS[named if named in _KEYS else path]


def _find(variable: str) -> _Path | None:
    """The key path of a variable; the longest key wins, so that a name can have underscores."""
    found = [path for pattern in _KEYS if (path := _match(variable, pattern))]
    return max(found, key=lambda path: len(path[-1]), default=None)


def _match(variable: str, pattern: _Path) -> _Path | None:
    start, mark, end = _variable(pattern).partition(_NAME)
    name = variable.removeprefix(start).removesuffix(end) if mark else ""
    if start + name + end != variable or (mark and not re.fullmatch(r"[A-Z0-9_]+", name)):
        return None
    return _named(pattern, name.lower())


def _scalar(text: str, kinds: _Kinds) -> Plain:
    """The value that a file would have; what does not fit stays a text, for the models to say."""
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    if kinds & {int, float} and (match := _NUMBER.fullmatch(text)):
        return float(text) if match[1] else int(text)
    return text


def _unknown(variable: str) -> str:
    # What all of them begin with would make them all alike.
    words = variable.removeprefix(PREFIX)
    close = get_close_matches(words, _candidates(words.split("_")), n=1)
    if close:
        return f"unknown variable: did you mean {PREFIX}{close[0]}?"
    return "unknown variable: the name is a key's path in capitals, as in VSOCKPROXY_LOG_LEVEL"


def _candidates(words: list[str]) -> set[str]:
    """Every variable, without the prefix, with each name that these words can have in them."""
    names = ["_".join(words[1:end]) for end in range(2, len(words))]
    return {
        _variable(_named(path, name)).removeprefix(PREFIX)
        for path in _KEYS
        for name in (names if _NAME in path else [""])
    }


def _is_of_a_service(name: str, text: str) -> bool:
    if name.endswith("_PORT") and "://" in text:
        return True
    return _OF_A_SERVICE.fullmatch(name) is not None
