"""The command `top`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vsockproxy.cli.output import is_colored
from vsockproxy.cli.shared import (
    color_option,
    command,
    config_option,
    daemon_client,
    fail,
    socket_option,
)

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT = 3.0  # seconds of silence after which the daemon counts as hung


@command()
@config_option
@socket_option
@color_option
def top(config: Path | None, socket: Path | None) -> None:
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
