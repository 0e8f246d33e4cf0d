"""Every relative link of the documentation leads to a file, and to a heading of it."""

import re
from pathlib import Path

import pytest

from tests.daemon_process import REPOSITORY

PAGES = sorted(
    page for place in ("*.md", "docs/*.md", ".github/**/*.md") for page in REPOSITORY.glob(place)
)


def text_of(page: Path) -> str:
    """Return a page without its blocks of code, which may contain anything."""
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text())


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^()\s]+)\)", text_of(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Return the anchor of each heading, as the usual forges make them."""
    seen: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"(?m)^#+ +(.*?) *$", text_of(page)):
        shown = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        made.add(f"{anchor}-{count}" if count else anchor)
    return made


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert [link for link in links(page) if not leads_somewhere(page, link)] == []


def test_every_page_of_the_documentation_is_linked_by_another() -> None:
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in PAGES
        for link in links(page)
        if link.partition("#")[0]
    }
    pages = {page.resolve() for page in (REPOSITORY / "docs").glob("*.md")}
    assert pages - linked == set()
