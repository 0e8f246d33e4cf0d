"""Make the links of docs/ that leave it lead to the repository, for the site: a hook of MkDocs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[1]

_OUTSIDE: Final = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, *, config: Mapping[str, Any], **_event: object) -> str:
    """Return a page's text with its links to ``../`` as addresses of the repository."""

    def address(link: re.Match[str]) -> str:
        path = link[1].partition("#")[0]
        kind = "tree" if (REPOSITORY / path).is_dir() else "blob"
        return f"]({config['repo_url']}/{kind}/main/{link[1]})"

    return _OUTSIDE.sub(address, markdown)
