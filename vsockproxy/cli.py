"""The commands: words and files in, exit statuses and readable texts out.

Owns: the command line, and what an error looks like to a person.  Decides nothing about
routes.  What a command needs is imported when it runs:
`--help` and completion must not wait for trio.

Exit statuses: 0 for done and for drained, 1 for a failure or a forced end, 2 for a wrong
configuration or command line.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from vsockproxy import __version__
from vsockproxy.errors import ConfigError, VsockproxyError, sentences

if TYPE_CHECKING:
    from vsockproxy.document import Plain
    from vsockproxy.route import Config

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


# --- run, forward, demo -------------------------------------------------------------------

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        envvar="VSOCKPROXY_CONFIG",
        metavar="FILE",
        help="TOML or YAML; else /etc/vsockproxy/config.toml or .yaml.",
    ),
]


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run the daemon: every route of a file, or of $VSOCKPROXY_FORWARD.

    SIGTERM or SIGINT drains: no new connections, live ones may end within
    drain_timeout. A second signal ends at once. The exit status is 0 when all
    connections ended by themselves, 1 when some were cut off.
    """
    source = _source(config or default_file())
    _serve(_read(source), load=source)


@app.command()
def forward(
    addresses: Annotated[
        list[str], typer.Argument(metavar="LISTEN TARGET", help="Addresses, in pairs.")
    ],
    *,
    metrics: Annotated[
        str | None, typer.Option(metavar="LISTEN", help="Serve /metrics there, as in 9490.")
    ] = None,
    connect_timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Bound for one dial, as in 5s.")
    ] = None,
    idle_timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="End connections that are silent so long.")
    ] = None,
    half_close: Annotated[
        str | None, typer.Option(metavar="HOW", help="auto, forward or hold a client's half-close.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="auto, human, logfmt or json.")
    ] = None,
) -> None:
    """Relay from each LISTEN to the TARGET after it, without a file.

    \b
    vsockproxy forward 8080 3:80
    vsockproxy forward 0.0.0.0:2222 vsock-mux:/run/vm.sock:22 8000-8010 3:9000-9010
    vsockproxy forward vsock::5432 tcp:127.0.0.1:5432 --metrics 9490
    """
    if len(addresses) % 2:
        raise typer.BadParameter(f"{addresses[-1]!r} has no TARGET: write LISTEN TARGET pairs")
    from vsockproxy.config import forward_config  # noqa: PLC0415 - see the module's docstring

    policy = _written(
        connect_timeout=connect_timeout, idle_timeout=idle_timeout, half_close=half_close
    )
    tables = _written(
        metrics=_written(listen=metrics),
        defaults=policy,
        log=_written(level=log_level, format=log_format),
    )
    pairs = list(zip(addresses[::2], addresses[1::2], strict=True))
    _serve(_read(lambda: forward_config(pairs, tables)))


def _written(**keys: Plain | None) -> dict[str, Plain]:
    """The table of those keys that were given."""
    return {key: value for key, value in keys.items() if value}


@app.command()
def demo(
    port: Annotated[
        int | None, typer.Option(help="The TCP port that leads to the guest, 8080 if not given.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="The TCP port of /metrics, 9490 if not given.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="FILE", help="Routes of your own to such a guest."),
    ] = None,
) -> None:
    """Run the daemon with an embedded guest, to try it without a VM.

    A small HTTP service answers on the guest's port 80, behind a socket that
    speaks Firecracker's protocol. The guest and its socket end with the demo.
    """
    from vsockproxy import demo as embedded  # noqa: PLC0415 - see the module's docstring

    if config and (port or metrics_port):
        raise typer.BadParameter(f"the ports are {config}'s: edit it, or leave --config out")
    with TemporaryDirectory(prefix="vsockproxy-demo-") as folder:
        mux = str(Path(folder, "guest.vsock"))
        built = (
            _load(config)
            if config
            else _read(lambda: embedded.demo_config(mux, port or 8080, metrics_port or 9490))
        )
        _serve(
            built,
            beside=embedded.embedded_guests(built),
            ready=lambda: typer.echo(embedded.greeting(built)),
            hint=(
                f"other ports and paths: edit {config}"
                if config
                else "other ports: vsockproxy demo --port N --metrics-port M"
            ),
        )


