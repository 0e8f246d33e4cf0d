"""What the commands share: the program's help, their options, and how they fail.

Exit statuses: 0 for done and drained, 1 for a failure or a forced end, 2 for an invalid
configuration or command line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn, TypeVar

import typer
from typer.core import TyperGroup

from vsockproxy import __version__
from vsockproxy.cli.output import Color, choose_color, say
from vsockproxy.config.source import NoSourceError, Source, find_source
from vsockproxy.errors import ConfigError, VsockproxyError

if TYPE_CHECKING:
    from vsockproxy.address.endpoint import Target
    from vsockproxy.admin.client import Client
    from vsockproxy.config.guest import Guest

_Value = TypeVar("_Value")

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")

FAILED: Final = 1
WRONG: Final = 2

_HELP: Final = """\
Relay byte streams between TCP and vsock, in both directions.

\b
Examples:
  vsockproxy forward 8080 3:80       relay local port 8080 to port 80 of CID 3
  vsockproxy run -c vsockproxy.toml  run every route of a file until SIGTERM
  vsockproxy check vsockproxy.toml   validate a file and show its routes
  vsockproxy health                  test whether the daemon is ready
  vsockproxy doctor                  find problems and their remedies
  vsockproxy connect 3:22            join stdin and stdout to port 22 of CID 3
  vsockproxy probe 3:80              test whether port 80 of CID 3 answers
  vsockproxy guests                  list guests and this machine's VMs
  vsockproxy demo                    try vsockproxy without a VM

\b
Addresses:
  8080  tcp:HOST:PORT                TCP; a port alone is on the loopback
  3:80  vsock:CID:PORT  vsock::PORT  AF_VSOCK; an empty CID listens on any
  vsock-mux:PATH:PORT                a VMM's socket, such as Firecracker's
  unix:PATH  unix:@NAME  fd:NAME     a Unix socket; a socket from systemd
"""

_FOREIGN: Final = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
}
"""The texts of pydantic in typer's errors, and what is written in their place."""


class _Program(TyperGroup):
    """The program; its errors are in its own words."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]  # a subclass of it
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            for foreign, plain in _FOREIGN.items():
                error.message = error.message.replace(foreign, plain)
            raise


app = typer.Typer(
    name="vsockproxy",
    cls=_Program,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="VSOCKPROXY_CONFIG",
        metavar="FILE",
        help="TOML or YAML; else /etc/vsockproxy/config.toml or .yaml.",
        readable=False,  # reading the file gives the remedy
    ),
]

SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help="The daemon's socket; else $VSOCKPROXY_ADMIN, [admin] socket, or the usual places.",
    ),
]

ColorOption = Annotated[
    Color,
    typer.Option("--color", callback=choose_color, help="auto obeys NO_COLOR and the terminal."),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"vsockproxy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    pass


def help_(
    context: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]", help="A command; else the program.")
    ] = None,
) -> None:
    """Show the help of a command, as its --help does."""
    here = context.find_root()
    for word in words or ():
        group = here.command
        found = group.get_command(here, word) if isinstance(group, TyperGroup) else None
        if found is None:
            fail(f"there is no command {word!r}: vsockproxy --help lists them", status=WRONG)
        here = type(here)(found, info_name=word, parent=here)
    typer.echo(here.get_help())


def source_of(file: Path | None) -> Source:
    """Return the configuration that a command means; exit with status 2 where there is none."""
    return read(lambda: find_source(file, os.environ, stdin=True), (NoSourceError, ConfigError))


def seconds(option: str, text: str, parse: Callable[[object], _Value]) -> _Value:
    """Return an option's duration as parsed; exit with status 2 if it is not valid."""
    try:
        return parse(with_unit(text))
    except ValueError as error:
        fail(f"{option}: {error}", status=WRONG)


def with_unit(text: str) -> str:
    """Return an option's duration as a file has it: a number alone is in seconds."""
    return f"{text}s" if _NUMBER.fullmatch(text) else text


def read(
    make: Callable[[], _Value],
    errors: type[VsockproxyError] | tuple[type[VsockproxyError], ...] = ConfigError,
) -> _Value:
    """Return what ``make`` returns; on one of ``errors`` print its lines and exit with status 2."""
    try:
        return make()
    except errors as error:
        fail(*str(error).splitlines(), status=WRONG)


def read_target(text: str, file: Path | None) -> tuple[Target, Sequence[Guest]]:
    """Return the address, and the guests of the configuration if it names one of them.

    Raises:
      VsockproxyError: the text is not a target, or its guest is in no configuration.
    """
    from vsockproxy.address.endpoint import GuestEndpoint  # noqa: PLC0415 - at its use
    from vsockproxy.address.grammar import parse_target  # noqa: PLC0415 - at its use

    endpoint = parse_target(text)
    if not isinstance(endpoint, GuestEndpoint):
        return endpoint, ()
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    try:
        guests = find_source(file, os.environ).table("guests")
    except NoSourceError as error:
        raise VsockproxyError(
            f"{text!r} is the name of a guest, but there is no configuration: give one with -c;"
            f" for a TCP target, write tcp:{text}"
        ) from error
    config = forward_config([("unix:@command", text)], {"guests": dict(guests)})
    return config.routes[0].targets[0], config.guests


@contextmanager
def daemon_client(
    config: Path | None, path: Path | None, timeout: float | None = None
) -> Iterator[Client]:
    """Yield a client of the daemon; an error ends the command with its message.

    ``timeout`` is in seconds; None is the client's own.
    """
    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use

    try:
        place = find_socket(path, config, os.environ)
        yield Client(place) if timeout is None else Client(place, timeout)
    except VsockproxyError as error:
        fail(*str(error).splitlines())


def fail(*lines: str, status: int = FAILED) -> NoReturn:
    """Print lines to stderr, each after the program's name, and exit."""
    for line in filter(None, lines):
        say(f"vsockproxy: {line}", err=True)
    raise typer.Exit(status)
