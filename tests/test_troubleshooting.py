"""The symptoms of docs/troubleshooting.md are the program's; each alarming event is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

import vsockproxy
from tests.daemon_process import REPOSITORY
from vsockproxy import log

SOURCE: Final = Path(vsockproxy.__file__).parent
PAGE: Final = (REPOSITORY / "docs" / "troubleshooting.md").read_text()


def symptoms() -> list[str]:
    """Return what the tables headed "printed" say that the program prints."""
    tables = re.findall(r"(?m)^\| printed \|.*\n((?:\|.*\n)+)", PAGE)
    cells = re.findall(r"(?m)^\| (.*?) \|", "".join(tables))
    return [symptom for cell in cells for symptom in re.findall(r"`([^`]+)`", cell)]


def parts_of(node: ast.AST) -> list[str]:
    """Return the fixed parts of a text: an f-string, or a constant that str.format may fill."""
    match node:
        case ast.Constant(value=str(text)):
            return re.split(r"\{[^{}]*\}", text)
        case ast.JoinedStr(values=values):
            filled = "".join(
                str(value.value) if isinstance(value, ast.Constant) else "{}" for value in values
            )
            return filled.split("{}")
    return []


@cache
def printed() -> list[tuple[int, re.Pattern[str]]]:
    """Return each text of the source as a pattern, with the number of its fixed characters."""
    nodes = [
        node for path in SOURCE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ]
    texts = {tuple(parts) for node in nodes if (parts := parts_of(node))}
    return [(sum(map(len, parts)), re.compile(".+".join(map(re.escape, parts)))) for parts in texts]


def is_printed(symptom: str) -> bool:
    """Return whether a text of the source is this symptom, mostly by its fixed words."""
    return any(
        fixed * 2 >= len(symptom) and pattern.fullmatch(symptom) for fixed, pattern in printed()
    )


def alarming_events() -> Iterator[str]:
    for events in re.findall(r"(?m)^\| (.*?) \| (?:warning|error) \|", log.__doc__):
        yield from re.findall(r"`(\w+)`", events)


@pytest.mark.parametrize("symptom", symptoms())
def test_a_symptom_of_the_page_is_printed_by_the_program(symptom: str) -> None:
    assert is_printed(symptom)


@pytest.mark.parametrize("event", list(alarming_events()))
def test_an_event_of_level_warning_or_error_has_a_row_on_the_page(event: str) -> None:
    assert event in symptoms()
