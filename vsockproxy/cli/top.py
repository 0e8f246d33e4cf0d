"""The command that stays: top."""

from __future__ import annotations

import os
import sys

import typer

from vsockproxy.cli.program import ConfigOption, SocketOption, fail
from vsockproxy.config.source import PLACES
from vsockproxy.errors import VsockproxyError

_TIMEOUT = 3.0  # seconds until a daemon that hangs is said to


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(short_help="Watch the running daemon on the whole terminal.")(top)


def top(config: ConfigOption = None, *, socket: SocketOption = None) -> None:
    """Watch the running daemon on the whole terminal: rates, connections, errors as they happen.

    The keys are at the bottom of the screen, and ? explains them. NO_COLOR is
    heeded.
    """
    from rich.console import Console  # noqa: PLC0415 - at its use

    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use

    console = Console(markup=False, highlight=False)
    if not (sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
        fail(
            "top needs a whole terminal, and this is none (TERM is dumb, or it is a pipe)",
            "vsockproxy connections --watch prints lines instead",
        )
    from vsockproxy.top import session  # noqa: PLC0415 - at its use

    try:
        client = Client(find_socket(socket, config, os.environ, defaults=PLACES), _TIMEOUT)
        session.run(client, console, sys.stdin.fileno())
    except VsockproxyError as error:
        fail(*str(error).splitlines())
