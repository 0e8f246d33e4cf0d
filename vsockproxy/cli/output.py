"""What the commands print: text that any terminal can show, and when it has colours.

Owns: the escaping of what a client, a VMM or a file may have chosen; `--color`.  A line is
escaped as a whole, so that a newline in a name is shown as ``\\n`` and forges no line.
"""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Final, TextIO

import click

from vsockproxy.readable import escape


class Color(StrEnum):
    """When the output has colours."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class _Chosen:
    color = Color.AUTO


def choose_color(color: Color) -> None:
    """Follow ``--color`` from now on."""
    _Chosen.color = color


def is_colored(stream: TextIO) -> bool:
    """Return whether a stream gets colours: by --color, else on a terminal without NO_COLOR."""
    if _Chosen.color is not Color.AUTO:
        return _Chosen.color is Color.ALWAYS
    has_colors = stream.isatty() and os.environ.get("TERM") != "dumb"
    return has_colors and not os.environ.get("NO_COLOR")


def make_unfailing() -> None:
    """Have the standard streams write an escape for a character that they cannot spell."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def printable(text: object) -> str:
    """Return one line of text whose characters standard output can all show."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return escape(str(text)).encode(encoding, "backslashreplace").decode(encoding)


def say(*lines: object, err: bool = False) -> None:
    """Print lines."""
    for line in lines:
        click.echo(printable(line), err=err)


def say_json(value: object, *, indent: int | None = 2) -> None:
    """Print a value as JSON in ASCII."""
    import json  # noqa: PLC0415 - at its use

    click.echo(_DELETE.join(json.dumps(value, indent=indent).split("\x7f")))


_DELETE: Final = "\\u007f"
