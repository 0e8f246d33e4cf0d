"""The commands that look at the world around the daemon: probe, cid, doctor."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from vsockproxy.cli.program import (
    FAILED,
    PLACES,
    WRONG,
    ConfigOption,
    JsonOption,
    SocketOption,
    default_file,
    fail,
)
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.readable import duration

if TYPE_CHECKING:
    from vsockproxy.address.endpoint import Target
    from vsockproxy.config.guest import Guest
    from vsockproxy.config.settings import Config
    from vsockproxy.doctor.finding import Finding
    from vsockproxy.doctor.probe import Probe

_Value = TypeVar("_Value")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(short_help="Say what is wrong here, and what to do about it.")(doctor)
    app.command(short_help="Dial a target and say what happened.")(probe)
    app.command(short_help="Show this machine's own vsock CID.")(cid)


def probe(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An address, as in 3:80.")],
    config: ConfigOption = None,
    *,
    wait: Annotated[
        str | None, typer.Option(metavar="TIME", help="Try again for so long, as in 60s.")
    ] = None,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="Bound for one dial.")] = "5s",
    send: Annotated[
        str, typer.Option(metavar="TEXT", help=r"Send it, \r \n and \xNN read, and wait.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Dial a target as the daemon does, and say what happened and what to do.

    A target is written as in a file; the configuration is read only for a
    guest's name. The exit status is 0 when the target was reached, 1 when not,
    2 when the address is wrong.

    \b
    vsockproxy probe 3:80
    vsockproxy probe --wait 60s vsock-mux:/run/vm.sock:22
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.doctor.probe import describe  # noqa: PLC0415 - at its use

    endpoint, guests = _or_wrong(lambda: _read_target(target, config))
    seconds = _or_wrong(lambda: _seconds("--timeout", timeout))
    patience = _or_wrong(lambda: _seconds("--wait", wait)) if wait else None
    text = _or_wrong(lambda: _unescaped(send))
    result = trio.run(_probe, endpoint, guests, seconds, patience, text)
    if as_json:
        typer.echo(json.dumps(result.as_json()))
    else:
        for line in describe(result):
            typer.echo(line)
    raise typer.Exit(0 if result.reached else FAILED)


async def _probe(
    target: Target, guests: Sequence[Guest], timeout: float, patience: float | None, send: bytes
) -> Probe:
    from vsockproxy.doctor import probe as dialling  # noqa: PLC0415 - at its use
    from vsockproxy.guests.directory import Guests  # noqa: PLC0415 - at its use

    attempt = partial(dialling.probe, target, timeout, guests=Guests(guests), send=send)
    if patience is None:
        return await attempt()
    with _progress() as tell:
        return await dialling.wait_for(attempt, patience, tell)


@contextmanager
def _progress() -> Iterator[Callable[[Probe, float], None]]:
    """What tells of a wait: on a terminal, in one line that goes away."""
    if not sys.stderr.isatty():
        yield lambda _result, _left: None
        return
    from rich.console import Console  # noqa: PLC0415 - at its use

    with Console(stderr=True, markup=False, highlight=False).status("dialling") as status:
        yield lambda result, left: status.update(f"{duration(left)} left: {result.what}")


def _read_target(text: str, file: Path | None) -> tuple[Target, Sequence[Guest]]:
    """The address that a text means, and where to ask if that is a guest of a configuration."""
    from vsockproxy.address.endpoint import GuestEndpoint  # noqa: PLC0415 - at its use
    from vsockproxy.address.grammar import parse_target  # noqa: PLC0415 - at its use

    endpoint = parse_target(text)
    if not isinstance(endpoint, GuestEndpoint):
        return endpoint, ()
    file = file or default_file()
    if file is None:
        raise VsockproxyError(
            f"{text!r} names a guest of a configuration: give it with -c;"
            f" a TCP target is spelt tcp:{text}"
        )
    return _guest_address(text, file)


def _guest_address(text: str, file: Path) -> tuple[Target, Sequence[Guest]]:
    from vsockproxy.config.document import read_document  # noqa: PLC0415 - at its use
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    guests = read_document(file).tree.get("guests", {})
    config = forward_config([("unix:@probe", text)], {"guests": guests})
    return config.routes[0].target, config.guests


def _seconds(option: str, text: str) -> float:
    from vsockproxy.config.duration import parse_timeout  # noqa: PLC0415 - at its use

    try:
        return parse_timeout(float(text) if text.isdecimal() else text)
    except ValueError as error:
        raise VsockproxyError(f"{option}: {error}") from error


def _unescaped(text: str) -> bytes:
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode()
    except UnicodeDecodeError as error:
        raise VsockproxyError(f"--send: {error.reason}") from error


def _or_wrong(make: Callable[[], _Value]) -> _Value:
    """What ``make`` gives; its error is a line, and the end with status 2."""
    try:
        return make()
    except VsockproxyError as error:
        fail(*str(error).splitlines(), status=WRONG)


def cid(as_json: JsonOption = False) -> None:
    """Show this machine's own vsock CID: in words, and a number alone on a pipe.

    2 is a host of VMs, above that is a guest. The exit status is 1 where there
    is none, or none to be read; nothing of the proxy depends on it.
    """
    from vsockproxy.address.endpoint import CID_ANY  # noqa: PLC0415 - at its use
    from vsockproxy.dial.vsock import read_local_cid  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.transports import spell_cid, why_no_cid  # noqa: PLC0415 - at its use

    number: int | None = None
    try:
        found = read_local_cid()
    except OSError as error:
        words = why_no_cid(error)
    else:
        number = None if found == CID_ANY else found
        words = spell_cid(found)
    if as_json:
        typer.echo(json.dumps({"cid": number, "meaning": words}))
        raise typer.Exit(FAILED if number is None else 0)
    if number is None:
        fail(words)
    typer.echo(words if sys.stdout.isatty() else number)


def doctor(
    config: ConfigOption = None,
    *,
    socket: SocketOption = None,
    root: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Judge the machine whose /proc, /sys, ... lie there."),
    ] = Path("/"),
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong here, and what to do about it.

    Looks at the machine, the process, the configuration, each of its targets and
    the running daemon. Changes nothing, needs no root; run it as the daemon's
    user to see what the daemon sees. With --root nothing is dialled. The exit
    status is 0 when nothing is wrong, 1 with problems.

    Without a configuration the targets are those of the running daemon, if
    there is one.
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.admin.client import find_socket  # noqa: PLC0415 - at its use
    from vsockproxy.doctor import report  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.examination import Attempts, examine  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.machine import look  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.running_daemon import ask_daemon  # noqa: PLC0415 - at its use

    here = root == Path("/")
    find = partial(find_socket, socket, config, os.environ, defaults=PLACES)
    findings = trio.run(
        partial(
            examine,
            _configuration(config),
            machine=look(root),
            attempts=Attempts() if here else None,
            daemon=ask_daemon(find) if here else None,
        )
    )
    if as_json:
        typer.echo(json.dumps(report.as_json(findings), indent=2))
    else:
        _print(findings)
    raise typer.Exit(FAILED if any(one.level == "problem" for one in findings) else 0)


def _configuration(file: Path | None) -> Config | ConfigError | None:
    """The configuration that `run` would take, what is wrong in it, or None."""
    from vsockproxy.config import environment  # noqa: PLC0415 - at its use
    from vsockproxy.config.load import load_config  # noqa: PLC0415 - at its use

    file = file or default_file()
    try:
        if file is not None:
            return load_config(file)
        if environment.known_settings(os.environ):
            return environment.environment_config(os.environ)
    except ConfigError as error:
        return error
    return None


def _print(findings: list[Finding]) -> None:
    from vsockproxy.doctor import report  # noqa: PLC0415 - at its use

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    for finding in findings:
        first, *rest = report.lines_of(finding, width)
        level = typer.style(finding.level, fg=report.COLOURS[finding.level], bold=True)
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        typer.echo(first.replace(finding.level, level, 1) if coloured else first)
        for line in rest:
            typer.echo(line)
    typer.echo(report.summary(findings))
