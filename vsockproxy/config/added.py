"""Routes and guests that are added to a configuration while it runs, and no file has.

Owns: `Added`, and what it means together with the files: they are read as entries of a file are,
by the same checks.  A file wins a clash of names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

from vsockproxy.config.document import Document, KeyPath, Part, Plain
from vsockproxy.config.guest import KnownGuests
from vsockproxy.config.load import build_onto
from vsockproxy.config.settings import Config
from vsockproxy.config.text import text_error

Kind = Literal["route", "guest"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
Table = Mapping[str, Plain]

_SOURCE: Final = "added at run time"


@dataclass(frozen=True, slots=True)
class Added:
    """The tables of the added routes and guests, by their names."""

    routes: Mapping[str, Table] = field(default_factory=dict)
    guests: Mapping[str, Table] = field(default_factory=dict)

    def of(self, kind: Kind) -> Mapping[str, Table]:
        """Return the tables of a kind."""
        return self.routes if kind == "route" else self.guests

    def with_(self, kind: Kind, name: str, table: Table | None) -> Added:
        """Return a copy with a table; None removes it."""
        tables = {**self.of(kind), name: table or {}}
        if table is None:
            del tables[name]
        return replace(self, routes=tables) if kind == "route" else replace(self, guests=tables)


def names_of(config: Config, kind: Kind) -> set[str]:
    """Return the names of the routes or guests of a configuration."""
    return {one.name for one in (config.routes if kind == "route" else config.guests)}


def without_clashes(base: Config, added: Added) -> Added:
    """Return what is left of ``added`` beside the files' configuration: a file wins."""
    routes, guests = names_of(base, "route"), KnownGuests(base.guests)
    return Added(
        {name: table for name, table in added.routes.items() if name not in routes},
        {name: table for name, table in added.guests.items() if not is_taken(guests, name)},
    )


def is_taken(guests: KnownGuests, name: str) -> bool:
    """Return whether files have a guest of a name, or a pattern for it that routes may use."""
    patterns = {pattern.name for pattern in guests.patterns}
    return name in patterns or guests.find(name) is not None


def with_added(base: Config, added: Added) -> Config:
    """Return the files' configuration with the added routes and guests.

    Raises:
      ConfigError: with all problems of what was added; each names its route or guest.
    """
    if not (added.routes or added.guests):
        return base
    routes: list[Plain] = [{**table, "name": name} for name, table in added.routes.items()]
    guests: dict[str, Plain] = {name: dict(table) for name, table in added.guests.items()}
    parts: dict[KeyPath, Part] = {
        ("route", index): Part(Document(f"route {name}", {}), ())
        for index, name in enumerate(added.routes)
    }
    parts |= {("guests", name): Part(Document(f"guest {name}", {}), ()) for name in added.guests}
    tree: dict[str, Plain] = {
        "defaults": dict(base.written.defaults),
        "route": routes,
        "guests": guests,
    }
    config = build_onto(base, Document(_SOURCE, tree, parts=parts))
    if spread := names_of(config, "route") - names_of(base, "route") - added.routes.keys():
        name = min(spread).rpartition("-")[0]
        sentence = "a range of ports is several routes: add a route for each port"
        raise text_error(f"route {name}", sentence)
    return config


def changed(base: Config, present: Config, added: Added, kind: Kind, name: str) -> Config:
    """Return `with_added`, made from the ``present`` one, where only one entry is different.

    The other routes are the same objects.  A guest that others may depend on builds all again.
    """
    table = added.of(kind).get(name)
    if kind == "guest" and (
        name in names_of(present, kind) or any(guest.is_pattern for guest in present.guests)
    ):
        return with_added(base, added)
    rest = present
    if kind == "route":
        rest = replace(present, routes=tuple(one for one in present.routes if one.name != name))
    return rest if table is None else with_added(rest, Added().with_(kind, name, table))


def file_text(kind: Kind, name: str, table: Table, suffix: str) -> str:
    """Return an entry as the text of an included file, TOML or, as JSON, YAML."""
    entry: dict[str, Plain] = dict(table)
    tree: Plain = (
        {"route": [{**entry, "name": name}]} if kind == "route" else {"guests": {name: entry}}
    )
    if suffix != ".toml":
        return f"{_in_line(tree, ': ')}\n"
    assert isinstance(tree, dict)
    return "".join(f"{key} = {_in_line(value, ' = ')}\n" for key, value in tree.items())


def _in_line(value: Plain, equals: str) -> str:
    """Return a value in one line, as TOML and JSON both write it."""
    match value:
        case dict():
            pairs = (f"{_quoted(key)}{equals}{_in_line(one, equals)}" for key, one in value.items())
            return f"{{{', '.join(pairs)}}}"
        case list():
            return f"[{', '.join(_in_line(one, equals) for one in value)}]"
        case str():
            return _quoted(value)
        case _:
            return json.dumps(value)


def _quoted(text: str) -> str:
    """Return a text in quotes; TOML does not allow DEL as it is, and JSON's surrogates never."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
