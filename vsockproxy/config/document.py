"""A configuration file's bytes, as a plain tree that knows where each key stands.

Owns: reading the file within bounds, TOML (tomllib) and YAML 1.2 (ruamel.yaml), and the
spelling of a key path.  Must not know what any key means: that is `config`'s.

YAML is read as nodes and turned into values here, so that a doubled key is seen before
it hides its twin, each key keeps its line, and no tag can make an object.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from vsockproxy.errors import ConfigError, Problem

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Plain: TypeAlias = "dict[str, Plain] | list[Plain] | str | int | float | bool"
KeyPath: TypeAlias = tuple[str | int, ...]
Place: TypeAlias = tuple[int, int]
"""Line and column, from 1."""

MAX_BYTES: Final = 1 << 20  # a thousand routes in the long form are 100 KiB
MAX_DEPTH: Final = 8  # the deepest key of the model is at 3
_MAX_DOTS: Final = 1000

_BARE_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_TOML_PLACE: Final = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.S)
_TOML_NAME: Final = re.compile(r"Cannot (declare|mutate immutable namespace) \((.*)\)(?: twice)?")
_TOML_KEY: Final = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_.-])+)\s*=""")
# A %YAML 1.1 line would bring back what this module keeps out: 3:22 as 202, `on` as true.
_DIRECTIVE: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*%(?!YAML 1\.2\s)")
_YAML_TAG: Final = "tag:yaml.org,2002:"
_NUMBERS: Final = ("int", "float", "bool")
_TEXTS: Final = ("str", "timestamp", "merge", "value")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong at a key; ``place`` only where it is not the key's own."""

    path: KeyPath
    message: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, where it says it, and what is wrong with it as a text.

    Attributes:
      source: the file's name, for people.
      tree: tables, lists and plain values; keys are text, whatever the format made of them.
      places: where each key stands; empty for TOML, whose reader keeps no positions.
      findings: what could be read past, such as a doubled key; its value is left out.
    """

    source: str
    tree: dict[str, Plain]
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def error(self, findings: Iterable[Finding]) -> ConfigError:
        """One error for all findings, each with its place, in the file's order."""
        ranks = {path: rank for rank, path in enumerate(_paths(self.tree))}
        found = [(_nearest(finding.path, ranks), self._problem(finding)) for finding in findings]
        found.sort(key=lambda one: (one[1].line or 0, one[1].column or 0, one[0] or 0))
        return ConfigError(self.source, tuple(problem for _, problem in found))

    def _problem(self, finding: Finding) -> Problem:
        place = finding.place or _nearest(finding.path, self.places) or (None, None)
        return Problem(spell(finding.path), finding.message, *place)


