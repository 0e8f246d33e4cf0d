"""Tables in a pipe and on a terminal: the same text, and no drawing library where none is drawn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.admin.running_daemon import controlled_daemon
from tests.daemon_process import command
from vsockproxy.cli import drawing
from vsockproxy.cli.tables import Part, Table, Text, cell

CELLS = st.text(st.sampled_from("a日é -\x1b\n>"), max_size=6)
ROWS = st.lists(st.tuples(CELLS, st.integers().map(str), CELLS), max_size=3)


def parts_of(rows: list[tuple[str, str, str]]) -> list[Part]:
    table = Table("route", "live>", "target")
    for row in rows:
        table.add_row(*map(cell, row))
    return [cell("summary"), Text(), table, cell("end", "red")]


@settings(deadline=None, max_examples=50)
@given(ROWS)
def test_plain_text_is_what_rich_draws_without_a_width(rows: list[tuple[str, str, str]]) -> None:
    parts = parts_of(rows)
    console = drawing._console()
    with console.capture() as drawn:
        console.print(drawing._drawn(parts))
    assert drawn.get().splitlines() == list(drawing.plain(parts))


@pytest.mark.parametrize("options", [(), ("--json",)], ids=str)
@pytest.mark.parametrize("name", ["status", "connections"])
async def test_a_command_in_a_pipe_imports_neither_rich_nor_the_configuration(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    async with controlled_daemon(tmp_path, "web") as running:
        environ = {"VSOCKPROXY_ADMIN": str(running.socket), "PYTHONPROFILEIMPORTTIME": "1"}
        call = partial(command, name, *options, environ=environ)
        done = await trio.to_thread.run_sync(call)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vsockproxy.admin.client" in imported
    assert not imported & {"rich", "trio", "vsockproxy.config.settings", "vsockproxy.config.key"}
