"""What the pages show: each block of TOML is a configuration, each command has its options."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.daemon_process import REPOSITORY
from vsockproxy.cli import app
from vsockproxy.config.file import parse_document
from vsockproxy.config.load import build_config

PAGES: Final = (REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md")))
SHELL: Final = frozenset("&;|<>")


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


def commands_of(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command that a page shows, in its text or on a line."""
    text = page.read_text()
    for line in re.findall(r"`(vsockproxy [^`]*)`", text) + re.findall(r"(?m)^    (\S.*)$", text):
        for part in re.split(r"; | && ", line.partition(" # ")[0]):
            if found := re.match(r"(?:\S*/)?vsockproxy +(.*)", part):
                yield until_shell(shlex.split(found[1]))


def until_shell(words: list[str]) -> list[str]:
    ends = [number for number, word in enumerate(words) if SHELL & {word[:1]}]
    return words[: min(ends, default=len(words))]


def parse(command: Any, words: list[str]) -> None:
    """Raise click's error for a command or an option that does not exist."""
    context = command.make_context("vsockproxy", [], resilient_parsing=True)
    context.resilient_parsing = False
    _, rest, _ = command.make_parser(context).parse_args(list(words))
    if command is app and rest:
        parse(app.every_command()[rest[0]], rest[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_on_a_page_has_the_options_that_it_is_shown_with(page: Path) -> None:
    for words in commands_of(page):
        parse(app, words)


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    with pytest.raises(KeyError):
        parse(app, ["statsu"])
    with pytest.raises(Exception, match="--no-such"):
        parse(app, ["status", "--no-such"])
