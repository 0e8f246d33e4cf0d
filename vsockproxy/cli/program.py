"""What the commands share: the program's help, the configuration they mean, how they fail.

Exit statuses: 0 for done and for drained, 1 for a failure or a forced end, 2 for a wrong
configuration or command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from vsockproxy import __version__
from vsockproxy.errors import ConfigError

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config

FAILED: Final = 1
WRONG: Final = 2

PLACES: Final = (Path("/etc/vsockproxy/config.toml"), Path("/etc/vsockproxy/config.yaml"))
"""Where `run` looks for a file without -c and $VSOCKPROXY_CONFIG."""

_NO_CONFIGURATION: Final = (
    "there is no configuration: neither -c FILE nor $VSOCKPROXY_CONFIG nor $VSOCKPROXY_FORWARD,"
    f" nor {' nor '.join(map(str, PLACES))}",
    "without a file: vsockproxy forward 8080 3:80; without a VM: vsockproxy demo",
)

_HELP: Final = """\
Carry byte streams between TCP and vsock: a guest's services on host ports.

\b
Examples:
  vsockproxy forward 8080 3:80       local port 8080 to port 80 of CID 3
  vsockproxy run -c vsockproxy.toml  every route of a file, until SIGTERM
  vsockproxy check vsockproxy.toml   what the file says, or all that is wrong
  vsockproxy health                  whether the daemon here is ready
  vsockproxy doctor                  what is wrong here, and what to do
  vsockproxy probe 3:80              whether that port of CID 3 answers
  vsockproxy guests                  where guests are, and this machine's VMs
  vsockproxy demo                    try it without a VM

\b
Addresses:
  8080  tcp:HOST:PORT                TCP; a bare port is the loopback's
  3:80  vsock:CID:PORT  vsock::PORT  AF_VSOCK; an empty CID listens on any
  vsock-mux:PATH:PORT                a VMM's socket, such as Firecracker's
  unix:PATH  unix:@NAME  fd:NAME     a Unix socket; one that systemd hands in
"""

app = typer.Typer(
    name="vsockproxy",
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
        readable=False,  # what to do about it is said when the file is read
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

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vsockproxy {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def default_file(places: Sequence[Path] = PLACES) -> Path | None:
    """The first of the places where a file is."""
    return next(filter(_is_there, places), None)


def source_of(file: Path | None) -> Callable[[], Config]:
    """What reads the configuration: from the file, or without one from the environment.

    The end with status 2 where there is neither, or both: nobody could say which is meant.
    """
    from vsockproxy.config import environment  # noqa: PLC0415 - at its use

    settings = environment.known_settings(os.environ)
    if file is None and not settings:
        fail(*environment.unknown_settings(os.environ), *_NO_CONFIGURATION, status=WRONG)
    if file is None:
        return partial(environment.environment_config, os.environ)
    if settings:
        fail(
            f"{file} and the environment ({', '.join(settings)}) both have settings:"
            " write all of them in the file, or give no file",
            status=WRONG,
        )
    from vsockproxy.config.load import load_config  # noqa: PLC0415 - at its use

    return partial(load_config, file)


def _is_there(place: Path) -> bool:
    try:
        place.stat()
    except PermissionError:  # whether it can be read is said when it is
        return True
    except OSError:
        return False
    return True


def load(file: Path) -> Config:
    """The configuration in a file, as `read`."""
    from vsockproxy.config.load import load_config  # noqa: PLC0415 - at its use

    return read(lambda: load_config(file))


def read(make: Callable[[], Config]) -> Config:
    """A configuration; every error in it is a line, and the end with status 2."""
    try:
        return make()
    except ConfigError as error:
        fail(*str(error).splitlines(), status=WRONG)


def fail(*lines: str, status: int = FAILED) -> NoReturn:
    """Say why, each line after the program's name, and end."""
    for line in filter(None, lines):
        typer.echo(f"vsockproxy: {line}", err=True)
    raise typer.Exit(status)
