"""YAML 1.2 (ruamel.yaml) as a `Document`.

Owns: which YAML is read, and ruamel's errors in an operator's words.  The text is parsed to
nodes only, and the values are made here: so a doubled key is reported instead of hiding the
first one, each key keeps its place, and no tag can create an object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vsockproxy.config.document import (
    MAX_DEPTH,
    TOO_DEEP,
    Document,
    KeyPath,
    KeyProblem,
    Place,
    Plain,
)
from vsockproxy.config.text import end_of, text_error

if TYPE_CHECKING:
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

# A %YAML 1.1 line would turn 3:22 into 202 and `on` into true.
_DIRECTIVE: Final = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*%(?!YAML 1\.2\s)")
_YAML_TAG: Final = "tag:yaml.org,2002:"
_NUMBERS: Final = ("int", "float", "bool")
_TEXTS: Final = ("str", "timestamp", "merge", "value")


def parse_yaml(text: str, source: str) -> Document:
    """Return the document in a YAML text.

    Raises:
      ConfigError: the text is not valid YAML 1.2.
    """
    # The import takes 50 ms, and a TOML file does not need it.
    from ruamel.yaml import YAML  # noqa: PLC0415
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415
    from ruamel.yaml.reader import ReaderError  # noqa: PLC0415

    if match := _DIRECTIVE.match(text):
        raise text_error(
            source, "remove the % line: the file is read as YAML 1.2", *end_of(match[0])
        )
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # each is a problem of the document
    try:
        root = yaml.compose(text)
    except RecursionError as error:
        raise text_error(source, TOO_DEEP) from error
    except ReaderError as error:
        message = f"control character 0x{ord(text[error.position]):02x}: remove it"
        raise text_error(source, message, *end_of(text[: error.position + 1])) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (None, None)
        raise text_error(
            source, _yaml_words(error.problem or error.context or ""), *place
        ) from error
    except (YAMLError, ValueError) as error:  # ValueError: "\U00110000" is not a character
        raise text_error(source, f"not valid YAML: {error}") from error
    return _YamlTree(yaml).document(source, root)


def _yaml_words(reason: str) -> str:
    if "'\\t'" in reason:
        return "the line is indented with a tab: indent with spaces"
    if "another document" in reason:
        return "a second document (---) begins here: only one is allowed"
    if "undefined alias" in reason:
        return "* begins an alias, which is not allowed here: quote the text"
    if "mapping values" in reason or "<block end>" in reason:
        return "not valid YAML: check the indentation, and quote a text that contains [ or :"
    return f"not valid YAML: {reason}"


class _UnreadError(Exception):
    """A node has no value that can be read; the text says why."""


class _YamlTree:
    """Turns the nodes of one YAML document into values, and collects the problems."""

    def __init__(self, yaml: YAML) -> None:
        self._yaml = yaml
        self._places: dict[KeyPath, Place] = {}
        self._problems: list[KeyProblem] = []
        self._readers: dict[str, Callable[[Any, KeyPath], Plain]] = {
            "map": self._table,
            "seq": self._list,
            **dict.fromkeys(_NUMBERS, self._number),
            **dict.fromkeys(_TEXTS, self._text),
        }

    def document(self, source: str, root: Node | None) -> Document:
        tree = {} if root is None else self._value(root, ())
        if not isinstance(tree, dict):
            if not self._problems:
                self._note(
                    root,
                    (),
                    "is not a table: write `forward:`, and below it, indented, `8080: 3:80`",
                )
            tree = {}
        return Document(source, tree, self._places, tuple(self._problems))

    def _value(self, node: Node, path: KeyPath) -> Plain | None:
        """Return the value of a node; None where it has none, which is noted as a problem."""
        try:
            return self._read(node, path)
        except _UnreadError as reason:
            self._problems.append(KeyProblem(path, str(reason)))
            return None

    def _read(self, node: Node, path: KeyPath) -> Plain:
        # Nested aliases can make a small file expand without bound.
        if node.anchor:
            raise _UnreadError("anchors (&) and aliases (*) are not supported: write the value out")
        if len(path) > MAX_DEPTH:
            raise _UnreadError(TOO_DEEP)
        kind = str(node.tag).removeprefix(_YAML_TAG)
        if kind == "null":
            raise _UnreadError("has no value: add one or remove the key")
        reader = self._readers.get(kind)
        if reader is None or isinstance(node.value, str) == (kind in ("map", "seq")):
            raise _UnreadError(f"the tag {kind!r} is not supported: remove it")
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
                self._note(key, here, f"is defined twice: first on line {line}")
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
            items.append({} if value is None else value)  # the other items keep their index
        return items

    def _number(self, node: ScalarNode, _: KeyPath) -> Plain:
        try:
            value: Plain = self._yaml.constructor.construct_object(node)
        except (ValueError, LookupError) as error:  # an !!int or !!bool tag on any text
            raise _UnreadError("is not a number") from error
        return value

    def _text(self, node: ScalarNode, _: KeyPath) -> Plain:
        return str(node.value)

    def _note(self, node: Node | None, path: KeyPath, message: str) -> None:
        self._problems.append(KeyProblem(path, message, None if node is None else _place(node)))


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1
