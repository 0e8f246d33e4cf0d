"""The commands of README.md, for the trial that follows it; only the standard library."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

CLONE: Final = "/opt/clone"
"""Where the trial's user has cloned the repository."""

README: Final = Path(__file__).parents[1] / "README.md"


def lines_after(words: str) -> list[str]:
    """Return the lines of the block behind the paragraph that begins so, without their comments."""
    found = re.search(rf"(?m)^{re.escape(words)}.*\n\n((?:    .*\n)+)", README.read_text())
    if not found:
        sys.exit(f"README.md has no commands after {words!r}")
    return [line.partition(" # ")[0].strip() for line in found[1].splitlines()]


def configuration() -> str:
    """Return the file that README shows."""
    found = re.search(
        r"(?ms)^```toml\n(# /etc/vsockproxy/config.toml\n.*?)^```$", README.read_text()
    )
    if not found:
        sys.exit("README.md has no configuration")
    return found[1]
