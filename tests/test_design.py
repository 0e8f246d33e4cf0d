"""The map of the modules in docs/design.md, compared with the tree."""

import re
from pathlib import Path
from typing import Final

import vsockproxy
from tests.daemon_process import REPOSITORY

PACKAGE: Final = Path(vsockproxy.__file__).parent


def modules_in_the_tree() -> set[str]:
    """Return the modules as the map names them; ``__init__`` and ``__main__`` need no row."""
    return {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in PACKAGE.rglob("*.py")
        if not path.stem.startswith("__")
    }


def modules_in_the_map() -> list[str]:
    """Return the first cell of each row of the map, in the map's order."""
    page = (REPOSITORY / "docs" / "design.md").read_text()
    section = page.partition("## Map of the modules\n")[2].partition("\n## ")[0]
    return re.findall(r"(?m)^\| `([\w/]+)` \|", section)


def test_every_module_has_a_row_in_the_map() -> None:
    assert modules_in_the_tree() - set(modules_in_the_map()) == set()


def test_every_row_of_the_map_names_a_module() -> None:
    assert set(modules_in_the_map()) - modules_in_the_tree() == set()


def test_no_module_has_two_rows_in_the_map() -> None:
    rows = modules_in_the_map()
    assert len(rows) == len(set(rows))
