"""The command line: arguments and files in, exit statuses and text out.

Owns: the entry.  `program` has the table of the commands, `shared` the options and errors that they
share; each other module holds the commands of one purpose.  Decides nothing about routes.  A
command imports its modules when it runs: `--help` and completion must not wait for trio.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from vsockproxy.cli.output import make_unfailing
from vsockproxy.cli.program import FAILED, app

__all__ = ["app", "main"]


def main() -> None:
    """Run the `vsockproxy` program."""
    _open_closed_streams()
    make_unfailing()
    try:
        app(prog_name="vsockproxy")
    except OSError as error:
        click.echo(f"vsockproxy: cannot write to standard output: {error.strerror}", err=True)
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