def _serve(
    config: Config,
    *,
    beside: AbstractAsyncContextManager[None] | None = None,
    ready: Callable[[], object] = lambda: None,
    hint: str = "",
    load: Callable[[], Config] | None = None,
) -> NoReturn:
    """Run the daemon until a signal ends it, and exit with its status."""
    import trio  # noqa: PLC0415 - see the module's docstring

    from vsockproxy.log import configure  # noqa: PLC0415 - see the module's docstring
    from vsockproxy.process import supervise  # noqa: PLC0415 - see the module's docstring

    configure(config.log)
    failures: list[str] = []
    drained = False
    try:
        drained = trio.run(supervise, config, beside or nullcontext(), ready, load)
    except* (VsockproxyError, OSError, ImportError) as group:
        failures = sentences(group)
    if failures:
        _fail(*failures, hint)
    raise typer.Exit(0 if drained else FAILED)


# --- check, version -----------------------------------------------------------------------


@app.command(short_help="Show the routes of a file, or all that is wrong in it.")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="TOML or YAML.")],
) -> None:
    """Show the routes of a configuration file, or all that is wrong in it.

    Nothing is opened. The exit status is 2 when something is wrong.
    """
    from vsockproxy.listing import print_routes  # noqa: PLC0415 - see the module's docstring

    print_routes(_load(file), sys.stdout)


@app.command(short_help="Show the version, and which pump runs and why.")
def version() -> None:
    """Show the version, the Python it runs on, and which pump moves the bytes and why."""
    import trio  # noqa: PLC0415 - see the module's docstring

    typer.echo(f"vsockproxy {__version__}")
    typer.echo(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    typer.echo(f"pump: {trio.run(_describe_pump)}")


async def _describe_pump() -> str:
    from vsockproxy.pump import open_pump  # noqa: PLC0415 - see the module's docstring
    from vsockproxy.route import PumpSettings  # noqa: PLC0415 - see the module's docstring

    async with open_pump(PumpSettings()) as pump:
        return f"{pump.name} ({pump.why})"


# --- health -------------------------------------------------------------------------------


@app.command(short_help="Ask the running daemon whether it is ready.")
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
    from vsockproxy import health as probe  # noqa: PLC0415 - see the module's docstring

    try:
        if url:
            answer = probe.ask_url(url, timeout)
        else:
            listen = metrics or probe.metrics_listen(config or default_file(), os.environ)
            answer = probe.ask(listen, timeout)
    except VsockproxyError as error:
        _fail(*str(error).splitlines())
    typer.echo(answer)


# --- files and errors ---------------------------------------------------------------------


def default_file(places: Sequence[Path] = PLACES) -> Path | None:
    """The first of the places where a file is."""
    return next(filter(_is_there, places), None)


def _source(file: Path | None) -> Callable[[], Config]:
    """What reads the configuration: from the file, or without one from the environment.

    The end with status 2 where there is neither, or both: nobody could say which is meant.
    """
    from vsockproxy import environment  # noqa: PLC0415 - see the module's docstring

    settings = environment.known_settings(os.environ)
    if file is None and not settings:
        _fail(*environment.unknown_settings(os.environ), *_NO_CONFIGURATION, status=WRONG)
    if file is None:
        return partial(environment.environment_config, os.environ)
    if settings:
        _fail(
            f"{file} and the environment ({', '.join(settings)}) both have settings:"
            " write all of them in the file, or give no file",
            status=WRONG,
        )
    from vsockproxy.config import load_config  # noqa: PLC0415 - see the module's docstring

    return partial(load_config, file)


def _is_there(place: Path) -> bool:
    try:
        place.stat()
    except PermissionError:  # whether it can be read is said when it is
        return True
    except OSError:
        return False
    return True


def _load(file: Path) -> Config:
    from vsockproxy.config import load_config  # noqa: PLC0415 - see the module's docstring

    return _read(lambda: load_config(file))


def _read(make: Callable[[], Config]) -> Config:
    """A configuration; every error in it is a line, and the end with status 2."""
    try:
        return make()
    except ConfigError as error:
        _fail(*str(error).splitlines(), status=WRONG)


def _fail(*lines: str, status: int = FAILED) -> NoReturn:
    for line in filter(None, lines):
        typer.echo(f"vsockproxy: {line}", err=True)
    raise typer.Exit(status)
