"""Every block of TOML on a page is a configuration that `check` accepts."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_process import REPOSITORY
from vsockproxy.config.file import parse_document
from vsockproxy.config.load import build_config

PAGES = (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md")))


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"(?ms)^```toml\n(.*?)^```$", page.read_text())


def missing_parts(tables: dict[str, Any], guests: dict[str, Any]) -> Iterator[str]:
    """Yield what a fragment leaves to its page: a route, and the guests of other blocks."""
    if not tables.keys() & {"forward", "route"}:
        yield 'forward.9 = "3:80"'
    if "guests" not in tables:
        for name, guest in guests.items():
            values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in guest.items())
            yield f"guests.'{name}' = {{ {values} }}"


def every_block() -> Iterator[Any]:
    for page in PAGES:
        texts = blocks_of(page)
        parsed = [tomllib.loads(text) for text in texts]
        guests = {
            name: guest for tables in parsed for name, guest in tables.get("guests", {}).items()
        }
        for number, (text, tables) in enumerate(zip(texts, parsed, strict=True), 1):
            whole = "\n".join((*missing_parts(tables, guests), text))
            yield pytest.param(whole, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("text", list(every_block()))
def test_a_block_of_toml_on_a_page_is_a_configuration(text: str) -> None:
    assert build_config(parse_document(text.encode(), "page.toml", ".toml")).routes
