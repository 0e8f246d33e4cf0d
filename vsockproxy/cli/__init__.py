"""The command line: arguments and files in, exit statuses and text out.

Owns: the program.  Each module beside this one holds the commands of one purpose, and
`program` the options and errors that they share.  Decides nothing about routes.  A command
imports its modules when it runs: `--help` and completion must not wait for trio.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from vsockproxy.cli import change as change_commands
from vsockproxy.cli import check as checks
from vsockproxy.cli import connect as connecting
from vsockproxy.cli import control as control_commands
from vsockproxy.cli import diagnose as diagnosis
from vsockproxy.cli import guests
from vsockproxy.cli import run as daemons
from vsockproxy.cli import top as top_command
from vsockproxy.cli.output import make_unfailing
from vsockproxy.cli.program import FAILED, app, help_

__all__ = ["app", "main"]

# In the order of --help.
for commands in (
    daemons,
    connecting,
    checks,
    diagnosis,
    guests,
    control_commands,
    change_commands,
    top_command,
):
    commands.add_to(app)
app.command("help", short_help="Show the help of a command.")(help_)


def main() -> None:
    """Run the `vsockproxy` program."""
    _open_closed_streams()
    make_unfailing()
    try:
        app(prog_name="vsockproxy")
    except OSError as error:
        typer.echo(f"vsockproxy: cannot write to standard output: {error.strerror}", err=True)
        sys.exit(FAILED)
    finally:
        _discard_unwritable_output()


def _open_closed_streams() -> None:
    """Open /dev/null in place of a closed standard stream: no other file must get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open until exit


def _discard_unwritable_output() -> None:
    """Discard output that cannot be written: Python would fail again at exit, with status 120."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - open until exit
