"""The commands: words and files in, exit statuses and readable texts out.

Owns: the program.  Each module beside this one holds the commands of one purpose, and
`program` what all of them share.  Decides nothing about routes.  What a command needs is
imported when it runs, at its use: `--help` and completion must not wait for trio.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from vsockproxy.cli import check as asking
from vsockproxy.cli import control as steering
from vsockproxy.cli import diagnose as inspecting
from vsockproxy.cli import guests
from vsockproxy.cli import run as serving
from vsockproxy.cli import top as watching
from vsockproxy.cli.program import FAILED, app

__all__ = ["app", "main"]

for commands in (serving, asking, inspecting, guests, steering, watching):  # in the order of --help
    commands.add_to(app)


def main() -> None:
    """The `vsockproxy` program."""
    _open_closed_streams()
    try:
        app(prog_name="vsockproxy")
    except OSError as error:
        typer.echo(f"vsockproxy: cannot write to standard output: {error.strerror}", err=True)
        sys.exit(FAILED)
    finally:
        _give_up_full_stdout()


def _open_closed_streams() -> None:
    """Whoever closes our standard output or error does not want to read it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the end


def _give_up_full_stdout() -> None:
    """What cannot be written must not fail a second time at exit, with a status of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
