"""The man pages: up to date with their sources, complete, and accepted by man and groff."""

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from man import endings, keys, roff
from man.generate import pages
from tests.cli.test_cli import COMMANDS
from vsockproxy.config.schema import TABLES

PAGES = pages()
NAMES = sorted(PAGES)


def shown(markdown: str) -> list[str]:
    return list(roff.blocks(markdown))


@pytest.mark.parametrize("file", NAMES, ids=lambda file: file.name)
def test_the_pages_are_up_to_date(file: Path) -> None:
    assert file.read_text() == PAGES[file], f"{file.name} is behind: make man"


TABLES_MADE = keys.made() | endings.made()


@pytest.mark.parametrize("file", sorted(TABLES_MADE), ids=lambda file: file.name)
def test_the_tables_in_the_docs_are_up_to_date(file: Path) -> None:
    assert file.read_text() == TABLES_MADE[file], f"{file.name} is behind: make man"


def test_every_command_and_exit_status_is_in_the_page() -> None:
    page = (PAGES[NAMES[0]]).replace("\\-", "-")
    for name in COMMANDS:
        assert f'.SS "{name}"' in page
    for text in ('.SH "EXIT STATUS"', '.SH "SIGNALS"', r"\fB--wait\fR \fITIME\fR"):
        assert text in page


def test_every_key_of_every_table_is_a_term() -> None:
    lines = PAGES[NAMES[1]].splitlines()
    terms = {line for above, line in pairwise(lines) if above == ".TP"}
    for model in TABLES.values():
        for key in model.model_fields:
            assert rf"\fB{key}\fR" in terms


def test_a_list_has_an_item_for_each_mark() -> None:
    assert shown("- one\n  more\n- two") == [".TP", r"\(bu", "one more", ".TP", r"\(bu", "two"]
    assert shown("1. one\n   more\n2. two") == [".TP", "1.", "one more", ".TP", "2.", "two"]


@pytest.mark.parametrize("file", NAMES, ids=lambda file: file.name)
@pytest.mark.skipif(not shutil.which("groff"), reason="apt install groff-base")
def test_groff_prints_no_warning(file: Path) -> None:
    done = subprocess.run(
        ["groff", "-ww", "-man", "-z", "-Tutf8", file], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("file", NAMES, ids=lambda file: file.name)
@pytest.mark.skipif(not shutil.which("man"), reason="apt install man-db")
def test_man_prints_no_warning(file: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-P", "cat", "-l", file],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C"},
    )
    assert done.stderr == ""
    assert "SEE ALSO" in done.stdout


def test_text_to_copy_keeps_its_characters() -> None:
    assert shown("use `a-b ~^'\\`, not a-b") == [
        ".PP",
        r"use \fBa\-b \(ti\(ha\(aq\e\fR, not a-b",
    ]


def test_a_line_that_looks_like_a_request_is_escaped() -> None:
    assert shown(".TH is no request") == [".PP", r"\&.TH is no request"]
    assert shown("    'quoted'")[-3] == r"\(aqquoted\(aq"


def test_a_table_becomes_a_list_of_terms() -> None:
    table = "| key | type | meaning |\n|---|---|---|\n| `a` | text | What `b` is |\n| `c` | - | d |"
    assert shown(table) == [
        *(".TP", r"\fBa\fR", r"What \fBb\fR is", ".IP", "type: text"),
        *(".TP", r"\fBc\fR", "d"),
    ]


def test_a_link_becomes_its_text_and_a_list_has_bullets() -> None:
    assert shown("- see [the `page`](page.md)\n  here\n- **b**") == [
        *(".TP", r"\(bu", r"see the \fBpage\fR here"),
        *(".TP", r"\(bu", r"\fBb\fR"),
    ]
