"""The table of docs/design.md that says how each socket is closed, from the rule itself.

Owns: how the rule is written there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

from vsockproxy.pump.closing import closing_of
from vsockproxy.pump.transfer import EndReason

_PAGE: Final = Path(__file__).parent.parent / "docs" / "design.md"
_MARKED: Final = re.compile(r"(?m)^<!-- how each socket is closed -->\n(?:\|.*\n)*")
_STATES: Final = {
    (True, True): "whole, and nothing more comes from the socket",
    (True, False): "whole",
    (False, None): "not whole",
}
_COLUMNS: Final = {
    "client, TCP": (True, True),
    "target, TCP": (False, True),
    "AF_UNIX, AF_VSOCK": (None, False),
}

Cells = tuple[str, ...]


def made() -> dict[Path, str]:
    """Return the text of the page, with what is made from the rule."""
    table = "\n".join(("<!-- how each socket is closed -->", *_table())) + "\n"
    return {_PAGE: _MARKED.sub(lambda _: table, _PAGE.read_text())}


def _table() -> Iterator[str]:
    yield " | ".join(("| the direction that it receives is", "reason", *_COLUMNS)) + " |"
    yield "|---" * (2 + len(_COLUMNS)) + "|"
    for (whole, ended), state in _STATES.items():
        by_cells: dict[Cells, list[str]] = {}
        for reason in get_args(EndReason):
            by_cells.setdefault(_cells(reason, whole, ended), []).append(f"`{reason}`")
        for cells, reasons in sorted(by_cells.items(), key=lambda row: len(row[1])):
            named = "any other" if len(by_cells) > 1 else "any"
            yield f"| {state} | {', '.join(reasons) if len(reasons) < 4 else named} | " + (
                " | ".join(cells) + " |"
            )


def _cells(reason: EndReason, whole: bool, ended: bool | None) -> Cells:
    return tuple(_cell(reason, whole, ended, *column) for column in _COLUMNS.values())


def _cell(
    reason: EndReason, whole: bool, ended: bool | None, client: bool | None, tcp: bool
) -> str:
    [how] = {
        closing_of(reason, client=side, whole=whole, ended=end, tcp=tcp)
        for side in _either(client)
        for end in _either(ended)
    }
    return how


def _either(value: bool | None) -> tuple[bool, ...]:
    return (True, False) if value is None else (value,)
