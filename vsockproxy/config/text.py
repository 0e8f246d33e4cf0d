"""Errors in the text of a configuration file, with their place in it.

Owns: finding the place of a character, and the error for one problem with a text.
"""

from __future__ import annotations

from vsockproxy.config.document import Place
from vsockproxy.errors import ConfigError, Problem


def end_of(text: str) -> Place:
    """Return the place of the last character of ``text``."""
    return text.count("\n") + 1, max(len(text) - text.rfind("\n") - 1, 1)


def text_error(
    source: str, message: str, line: int | None = None, column: int | None = None
) -> ConfigError:
    """Return the error for a problem that belongs to no key."""
    return ConfigError(source, (Problem("", message, line, column),))
