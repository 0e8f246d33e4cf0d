"""The commands check, version and health, which change nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsockproxy import __version__
from vsockproxy.cli.output import say, say_json
from vsockproxy.cli.program import WRONG
from vsockproxy.cli.shared import (
    color_option,
    command,
    config_option,
    daemon_client,
    fail,
    file_argument,
    json_option,
    one_file,
    seconds,
    socket_option,
)
from vsockproxy.config.source import STDIN, NoSourceError, Source, find_source
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.revision import REVISION

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config


@command()
@file_argument
@config_option
@socket_option
@click.option("--diff", is_flag=True, help="Show what it changes in the running daemon.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but the problems.")
@json_option
@color_option
def check(
    file: Path | None,
    config: Path | None,
    socket: Path | None,
    *,
    diff: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show the routes of a configuration file, or all of its problems.

    Without FILE it is the configuration that run would read. Certificates are
    read too, and files of users; nothing is opened. The exit status is 2 if the
    configuration has a problem; a warning does not change it. With --diff it
    shows what a reload would change. FILE - is standard input. The object of
    --json has source, problems and warnings, the configuration as the API
    shows it, and with --diff the changes.
    """
    named = one_file(file, config)
    with _ending_at_problems(as_json):
        source = Source(file, os.environ) if file else find_source(config, os.environ, stdin=True)
        checked = source.load()
        _check_certificates(checked)
    warnings = _exposed_users(checked)
    if as_json:
        found = _Report(checked.source, warnings=warnings, configuration=_as_answered(checked))
        changes = {"changes": _changes(checked, named, socket)} if diff else {}
        say_json(asdict(found) | changes)
        return
    for one in warnings:
        line = f"{one['route']}: {one['message']}; {one['remedy']}"
        click.echo(f"vsockproxy: warning: {line}", err=True)
    if diff:
        from vsockproxy.config.changes import describe  # noqa: PLC0415 - at its use

        say(*describe(_changes(checked, named, socket)))
    elif not quiet:
        from vsockproxy.cli.configuration_table import configuration  # noqa: PLC0415 - at its use
        from vsockproxy.cli.drawing import show  # noqa: PLC0415 - at its use

        show(configuration(checked))


@dataclass(frozen=True)
class _Report:
    """What check found, for programs."""

    source: str
    problems: list[dict[str, object]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    configuration: dict[str, Any] | None = None


@contextmanager
def _ending_at_problems(as_json: bool) -> Iterator[None]:
    """End the command with status 2 at a `ConfigError`, and show its problems."""
    try:
        yield
    except ConfigError as error:
        if not as_json:
            fail(*str(error).splitlines(), status=WRONG)
        problems = [{**asdict(one), "source": one.source or error.source} for one in error.problems]
        say_json(asdict(_Report(error.source, problems)))
        sys.exit(WRONG)
    except NoSourceError as error:
        fail(*str(error).splitlines(), status=WRONG)


def _as_answered(config: Config) -> dict[str, Any]:
    from vsockproxy.admin.view import as_answered  # noqa: PLC0415 - at its use

    return as_answered(config)


def _check_certificates(config: Config) -> None:
    if config.metrics and config.metrics_tls is not None:
        from vsockproxy.admin.tls import tls_context  # noqa: PLC0415 - at its use

        tls_context(config.metrics_tls, config.source)


def _exposed_users(config: Config) -> list[dict[str, str]]:
    from vsockproxy.config.credentials import exposures  # noqa: PLC0415 - at its use

    return [
        {"route": route, "message": sentence, "remedy": remedy}
        for route, sentence, remedy in exposures(config)
    ]


def _changes(config: Config, file: Path | None, socket: Path | None) -> dict[str, Any]:
    """Return what the configuration changes in the running daemon."""
    from vsockproxy.admin.view import answered_facts, facts_as_answered  # noqa: PLC0415 - at its use
    from vsockproxy.config.changes import compare  # noqa: PLC0415 - at its use

    if file == STDIN:
        file, own = None, config.admin.listen
        socket = socket or (Path(own.path) if own else None)
    with daemon_client(file, socket) as daemon:
        running = answered_facts(daemon.get("/v1/config"))
    return asdict(compare(running, facts_as_answered(config, daemon.path)))


@command()
@json_option
def version(as_json: bool) -> None:
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


@command()
@config_option
@socket_option
@click.option("--metrics", metavar="LISTEN", help="The metrics listener, as in 9490.")
@click.option("--url", metavar="URL", help="The URL to ask, with its path.")
@click.option(
    "--timeout",
    default="3s",
    show_default=True,
    metavar="TIME",
    help="Limit for the answer, as in 3s.",
)
def health(
    config: Path | None, socket: Path | None, *, metrics: str | None, url: str | None, timeout: str
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
