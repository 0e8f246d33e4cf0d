"""The site of docs/: what MkDocs is told, without MkDocs, which `make docs` runs."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any, Final

from ruamel.yaml import YAML

from release.site_links import on_page_markdown
from tests.daemon_process import REPOSITORY

SITE: Final = YAML(typ="safe", pure=True).load((REPOSITORY / "mkdocs.yml").read_text())


def pages(entry: Any) -> Iterator[str]:
    """Yield the pages of an entry of the table of contents."""
    if isinstance(entry, str):
        yield entry
    else:
        for each in entry.values() if isinstance(entry, dict) else entry:
            yield from pages(each)


def test_the_site_has_every_page_of_the_documentation_once() -> None:
    docs = REPOSITORY / "docs"
    expected = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    assert sorted(pages(SITE["nav"])) == sorted(expected)


def test_the_site_names_the_repository_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert SITE["repo_url"] == project["urls"]["Source"]


def test_a_link_out_of_the_documentation_leads_to_the_repository_and_others_stay() -> None:
    text = "[a](../LICENSE) [b](../systemd/guest) [c](../README.md#try) [d](tls.md) `../x`"
    assert on_page_markdown(text, config={"repo_url": "https://example.org/vsockproxy"}) == (
        "[a](https://example.org/vsockproxy/blob/main/LICENSE)"
        " [b](https://example.org/vsockproxy/tree/main/systemd/guest)"
        " [c](https://example.org/vsockproxy/blob/main/README.md#try) [d](tls.md) `../x`"
    )