def spell(path: KeyPath) -> str:
    """A key path as an operator writes it: ``route[2].listen``, ``forward."8080"``.

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


def read_document(path: Path) -> Document:
    """The document in a file, at most `MAX_BYTES` long; the suffix says the format.

    Raises `ConfigError` for a file that cannot be read, or is no TOML or YAML.
    """
    source = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _wrong(source, "is a directory: name the file in it")
        if not stat.S_ISREG(status.st_mode):
            raise _wrong(source, "is not a regular file")  # a FIFO would block for ever
        if path.suffix not in _PARSERS:
            raise _wrong(
                source, f"ends in {path.suffix!r}: a configuration file ends in {_SUFFIXES}"
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = _UNREADABLE.get(type(error), error.strerror or str(error))
        raise _wrong(source, reason) from error
    except ValueError as error:  # a NUL in the name
        raise _wrong(repr(source)[1:-1], "is not the name of a file") from error
    return parse_document(data, source, path.suffix)


def parse_document(data: bytes, source: str, suffix: str) -> Document:
    """The document in ``data``, in the format of ``suffix`` (``.toml``, ``.yaml``, ``.yml``).

    Raises `ConfigError`.
    """
    if len(data) > MAX_BYTES:
        raise _wrong(source, f"is larger than {MAX_BYTES >> 20} MiB: is this the right file?")
    if not data:
        raise _wrong(source, 'is empty: write at least one route, as in forward."8080" = "3:80"')
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        here = data[: error.start].decode("utf-8", "replace") + "?"
        raise _wrong(
            source,
            f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8",
            *_end_of(here),
        ) from error
    document = _PARSERS[suffix](text, source)
    if deep := next((path for path in _paths(document.tree) if len(path) > MAX_DEPTH), None):
        raise document.error([Finding(deep[:MAX_DEPTH], _TOO_DEEP)])
    return document


def _parse_toml(text: str, source: str) -> Document:
    # tomllib takes the square of a dotted key's parts: half a million would be for ever.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MAX_DOTS and not line.lstrip().startswith("#"):
            raise _wrong(source, f"more than {_MAX_DOTS} dots are on this line", number, 1)
    try:
        return Document(source, _plain_table(tomllib.loads(text)))
    except RecursionError as error:
        raise _wrong(source, _TOO_DEEP) from error
    except tomllib.TOMLDecodeError as error:
        # Python 3.14 has the place in attributes; its text says it still.
        match = _TOML_PLACE.fullmatch(str(error))
        reason = match[1] if match else str(error)
        place = (int(match[2]), int(match[3])) if match and match[2] else _end_of(text)
        raise _wrong(source, _toml_words(reason, text.split("\n")[place[0] - 1]), *place) from error
    except ValueError as error:  # of int()
        raise _wrong(source, "a number in it has too many digits") from error


def _toml_words(reason: str, line: str) -> str:
    if match := _TOML_NAME.fullmatch(reason):
        name = spell(tuple(re.findall(r"'([^']*)'", match[2])))
        what = f"the table [{name}]" if match[1] == "declare" else f"the key {name}"
        return f"{what} stands twice in the file"
    if reason == "Cannot overwrite a value":
        key = _TOML_KEY.match(line)  # none on the last line of a value that has several
        what = f"the key {key[1]}, or a part of it," if key else "this key, or a part of it,"
        return f"{what} stands twice in the file"
    return _TOML_WORDS.get(reason) or f"not valid TOML: {reason[:1].lower()}{reason[1:]}"


_TOML_WORDS: Final = {
    "Expected '=' after a key in a key/value pair": (
        'no = after the key: an address as a key stands in quotes, as in "127.0.0.1:8080" = "3:80"'
    ),
    "Expected newline or end of document after a statement": (
        'the line goes on after its value: an address stands in quotes, as in 8080 = "3:80"'
    ),
    "Illegal character '\\n'": "the text has no closing quote",
    'Expected "\'"': "the text has no closing quote",
    "Invalid value": 'no value that can be read: a text stands in quotes, as in "web:80"',
}
"""What operators get wrong most, for what tomllib says of it."""


def _plain_table(value: dict[str, Any]) -> dict[str, Plain]:
    return {key: _plain(one) for key, one in value.items()}


def _plain(value: Any) -> Plain:
    if isinstance(value, dict):
        return _plain_table(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str | int | float):
        return value
    return str(value)  # a date or a time, which no key wants


def _parse_yaml(text: str, source: str) -> Document:
    # Half a tenth of a second to import, and a TOML file or `forward` needs none of it.
    from ruamel.yaml import YAML  # noqa: PLC0415
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415
    from ruamel.yaml.reader import ReaderError  # noqa: PLC0415

    if match := _DIRECTIVE.match(text):
        raise _wrong(source, "leave the % line out: this is read as YAML 1.2", *_end_of(match[0]))
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except RecursionError as error:
        raise _wrong(source, _TOO_DEEP) from error
    except ReaderError as error:
        what = f"control character 0x{ord(text[error.position]):02x}: take it out"
        raise _wrong(source, what, *_end_of(text[: error.position + 1])) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise _wrong(source, _yaml_words(error.problem or error.context or ""), *place) from error
    except (YAMLError, ValueError) as error:  # ValueError: "\U00110000" is no character
        raise _wrong(source, f"not valid YAML: {error}") from error
    return _YamlTree(yaml).document(source, root)


def _yaml_words(reason: str) -> str:
    if "'\\t'" in reason:
        return "a tab stands where YAML wants spaces: indent with spaces"
    if "another document" in reason:
        return "a second document (---) begins here: write one only"
    if "undefined alias" in reason:
        return "* begins an alias, which is not allowed here: quote the text"
    if "mapping values" in reason or "<block end>" in reason:
        return "not valid YAML here: check the indentation, and quote a text that has [ or : in it"
    return f"not valid YAML: {reason}"


class _UnreadError(Exception):
    """A node that has no value here, and why."""


class _YamlTree:
    """Turns the nodes of one YAML document into values, and notes what it will not read."""

    def __init__(self, yaml: YAML) -> None:
        self._yaml = yaml
        self._places: dict[KeyPath, Place] = {}
        self._findings: list[Finding] = []
        self._readers: dict[str, Callable[[Any, KeyPath], Plain]] = {
            "map": self._table,
            "seq": self._list,
            **dict.fromkeys(_NUMBERS, self._number),
            **dict.fromkeys(_TEXTS, self._text),
        }

    def document(self, source: str, root: Node | None) -> Document:
        tree = {} if root is None else self._value(root, ())
        if not isinstance(tree, dict):
            if not self._findings:
                self._note(
                    root, (), "is no table: write `forward:`, and below it, indented, `8080: 3:80`"
                )
            tree = {}
        return Document(source, tree, self._places, tuple(self._findings))

    def _value(self, node: Node, path: KeyPath) -> Plain | None:
        """The value of a node; None, with a finding, where it has none."""
        try:
            return self._read(node, path)
        except _UnreadError as reason:
            self._findings.append(Finding(path, str(reason)))
            return None

    def _read(self, node: Node, path: KeyPath) -> Plain:
        # An anchored value could stand in many places; nothing here is worth a bomb.
        if node.anchor:
            raise _UnreadError("anchors (&) and aliases (*) are not read: write the value out")
        if len(path) > MAX_DEPTH:
            raise _UnreadError(_TOO_DEEP)
        kind = str(node.tag).removeprefix(_YAML_TAG)
        if kind == "null":
            raise _UnreadError("has no value: give it one, or leave the key out")
        reader = self._readers.get(kind)
        if reader is None or isinstance(node.value, str) == (kind in ("map", "seq")):
            raise _UnreadError(f"the tag {kind!r} is not read: leave it out")
        return reader(node, path)

    def _table(self, node: MappingNode, path: KeyPath) -> Plain:
        table: dict[str, Plain] = {}
        for key, node_of_value in node.value:
            if not isinstance(key.value, str):
                self._note(key, path, "a table or a list cannot be a key")
                continue
            here = (*path, key.value)
            if here in self._places:
                line = self._places[here][0]
                self._note(key, here, f"stands twice: it is on line {line} already")
                continue
            self._places[here] = _place(key)
            value = self._value(node_of_value, here)
            if value is not None:
                table[key.value] = value
        return table

    def _list(self, node: SequenceNode, path: KeyPath) -> Plain:
        items: list[Plain] = []
        for index, item in enumerate(node.value):
            here = (*path, index)
            self._places[here] = _place(item)
            value = self._value(item, here)
            items.append({} if value is None else value)  # the others keep their index
        return items

    def _number(self, node: ScalarNode, _: KeyPath) -> Plain:
        try:
            value: Plain = self._yaml.constructor.construct_object(node)
        except (ValueError, LookupError) as error:  # `!!int` and `!!bool` before anything
            raise _UnreadError("is no number that can be read") from error
        return value

    def _text(self, node: ScalarNode, _: KeyPath) -> Plain:
        return str(node.value)

    def _note(self, node: Node | None, path: KeyPath, message: str) -> None:
        self._findings.append(Finding(path, message, None if node is None else _place(node)))


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _paths(tree: Plain, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path of a tree, in its order, at most one deeper than `MAX_DEPTH`."""
    if path:
        yield path
    if len(path) > MAX_DEPTH:
        return
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _paths(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _paths(value, (*path, index))


_Entry = TypeVar("_Entry")


def _nearest(path: KeyPath, table: Mapping[KeyPath, _Entry]) -> _Entry | None:
    """The entry of ``path``, or of the closest key around it (for one that is missing)."""
    for size in range(len(path), 0, -1):
        if path[:size] in table:
            return table[path[:size]]
    return None


def _end_of(text: str) -> Place:
    """The place of the last character of ``text``."""
    return text.count("\n") + 1, max(len(text) - text.rfind("\n") - 1, 1)


def _wrong(
    source: str, message: str, line: int | None = None, column: int | None = None
) -> ConfigError:
    return ConfigError(source, (Problem("", message, line, column),))


_TOO_DEEP: Final = f"is nested more than {MAX_DEPTH} deep: no key is"
_PARSERS: Final = {".toml": _parse_toml, ".yaml": _parse_yaml, ".yml": _parse_yaml}
_SUFFIXES: Final = ".toml, .yaml or .yml"
_UNREADABLE: Final[dict[type[OSError], str]] = {
    FileNotFoundError: "there is no such file",
    PermissionError: "this user may not read it: check its mode and its folders'",
    NotADirectoryError: "there is no such file: a part of the path is not a folder",
}
