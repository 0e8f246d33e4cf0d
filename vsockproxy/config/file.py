"""Reading a configuration file within bounds, in the format that its suffix names.

Owns: the limits on a file, and the errors of a file that cannot be read at all.
"""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vsockproxy.config.document import MAX_DEPTH, TOO_DEEP, Document, KeyProblem, key_paths
from vsockproxy.config.source import STDIN, STDIN_NAME
from vsockproxy.config.text import end_of, text_error
from vsockproxy.config.toml_document import parse_toml
from vsockproxy.config.yaml_document import parse_yaml
from vsockproxy.errors import ConfigError

MAX_BYTES: Final = 1 << 20  # a thousand routes in the long form take 100 KiB


_BEFORE: Final = rb"(?:\xef\xbb\xbf)?(?:[ \t]*(?:#[^\n]*)?\r?\n)*"
_YAML_START: Final = re.compile(_BEFORE + rb"(?:---|[%{]|[^=\[\n]*:(?:\s|\Z))")
_TOML_START: Final = re.compile(_BEFORE + rb"(?:\[[^,\n]*\]\s*\n|[^:\n]*=)")


def read_document(path: Path) -> Document:
    """Return the document in a file of at most `MAX_BYTES`; the suffix selects the format.

    `STDIN` is read to its end, which it has only once; its first key selects the format.

    Raises:
      ConfigError: the file cannot be read, or is not TOML or YAML.
    """
    if path == STDIN:
        return _standard_input()
    source = str(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise text_error(source, "is a directory: name a file")
        if not stat.S_ISREG(status.st_mode):
            raise text_error(source, "is not a regular file")  # opening a FIFO would block
        if path.suffix not in _PARSERS:
            found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
            raise text_error(source, f"has {found}: expected {_SUFFIXES}")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = _UNREADABLE.get(type(error), error.strerror or str(error))
        raise text_error(source, reason) from error
    except ValueError as error:  # a NUL character in the name
        raise text_error(repr(source)[1:-1], "is not a file name") from error
    return parse_document(data, source, path.suffix)


def _standard_input() -> Document:
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise text_error(STDIN_NAME, error.strerror or str(error)) from error
    return parse_document(data, STDIN_NAME, ".yaml" if _YAML_START.match(data) else ".toml")


def parse_document(data: bytes, source: str, suffix: str) -> Document:
    """Return the document in ``data``, in the format of ``suffix``: .toml, .yaml or .yml.

    Raises:
      ConfigError: ``data`` is too large, not UTF-8, or not valid in its format.
    """
    if len(data) > MAX_BYTES:
        raise text_error(source, f"is larger than {MAX_BYTES >> 20} MiB: is this the right file?")
    if not data:
        raise text_error(
            source, 'is empty: write at least one route, as in forward."8080" = "3:80"'
        )
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        here = data[: error.start].decode("utf-8", "replace") + "?"
        raise text_error(
            source,
            f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8",
            *end_of(here),
        ) from error
    start, other = (_YAML_START, ".yaml") if suffix == ".toml" else (_TOML_START, ".toml")
    try:
        document = _PARSERS[suffix](text, source)
    except ConfigError as error:
        if not start.match(data):
            raise
        problem = error.problems[0]
        hint = f"looks like {other[1:].upper()}, but its suffix is {suffix}: name it {other}"
        raise text_error(source, hint, problem.line, problem.column) from error
    if deep := next((path for path in key_paths(document.tree) if len(path) > MAX_DEPTH), None):
        raise document.error([KeyProblem(deep[:MAX_DEPTH], TOO_DEEP)])
    return document


_PARSERS: Final[dict[str, Callable[[str, str], Document]]] = {
    ".toml": parse_toml,
    ".yaml": parse_yaml,
    ".yml": parse_yaml,
}
_SUFFIXES: Final = ".toml, .yaml or .yml"
_UNREADABLE: Final[dict[type[OSError], str]] = {
    FileNotFoundError: "no such file",
    PermissionError: "permission denied: check the mode of the file and its folders",
    NotADirectoryError: "no such file: a part of the path is not a folder",
}
