"""The command `help`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vsockproxy.cli.program import WRONG
from vsockproxy.cli.shared import argument, command, fail

if TYPE_CHECKING:
    from collections.abc import Sequence


@command()
@argument("words", metavar="COMMAND", nargs=-1, help="A command; else the program.")
@click.pass_context
def help(context: click.Context, words: Sequence[str]) -> None:
    """Show the help of a command, as its --help does."""
    here = context.find_root()
    for word in words:
        group = here.command
        found = group.get_command(here, word) if isinstance(group, click.Group) else None
        if found is None:
            fail(f"there is no command {word!r}: vsockproxy --help lists them", status=WRONG)
        here = click.Context(found, info_name=word, parent=here)
    click.echo(here.get_help())
