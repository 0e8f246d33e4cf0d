"""The commands check, version and health, which change nothing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vsockproxy import __version__
from vsockproxy.cli.output import Color, say, say_json
from vsockproxy.cli.program import (
    ColorOption,
    ConfigOption,
    JsonOption,
    SocketOption,
    daemon_client,
    fail,
    read,
    seconds,
    source_of,
)
from vsockproxy.config.source import Source
from vsockproxy.errors import VsockproxyError
from vsockproxy.revision import REVISION

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(short_help="Show a file's routes, or all of its problems.")(check)
    app.command(short_help="Show the version, and which pump runs and why.")(version)
    app.command(short_help="Ask the running daemon whether it is ready.")(health)


def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="TOML or YAML; else what run reads.", readable=False),
    ] = None,
    *,
    config: ConfigOption = None,
    socket: SocketOption = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what it changes in the running daemon.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but the problems.")
    ] = False,
    _color: ColorOption = Color.AUTO,
) -> None:
    """Show the routes of a configuration file, or all of its problems.

    Without FILE it is the configuration that run would read. Certificates are
    read too, and files of users; nothing is opened. The exit status is 2 if the
    configuration has a problem; a warning does not change it. With --diff it
    shows what a reload would change.
    """
    checked = read((Source(file, os.environ) if file else source_of(config)).load)
    read(lambda: _check_certificates(checked))
    _warn_of_exposed_users(checked)
    if diff:
        _show_changes(checked, config or file, socket)
        return
    if quiet:
        return
    from vsockproxy.cli import tables  # noqa: PLC0415 - at its use

    tables.show(sys.stdout, tables.configuration(checked))


def _check_certificates(config: Config) -> None:
    if config.metrics and config.metrics_tls is not None:
        from vsockproxy.admin.tls import tls_context  # noqa: PLC0415 - at its use

        tls_context(config.metrics_tls, config.source)


def _warn_of_exposed_users(config: Config) -> None:
    from vsockproxy.config.credentials import exposures  # noqa: PLC0415 - at its use

    for route, sentence, remedy in exposures(config):
        typer.echo(f"vsockproxy: warning: {route}: {sentence}; {remedy}", err=True)


def _show_changes(config: Config, file: Path | None, socket: Path | None) -> None:
    from vsockproxy.admin.view import answered_facts, facts_as_answered  # noqa: PLC0415 - at its use
    from vsockproxy.config.changes import compare, describe  # noqa: PLC0415 - at its use

    with daemon_client(file, socket) as daemon:
        running = answered_facts(daemon.get("/v1/config"))
    changes = compare(running, facts_as_answered(config, daemon.path))
    for line in describe(asdict(changes)):
        say(line)


def version(as_json: JsonOption = False) -> None:
    """Show the version, the Python it runs on, and which pump moves the bytes and why."""
    import trio  # noqa: PLC0415 - at its use

    python, system = platform.python_version(), platform.system()
    pump, why = trio.run(_describe_pump)
    if as_json:
        facts = {"version": __version__, "revision": REVISION, "python": python, "system": system}
        say_json({**facts, "machine": platform.machine(), "pump": pump, "why": why})
        return
    say(f"vsockproxy {__version__}")
    if REVISION:
        say(f"revision: {REVISION}")
    say(f"Python {python} on {system} {platform.machine()}")
    say(f"pump: {pump} ({why})")


async def _describe_pump() -> tuple[str, str]:
    from vsockproxy.config.settings import PumpSettings  # noqa: PLC0415 - at its use
    from vsockproxy.pump.choice import open_pump  # noqa: PLC0415 - at its use

    async with open_pump(PumpSettings()) as pump:
        return pump.name, pump.why


def health(
    config: ConfigOption = None,
    *,
    socket: SocketOption = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="LISTEN", help="The metrics listener, as in 9490.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The URL to ask, with its path.")
    ] = None,
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Limit for the answer, as in 3s.")
    ] = "3s",
) -> None:
    """Ask the running daemon whether it is ready.

    It is asked by --socket or $VSOCKPROXY_ADMIN, else by the metrics listener
    of the configuration that run would read, else by the control socket that
    status finds. The exit status is 0 if every route listens, and 1 if not or
    if nothing answers, as a container's HEALTHCHECK expects.
    """
    from vsockproxy.admin import health_client as probe  # noqa: PLC0415 - at its use
    from vsockproxy.config.duration import parse_timeout  # noqa: PLC0415 - at its use

    limit = seconds("--timeout", timeout, parse_timeout)
    try:
        if url:
            answer = probe.ask_url(url, limit)
        else:
            control = f"unix:{socket.absolute()}" if socket else ""
            listen = metrics or control or probe.find_address(config, os.environ)
            answer = probe.ask(listen, limit)
    except VsockproxyError as error:
        fail(*str(error).splitlines())
    say(answer)
