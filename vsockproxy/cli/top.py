"""The command `top`."""

from __future__ import annotations

import sys

import typer

from vsockproxy.cli.output import Color, is_colored
from vsockproxy.cli.program import ColorOption, ConfigOption, SocketOption, daemon_client, fail

_TIMEOUT = 3.0  # seconds of silence after which the daemon counts as hung


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(short_help="Watch the daemon's traffic full-screen.")(top)


def top(
    config: ConfigOption = None,
    *,
    socket: SocketOption = None,
    _color: ColorOption = Color.AUTO,
) -> None:
    """Watch routes, connections and errors of the daemon on a full screen, every second.

    The bottom line lists the keys; ? explains them. If NO_COLOR is set, the
    screen has no colours.
    """
    from rich.console import Console  # noqa: PLC0415 - at its use

    console = Console(markup=False, highlight=False, no_color=not is_colored(sys.stdout))
    if not (sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
        fail(
            "cannot start top: standard input or output is not a terminal, or TERM is dumb",
            "to print plain lines, use vsockproxy connections --watch",
        )
    from vsockproxy.top import session  # noqa: PLC0415 - at its use

    with daemon_client(config, socket, _TIMEOUT) as client:
        session.run(client, console, sys.stdin.fileno())
