"""The commands that ask and change nothing: check, version, health."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from vsockproxy import __version__
from vsockproxy.cli.program import (
    ConfigOption,
    default_file,
    fail,
    load,
    read,
    source_of,
)
from vsockproxy.errors import VsockproxyError


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(short_help="Show a file's routes, or all that is wrong in it.")(check)
    app.command(short_help="Show the version, and which pump runs and why.")(version)
    app.command(short_help="Ask the running daemon whether it is ready.")(health)


def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="TOML or YAML; else what run takes.", readable=False),
    ] = None,
    *,
    config: ConfigOption = None,
) -> None:
    """Show the routes of a configuration file, or all that is wrong in it.

    Without FILE it is the configuration that run would take. Nothing is
    opened. The exit status is 2 when something is wrong.
    """
    from vsockproxy.cli import tables  # noqa: PLC0415 - at its use

    checked = load(file) if file else read(source_of(config or default_file()))
    tables.show(sys.stdout, tables.configuration(checked))


def version() -> None:
    """Show the version, the Python it runs on, and which pump moves the bytes and why."""
    import trio  # noqa: PLC0415 - at its use

    typer.echo(f"vsockproxy {__version__}")
    typer.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    typer.echo(f"pump: {trio.run(_describe_pump)}")


async def _describe_pump() -> str:
    from vsockproxy.config.settings import PumpSettings  # noqa: PLC0415 - at its use
    from vsockproxy.pump.native import open_pump  # noqa: PLC0415 - at its use

    async with open_pump(PumpSettings()) as pump:
        return f"{pump.name} ({pump.why})"


def health(
    config: ConfigOption = None,
    *,
    metrics: Annotated[
        str | None, typer.Option(metavar="LISTEN", help="Its metrics listener, as in 9490.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where to ask, path and all.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Bound for the answer.")] = 3.0,
) -> None:
    """Ask the running daemon whether it is ready, by its metrics listener.

    The listener is found as run finds its configuration. The exit status is 0
    when every route listens, and 1 when not, or when nobody answers: as a
    container's HEALTHCHECK wants it.
    """
    from vsockproxy.admin import health as probe  # noqa: PLC0415 - at its use

    try:
        if url:
            answer = probe.ask_url(url, timeout)
        else:
            listen = metrics or probe.metrics_listen(config or default_file(), os.environ)
            answer = probe.ask(listen, timeout)
    except VsockproxyError as error:
        fail(*str(error).splitlines())
    typer.echo(answer)
