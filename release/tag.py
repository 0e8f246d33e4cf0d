"""Tag a release: release/tag.py, which `make tag` runs.

Refuses unless everything that a release needs is true of the commit that is checked out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from release.check import RECORD, STEPS, commit_of
from release.pythons import REPOSITORY

_SECTION: Final = re.compile(r"(?m)^## \[([^\]]+)\]")


def main(repository: Path = REPOSITORY, record: Path = RECORD) -> None:
    """Tag the commit as ``vVERSION``; exit with status 1 and the reasons if it may not be."""
    version = _version(repository)
    if reasons := list(_reasons(repository, record, version)):
        sys.exit("\n".join(f"tag: v{version} is not tagged: {reason}" for reason in reasons))
    line = ["git", "tag", "--annotate", "--message", f"vsockproxy {version}", f"v{version}"]
    if subprocess.run(line, cwd=repository, check=False).returncode:
        sys.exit(1)  # git said why
    print(f"tagged v{version}: publish it with git push origin v{version}")


def _version(repository: Path) -> str:
    version: str = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    return version


def _reasons(repository: Path, record: Path, version: str) -> Iterator[str]:
    commit, is_clean = commit_of(repository)
    if not is_clean:
        yield "the working tree has changes; commit them"
    newest = _SECTION.search((repository / "CHANGELOG.md").read_text())
    section = newest[1] if newest else "none"
    if section != version:
        yield f"the newest section of CHANGELOG.md is {section}; rename it to {version}"
    try:
        checked = json.loads(record.read_text())
    except (OSError, ValueError):
        yield "there is no record of a whole check; run make release-check"
    else:
        yield from _faults(checked, commit)


def _faults(checked: Mapping[str, Any], commit: str) -> Iterator[str]:
    if checked["commit"] != commit or not checked["is_clean"]:
        changed = "" if checked["is_clean"] else " with changes"
        yield f"the check ran on {checked['commit'][:12]}{changed}; run make release-check"
    for step in STEPS:
        outcome = checked["steps"].get(step.name, "not run")
        if outcome != "ran":
            yield f"the step {step.name} of the check: {outcome}; run make release-check"


if __name__ == "__main__":
    main()
