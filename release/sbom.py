"""Write what the package, the image and the one file contain, with licences: release/sbom.py.

dist/ gets a CycloneDX bill of materials and a table for people.  A component without a licence is
an error.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from release.pythons import DIST, LOCK, REPOSITORY, run

BUILD: Final = REPOSITORY / "build" / "sbom"


def main() -> None:
    """Print the table, and exit with status 1 if a component has no licence."""
    shutil.rmtree(BUILD, ignore_errors=True)
    run("uv", "venv", "--quiet", "--python", sys.executable, str(BUILD))
    python = f"--python={BUILD}/bin/python"
    run("uv", "pip", "install", "--quiet", python, "--require-hashes", f"--requirements={LOCK}")
    bill = write_bill()
    components = json.loads(bill.read_text())["components"]
    lines = sorted(f"{each['name']} {each['version']}: {licence(each)}" for each in components)
    (DIST / "licences.txt").write_text("\n".join(lines) + "\n")
    print(bill, *lines, sep="\n")
    if lost := [line for line in lines if line.endswith(": unknown")]:
        sys.exit(f"sbom: no licence is named by {lost}: read their sources, and add a rule here")


def write_bill() -> Path:
    """Return the bill of materials of the environment."""
    DIST.mkdir(exist_ok=True)
    file = DIST / "vsockproxy.cdx.json"
    options = ("--output-reproducible", "--of=JSON", f"--output-file={file}")
    project = f"--pyproject={REPOSITORY / 'pyproject.toml'}"
    run("cyclonedx-py", "environment", *options, project, str(BUILD))
    return file


def licence(component: Mapping[str, Any]) -> str:
    """Return the licences of a component, as its metadata names them."""
    return " and ".join(dict.fromkeys(_names(component))) or "unknown"


def _names(component: Mapping[str, Any]) -> Iterator[str]:
    for entry in component.get("licenses", []):
        named = entry.get("license", {})
        if name := entry.get("expression") or named.get("id") or named.get("name"):
            yield name


if __name__ == "__main__":
    main()
