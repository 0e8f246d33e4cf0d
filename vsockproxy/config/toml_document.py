"""TOML (tomllib) as a `Document`, with tomllib's errors in an operator's words.

Owns: those words.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any, Final

from vsockproxy.config.document import TOO_DEEP, Document, Plain, write_path
from vsockproxy.config.text import end_of, text_error
from vsockproxy.config.toml_places import TomlPlaces

_MAX_DOTS: Final = 1000
_TOML_PLACE: Final = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.S)
_TOML_NAME: Final = re.compile(r"Cannot (declare|mutate immutable namespace) \((.*)\)(?: twice)?")
_OPEN_ARRAY: Final = re.compile(r"(=\s*\[)[^\]]*\Z")
_TOML_KEY: Final = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_.-])+)\s*=""")


def parse_toml(text: str, source: str) -> Document:
    """Return the document in a TOML text.

    Raises:
      ConfigError: the text is not valid TOML.
    """
    # tomllib takes quadratic time for the parts of a dotted key.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MAX_DOTS and not line.lstrip().startswith("#"):
            raise text_error(source, f"the line has more than {_MAX_DOTS} dots", number, 1)
    try:
        return Document(source, _plain_table(tomllib.loads(text)), TomlPlaces(text))
    except RecursionError as error:
        raise text_error(source, TOO_DEEP) from error
    except tomllib.TOMLDecodeError as error:
        # Python 3.14 has the place in attributes too; older ones only in the text.
        match = _TOML_PLACE.fullmatch(str(error))
        reason = match[1] if match else str(error)
        place = (int(match[2]), int(match[3])) if match and match[2] else end_of(text)
        if not (match and match[2]) and (array := _OPEN_ARRAY.search(text)):
            reason, place = "Unclosed array", end_of(text[: array.end(1)])
        raise text_error(
            source, _toml_words(reason, text.split("\n")[place[0] - 1]), *place
        ) from error
    except ValueError as error:  # of int()
        raise text_error(source, "a number has too many digits") from error


def _toml_words(reason: str, line: str) -> str:
    if match := _TOML_NAME.fullmatch(reason):
        name = write_path(tuple(re.findall(r"'([^']*)'", match[2])))
        what = f"the table [{name}]" if match[1] == "declare" else f"the key {name}"
        return f"{what} is defined twice"
    if reason == "Cannot overwrite a value":
        key = _TOML_KEY.match(line)  # no match on the last line of a multi-line value
        what = f"the key {key[1]}, or a part of it," if key else "this key, or a part of it,"
        return f"{what} is defined twice"
    return _TOML_WORDS.get(reason) or f"not valid TOML: {reason[:1].lower()}{reason[1:]}"


_TOML_WORDS: Final = {
    "Expected '=' after a key in a key/value pair": (
        'the key is not followed by =: put an address in quotes, as in "127.0.0.1:8080" = "3:80"'
    ),
    "Expected newline or end of document after a statement": (
        'there is text after the value: put an address in quotes, as in 8080 = "3:80"'
    ),
    "Unclosed array": "the array is not closed: a comma or its ] is missing",
    "Illegal character '\\n'": "the text has no closing quote",
    'Expected "\'"': "the text has no closing quote",
    "Invalid value": 'not a valid value: put a text in quotes, as in "web:80"',
}
"""Sentences for the most frequent mistakes, by tomllib's message."""


def _plain_table(value: dict[str, Any]) -> dict[str, Plain]:
    return {key: _plain(one) for key, one in value.items()}


def _plain(value: Any) -> Plain:
    if isinstance(value, dict):
        return _plain_table(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str | int | float):
        return value
    return str(value)  # a date or a time, which no key accepts
