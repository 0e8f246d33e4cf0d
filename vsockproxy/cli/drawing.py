"""The tables on standard output: drawn by rich on a terminal, else plain text, a row a line.

Owns: the width and the colours.  A pipe does not wait for rich, which is most of its time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from unicodedata import east_asian_width

import click

from vsockproxy.cli.output import is_colored
from vsockproxy.cli.tables import Part, Table, Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_UNWRAPPED: Final = 10_000  # columns; a row is one line unless the output is a terminal
_GAP: Final = "   "


def show(parts: Sequence[Part]) -> None:
    """Print lines and tables."""
    if sys.stdout.isatty() or is_colored(sys.stdout):
        _console().print(_drawn(parts))
    else:
        click.echo("\n".join(plain(parts)))


def watch(make: Callable[[], Sequence[Part]], every: float) -> None:
    """Print a new state every ``every`` seconds until Ctrl-C; a terminal is redrawn in place."""
    try:
        if not sys.stdout.isatty():
            while True:
                show(make())
                time.sleep(every)
        from rich.live import Live  # noqa: PLC0415 - at its use

        with Live(_drawn(make()), console=_console(), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(_drawn(make()), refresh=True)
    except KeyboardInterrupt:
        return


# ---- plain ----


def plain(parts: Sequence[Part]) -> Iterator[str]:
    """Yield the lines, as rich draws them where no line is wrapped."""
    for part in parts:
        if isinstance(part, Table):
            yield from _plain_table(part)
        else:
            yield part.text


def _plain_table(table: Table) -> Iterator[str]:
    names = [name.removesuffix(">") for name in table.columns]
    rows = [names, *([cell.text for cell in row] for row in table.rows)]
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = [_GAP.join(map(_aligned, row, widths, table.columns)) for row in rows]
    yield lines[0]
    yield _rule() * (sum(widths) + len(_GAP) * (len(widths) - 1))
    yield from lines[1:]


def _aligned(text: str, width: int, name: str) -> str:
    space = " " * (width - _width(text))
    return space + text if name.endswith(">") else text + space


def _width(text: str) -> int:
    """Return the columns that a terminal gives to a text."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(one) in "WF" else 1 for one in text)


def _rule() -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return "─" if encoding.lower().startswith("utf") else "-"


# ---- rich ----


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - at its use

    return Console(
        file=sys.stdout,
        markup=False,
        highlight=False,
        width=None if sys.stdout.isatty() else _UNWRAPPED,
        color_system="standard" if is_colored(sys.stdout) else None,
    )


def _drawn(parts: Sequence[Part]) -> RenderableType:
    from rich import text  # noqa: PLC0415 - at its use
    from rich.console import Group  # noqa: PLC0415 - at its use

    return Group(
        *(
            text.Text(part.text, part.style) if isinstance(part, Text) else _drawn_table(part)
            for part in parts
        )
    )


def _drawn_table(given: Table) -> RenderableType:
    from rich import box, table, text  # noqa: PLC0415 - at its use

    drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in given.columns:
        right = name.endswith(">")
        drawn.add_column(
            name.removesuffix(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right,
        )
    for row in given.rows:
        drawn.add_row(*(text.Text(cell.text, cell.style) for cell in row))
    return drawn
