"""The words that many keys share, and a written value as an error message quotes it.

Owns: ``"off"``, ``"auto"``, `shown` and the reading of lists.  Must not know which key a value
belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

OFF: Final = "off"
AUTO: Final = "auto"

_WIDEST: Final = 80

_Item = TypeVar("_Item")


def parse_list(value: object, parse: Callable[[object], _Item], example: str) -> tuple[_Item, ...]:
    """Return the parsed items of a list.

    Raises:
      ValueError: ``value`` is not a list; or ``parse`` rejected items: one message for all.
    """
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is not a list: expected one, as in {example}")
    items: list[_Item] = []
    problems: list[str] = []
    for item in value:
        try:
            items.append(parse(item))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(items)


def shown(value: object) -> str:
    """Return a value as a file writes it, shortened to fit into an error message."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > _WIDEST:
        return "a huge number"  # Python refuses to print some of them
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def parse_command(value: object) -> tuple[str, ...]:
    """Return a program and its arguments, which no shell interprets."""
    if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
        raise ValueError(
            f"{shown(value)} is not a command: expected a list of texts,"
            ' as in ["/usr/bin/cid-of", "web"]'
        )
    if not value[0].startswith("/"):
        raise ValueError(f"{value[0]!r} is not an absolute path: no shell searches the PATH")
    if any("\0" in item for item in value):
        raise ValueError("a command cannot contain a NUL character")
    return tuple(value)


def parse_include(value: object) -> tuple[str, ...]:
    """Return the files and patterns of files in a list."""
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(
            f"{shown(value)} is not a list of files: expected one,"
            ' as in ["/etc/vsockproxy/conf.d/*.toml"]'
        )
    return tuple(value)
