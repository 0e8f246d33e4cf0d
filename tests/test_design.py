"""The map of the modules in docs/design.md, and the tree: both name the same files.

So do the threat model in docs/security.md and the tests.
"""

import re
from pathlib import Path
from typing import Final

import vsockproxy
from tests.daemon_process import REPOSITORY

PACKAGE: Final = Path(vsockproxy.__file__).parent  # installed elsewhere by `make bare`
PAGE: Final = REPOSITORY / "docs" / "design.md"
SECURITY: Final = REPOSITORY / "docs" / "security.md"


def modules() -> set[str]:
    """Return every module of the package, as the map writes it, but for those without a subject."""
    found = {file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py")}
    return {str(module) for module in found if module.name not in ("__init__", "__main__")}


def mapped() -> list[str]:
    """Return the modules in the first column of the map's tables."""
    section = PAGE.read_text().partition("## Map of the modules")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE)


def test_every_module_is_in_the_map_once_and_every_row_is_a_module() -> None:
    assert sorted(mapped()) == sorted(modules())


def test_the_packages_docstring_names_every_folder() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    head = (PACKAGE / "__init__.py").read_text().split('"""')[1]
    assert {name for name in folders if not re.search(rf"\b{name}\b", head)} == set()


def test_the_layers_on_the_page_are_those_of_the_contract() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    contract = text.partition("\nlayers = [\n")[2].partition("]")[0]
    layers = re.findall(r'"([^"]+)"', contract)
    page = PAGE.read_text().partition("## What a module may import")[2]
    block = re.findall(r"^    (\S.*)$", page.partition("\nBesides")[0], re.MULTILINE)
    assert block == layers


def test_the_tests_that_the_threat_model_names_exist() -> None:
    section = SECURITY.read_text().partition("## Threat model")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)`", section)
    assert named
    assert [name for name in named if not (REPOSITORY / "tests" / name).is_file()] == []


def test_no_file_of_the_package_has_more_than_400_lines() -> None:
    sources = [file for suffix in ("py", "c", "h") for file in PACKAGE.rglob(f"*.{suffix}")]
    written = [file for file in sources if file.name != "_pump.c"]  # cffi generates it
    assert {str(file): n for file in written if (n := _lines(file)) > 400} == {}


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())
