"""Configurations from text, and the lines of their errors."""

from __future__ import annotations

import re

import pytest

from vsockproxy.config.file import parse_document
from vsockproxy.config.load import build_config
from vsockproxy.config.settings import Config
from vsockproxy.errors import ConfigError

_PLACE = re.compile(r"^\d+:\d+: ", re.ASCII)


def toml(text: str) -> Config:
    """Return the configuration of a file x.toml with this text."""
    return _config(text, ".toml")


def yaml(text: str) -> Config:
    """Return the configuration of a file x.yaml with this text."""
    return _config(text, ".yaml")


def errors(text: str, suffix: str = ".toml") -> list[str]:
    """Return the lines of a file's error, without the file's name.

    A TOML key's place is left out: the tests of `TomlPlaces` are for all of them.
    """
    with pytest.raises(ConfigError) as caught:
        _config(text, suffix)
    name = re.compile(rf"^x\{suffix}:(?: |(?=\d))")  # a line's number follows without a space
    lines = [name.sub("", line) for line in str(caught.value).split("\n")]
    return [
        _PLACE.sub("", line, count=1) if suffix == ".toml" and problem.path else line
        for line, problem in zip(lines, caught.value.problems, strict=True)
    ]


def _config(text: str, suffix: str) -> Config:
    return build_config(parse_document(text.encode(), "x" + suffix, suffix))
