"""``include``: a configuration that goes on in other files, such as one for each guest.

Owns: which files are included, what may stand in one, and joining all of them to one `Document`
whose keys know their files.  Walks folders: a running daemon calls it in a thread.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from vsockproxy.config.document import Document, KeyPath, KeyProblem, Part, Plain
from vsockproxy.config.file import read_document
from vsockproxy.config.tables import read_tables
from vsockproxy.errors import ConfigError, Problem

MAX_FILES: Final = 10_000
TABLES: Final = ("forward", "route", "guests")
"""What an included file may hold."""

_INCLUDE: Final[KeyPath] = ("include",)
_WILDCARDS: Final = frozenset("*?[")


def read_documents(path: Path) -> Document:
    """Return the document in a file, joined with those that its ``include`` names.

    Raises:
      ConfigError: a file cannot be read, or is not TOML or YAML; with the problems of every such
        file.
    """
    main = read_document(path)
    patterns = main.tree.get("include")
    if not isinstance(patterns, list):
        return main
    joined = _Joined(main)
    seen = {path.absolute()}
    for pattern in filter(_is_text, patterns):  # `schema` reports the others
        is_named = not _WILDCARDS & set(str(pattern))
        for file in joined.found(path.absolute().parent, str(pattern)):
            if file not in seen and len(seen) <= MAX_FILES:
                seen.add(file)
                joined.read(file, is_named=is_named)
    if len(seen) > MAX_FILES:
        joined.note(f"more than {MAX_FILES} files are included: join some")
    return joined.document()


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that are meant, sorted by name; raises as `Path.iterdir`."""
    return sorted(one for one in folder.iterdir() if _matches(one.name, pattern))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


class _Joined:
    """The documents that are joined: the entries of each follow those of the one before it."""

    def __init__(self, main: Document) -> None:
        self._main = main
        self._tree: dict[str, Any] = {key: _copied(value) for key, value in main.tree.items()}
        self._parts: dict[KeyPath, Part] = {}
        self._problems = list(main.problems)
        self._broken: list[Problem] = []

    def document(self) -> Document:
        """Return the whole; raises `ConfigError` with the problems of the files without one."""
        if self._broken:
            raise ConfigError(self._main.source, tuple(self._broken))
        main = self._main
        return Document(main.source, self._tree, main.places, tuple(self._problems), self._parts)

    def note(self, message: str) -> None:
        """Add a problem of ``include``."""
        self._problems.append(KeyProblem(_INCLUDE, message))

    def found(self, folder: Path, pattern: str) -> list[Path]:
        """Return the files that a pattern matches, sorted by name; a file without wildcards."""
        parent, name = os.path.split(pattern)
        place = folder / parent
        if not name or _WILDCARDS & set(parent):
            self.note(f"{pattern!r} is not a pattern of files: {_LAST_PART}")
            return []
        if not _WILDCARDS & set(name):
            return [place / name]
        try:
            return matching(place, name)
        except FileNotFoundError:  # the folder may be made with its first file
            return []
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = getattr(error, "strerror", None) or str(error)
            self.note(f"{pattern!r}: cannot list {place}: {reason}; {_READABLE}")
            return []

    def read(self, file: Path, *, is_named: bool) -> None:
        """Add the entries of a file; ``is_named`` without wildcards, so that it must exist."""
        try:
            document = read_document(file)
        except ConfigError as error:
            if is_named or os.path.lexists(file):  # else removed since the folder was listed
                self._broken += [replace(one, source=error.source) for one in error.problems]
        else:
            self._add(document)

    def _add(self, document: Document) -> None:
        source, moved = document.source, dict[KeyPath, KeyPath]()
        for key, value in document.tree.items():
            if key not in TABLES:
                place = document.place_of((key,))
                message = f"cannot stand in an included file: move it to {self._main.source}"
                self._problems.append(KeyProblem((key,), message, place, source))
            else:
                self._add_table(document, key, value, moved)
        for problem in document.problems:
            path = problem.path[:2]
            path = (*moved.get(path, path), *problem.path[2:])
            place = problem.place or document.place_of(problem.path)
            self._problems.append(replace(problem, path=path, place=place, source=source))

    def _add_table(
        self, document: Document, key: str, value: Plain, moved: dict[KeyPath, KeyPath]
    ) -> None:
        """Add the entries of a table, and where each is now to ``moved``."""
        table = self._tree.setdefault(key, [] if key == "route" else {})
        if not isinstance(value, type(table)):
            _, problems = read_tables({key: value})
            for problem in problems:
                place = document.place_of(problem.path)
                self._problems.append(replace(problem, place=place, source=document.source))
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                self._place((key, len(table)), document, (key, index), moved)
                table.append(entry)
        elif isinstance(value, dict):
            for name, entry in value.items():
                if name in table:
                    self._note_clash((key, name), document)
                else:
                    self._place((key, name), document, (key, name), moved)
                    table[name] = entry

    def _place(
        self, path: KeyPath, document: Document, own: KeyPath, moved: dict[KeyPath, KeyPath]
    ) -> None:
        moved[own] = path
        self._parts[path] = Part(document, own)

    def _note_clash(self, path: KeyPath, document: Document) -> None:
        first = self._parts[path].document.source if path in self._parts else self._main.source
        message = f"{path[1]!r} is in {first} too: remove one, or choose another name"
        place = document.place_of(path)
        self._problems.append(KeyProblem(path, message, place, document.source))


_LAST_PART: Final = "wildcards are for its last part, as in conf.d/*.toml"
_READABLE: Final = "check that it is a folder that the daemon's user can read"


def _copied(value: Plain) -> Plain:
    """Return a value whose entries can be added to."""
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, list) else value


def _matches(name: str, pattern: str) -> bool:
    """Return whether a file is meant: as in a shell, a * matches no hidden file."""
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
