"""The commands that are the daemon: run, forward, demo."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from vsockproxy.cli.program import (
    FAILED,
    ConfigOption,
    fail,
    read,
    source_of,
)
from vsockproxy.config.source import Source
from vsockproxy.errors import VsockproxyError, sentences

if TYPE_CHECKING:
    from vsockproxy.config.document import Plain
    from vsockproxy.config.settings import Config

_GRACE = 30.0  # seconds for which the demo's clients wait beyond the guest's delay


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(short_help="Run the daemon, by a file or $VSOCKPROXY_FORWARD.")(run)
    app.command(short_help="Relay from each LISTEN to its TARGET, without a file.")(forward)
    app.command(short_help="Run the daemon with an embedded guest: try it, no VM.")(demo)


def run(config: ConfigOption = None) -> None:
    """Run the daemon: every route of a file, or of $VSOCKPROXY_FORWARD.

    SIGTERM or SIGINT drains: no new connections, live ones may end within
    drain_timeout. A second signal ends at once. The exit status is 0 when all
    connections ended by themselves, 1 when some were cut off.
    """
    source = source_of(config)
    _serve(read(source.load), load=source.load)


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
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    policy = _written(
        connect_timeout=connect_timeout, idle_timeout=idle_timeout, half_close=half_close
    )
    tables = _written(
        metrics=_written(listen=metrics and _from_here(metrics)),
        defaults=policy,
        log=_written(level=log_level, format=log_format),
    )
    absolute = [_from_here(address) for address in addresses]
    pairs = list(zip(absolute[::2], absolute[1::2], strict=True))
    _serve(read(lambda: forward_config(pairs, tables)))


def _from_here(address: str) -> str:
    """The address, with the path of a socket from the shell's folder on made a whole one."""
    kind, _, path = address.partition(":")
    if kind in ("unix", "vsock-mux") and path and path[0] not in "/@":
        return f"{kind}:{Path.cwd() / path}"
    return address


def _written(**keys: Plain | None) -> dict[str, Plain]:
    """The table of those keys that were given."""
    return {key: value for key, value in keys.items() if value}


def demo(
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", help="The TCP port that leads to the guest, 8080 if not given."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="The TCP port of /metrics, 9490 if not given."),
    ] = None,
    boot_delay: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="The guest comes so late, as in 5s; clients wait."),
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
    from vsockproxy.cli import demo as embedded  # noqa: PLC0415 - at its use

    if config and (port or metrics_port):
        raise typer.BadParameter(f"the ports are {config}'s: edit it, or leave --config out")
    late = _seconds(boot_delay)
    with TemporaryDirectory(prefix="vsockproxy-demo-") as folder:
        mux = str(Path(folder, "guest.vsock"))
        built = (
            read(Source(config, os.environ).load)
            if config
            else read(
                lambda: embedded.demo_config(
                    mux, port or 8080, metrics_port or 9490, late and late + _GRACE
                )
            )
        )
        built = embedded.with_admin(built, os.environ, Path(folder))
        _serve(
            built,
            beside=embedded.embedded_guests(built, late),
            ready=lambda: typer.echo(embedded.greeting(built, os.environ, late)),
            hint=(
                f"other ports and paths: edit {config}"
                if config
                else "other ports: vsockproxy demo --port N --metrics-port M"
            ),
        )


def _seconds(text: str | None) -> float:
    from vsockproxy.config.duration import parse_duration  # noqa: PLC0415 - at its use

    try:
        return 0.0 if text is None else parse_duration(text)
    except VsockproxyError as error:
        raise typer.BadParameter(str(error)) from error


def _serve(
    config: Config,
    *,
    beside: AbstractAsyncContextManager[None] | None = None,
    ready: Callable[[], object] = lambda: None,
    hint: str = "",
    load: Callable[[], Config] | None = None,
) -> NoReturn:
    """Run the daemon until a signal ends it, and exit with its status."""
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.daemon.process import supervise  # noqa: PLC0415 - at its use
    from vsockproxy.log.output import configure  # noqa: PLC0415 - at its use

    failures: list[str] = []
    drained = False
    with closing(configure(config.log)):
        try:
            drained = trio.run(supervise, config, beside or nullcontext(), ready, load)
        except* (VsockproxyError, OSError, ImportError) as group:
            failures = sentences(group)
    if failures:
        fail(*failures, hint)
    raise typer.Exit(0 if drained else FAILED)
