"""The commands that run the daemon: run, forward, demo."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NoReturn

import click

from vsockproxy.cli.output import is_colored, say
from vsockproxy.cli.program import FAILED, WRONG
from vsockproxy.cli.shared import (
    PATH,
    argument,
    color_option,
    command,
    config_option,
    fail,
    file_argument,
    one_file,
    read,
    seconds,
    source_of,
    whole_number,
    with_unit,
)
from vsockproxy.config.source import STDIN, STDIN_NAME, Source
from vsockproxy.errors import ConfigError, OrderError, VsockproxyError, sentences

if TYPE_CHECKING:
    from vsockproxy.config.document import Plain
    from vsockproxy.config.process import LogFormat, LogLevel
    from vsockproxy.config.settings import Config
    from vsockproxy.log.output import Output

_OUT_OF_MEMORY = b"""\
vsockproxy: no memory is left: the daemon has ended, and its connections with it; \
raise LimitAS= (or ulimit -v), or set max_connections
"""
_GRACE = 30.0  # seconds for which the demo's clients are held beyond the guest's delay


log_level_option: Final = click.option(
    "--log-level",
    envvar="VSOCKPROXY_LOG_LEVEL",
    show_envvar=True,
    metavar="LEVEL",
    help="debug, info, warning or error.",
)
log_format_option: Final = click.option(
    "--log-format",
    envvar="VSOCKPROXY_LOG_FORMAT",
    show_envvar=True,
    metavar="FORMAT",
    help="auto, human, logfmt or json.",
)


@command()
@file_argument
@config_option
@log_level_option
@log_format_option
@color_option
def run(
    file: Path | None, config: Path | None, log_level: str | None, log_format: str | None
) -> None:
    """Run the daemon with the routes of a file, or of $VSOCKPROXY_FORWARD.

    FILE - is standard input, which a reload cannot read again. SIGTERM or
    SIGINT drains: the daemon closes its listeners and waits at most
    drain_timeout for its connections to end. A second signal resets them at
    once. SIGHUP reloads the file, and drains where there is none. The exit
    status is 0 if every connection ended before that, 1 if some were reset.
    """
    source = source_of(one_file(file, config))
    log = _fixed_log(log_level, log_format)
    load = _cannot_load_again if source.file == STDIN else source.load
    _serve(read(source.load), load=load, is_file=source.file is not None, log=log)


def _cannot_load_again() -> Config:
    sentence = f"the configuration was read from {STDIN_NAME}, which has ended"
    raise OrderError(sentence, "restart the daemon, or run it from a file")


def _fixed_log(level: str | None, form: str | None) -> tuple[LogLevel | None, LogFormat | None]:
    """Return the options that were given; exit with status 2 if one is not valid."""
    leveled = _read("--log-level or $VSOCKPROXY_LOG_LEVEL", "log", level=level)
    formatted = _read("--log-format or $VSOCKPROXY_LOG_FORMAT", "log", format=form)
    return (
        None if leveled is None else leveled.log.level,
        None if formatted is None else formatted.log.format,
    )


def _read(option: str, table: str, **key: Plain | None) -> Config | None:
    """Return a configuration with an option's key, if it was given; exit if it is not valid."""
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    given = _given(**key)
    try:
        return forward_config([("unix:@a", "unix:@b")], {table: given}) if given else None
    except ConfigError as error:
        fail(*(f"{option}: {problem.message}" for problem in error.problems), status=WRONG)


@command()
@argument("addresses", metavar="LISTEN TARGET", nargs=-1, required=True, help="Pairs of addresses.")
@click.option("--metrics", metavar="LISTEN", help="Serve /metrics at this address, as in 9490.")
@click.option(
    "--admin", metavar="PATH", help="The control socket, for status, top and kill; or off."
)
@click.option("--connect-timeout", metavar="TIME", help="Limit for one dial, as in 5s.")
@click.option(
    "--idle-timeout", metavar="TIME", help="End connections idle for this long, as in 5m."
)
@click.option("--half-close", metavar="HOW", help="A client's half-close: auto, forward or hold.")
@log_level_option
@log_format_option
@color_option
def forward(
    addresses: Sequence[str],
    *,
    metrics: str | None,
    admin: str | None,
    connect_timeout: str | None,
    idle_timeout: str | None,
    half_close: str | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Run the daemon with a route from each LISTEN to the TARGET after it.

    \b
    vsockproxy forward 8080 3:80
    vsockproxy forward 0.0.0.0:2222 vsock-mux:/run/vm.sock:22 8000-8010 3:9000-9010
    vsockproxy forward vsock::5432 tcp:127.0.0.1:5432 --metrics 9490
    """
    if len(addresses) % 2:
        raise click.BadParameter(
            f"{addresses[-1]!r} has no TARGET: give pairs of LISTEN and TARGET"
        )
    from vsockproxy.config.duration import parse_bound, parse_timeout  # noqa: PLC0415 - at its use
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    policy = _given(
        connect_timeout=_time("--connect-timeout", connect_timeout, parse_timeout),
        idle_timeout=_time("--idle-timeout", idle_timeout, parse_bound),
        half_close=half_close,
    )
    tables = _given(
        metrics=_given(listen=metrics and _absolute(metrics)),
        admin=_given(socket=admin and (admin if admin == "off" else str(Path(admin).absolute()))),
        defaults=policy,
        log=_given(level=log_level, format=log_format),
    )
    _read("--half-close", "defaults", half_close=half_close)
    _read("--metrics", "metrics", listen=metrics and _absolute(metrics))
    _fixed_log(log_level, log_format)
    absolute = [_absolute(address) for address in addresses]
    pairs = list(zip(absolute[::2], absolute[1::2], strict=True))
    _serve(read(lambda: forward_config(pairs, tables)))


def _time(option: str, text: str | None, parse: Callable[[object], object]) -> str | None:
    """Return an option's duration as a file has it; exit with status 2 if it is not valid."""
    if text is None:
        return None
    seconds(option, text, parse)
    return with_unit(text)


def _absolute(address: str) -> str:
    """Return the address with a relative path of a socket made absolute."""
    kind, _, path = address.partition(":")
    if kind in ("unix", "vsock-mux") and path and path[0] not in "/@":
        return f"{kind}:{Path.cwd() / path}"
    return address


def _given(**keys: Plain | None) -> dict[str, Plain]:
    """Return a table of the options that were given."""
    return {key: value for key, value in keys.items() if value}


@command()
@click.option(
    "--port",
    type=whole_number,
    metavar="PORT",
    help="TCP port of the route to the guest; default 8080.",
)
@click.option(
    "--metrics-port", type=whole_number, metavar="PORT", help="TCP port of /metrics; default 9490."
)
@click.option(
    "--boot-delay",
    metavar="TIME",
    help="Start the guest after this time, as in 5s; clients are held.",
)
@click.option(
    "--config",
    "-c",
    type=PATH,
    metavar="FILE",
    help="Run these routes, with a guest for each vsock-mux target.",
)
@color_option
def demo(
    port: int | None, metrics_port: int | None, boot_delay: str | None, config: Path | None
) -> None:
    """Run the daemon with an embedded guest, to try vsockproxy without a VM.

    An HTTP service answers on the guest's port 80, behind a socket with
    Firecracker's protocol. The demo removes the socket when it ends. A reload
    reads FILE again, and starts no other guest.
    """
    from vsockproxy.cli import demo as embedded  # noqa: PLC0415 - at its use

    if config and (port or metrics_port):
        raise click.BadParameter(
            f"--config contradicts --port and --metrics-port: set the ports in {config}"
        )
    from vsockproxy.config.duration import parse_duration  # noqa: PLC0415 - at its use

    delay = seconds("--boot-delay", boot_delay, parse_duration) if boot_delay is not None else 0.0
    with TemporaryDirectory(prefix="vsockproxy-demo-") as folder:
        load = (
            Source(config, os.environ).load
            if config
            else partial(
                embedded.demo_config,
                str(Path(folder, "guest.vsock")),
                port or 8080,
                metrics_port or 9490,
                delay and delay + _GRACE,
            )
        )
        built = embedded.with_admin(read(load), os.environ, Path(folder))
        _serve(
            built,
            load=(lambda: embedded.with_same_admin(load(), built)) if config else None,
            is_file=config is not None,
            beside=embedded.embedded_guests(built, delay, folder=Path(folder)),
            ready=lambda: say(*embedded.greeting(built, os.environ, delay).split("\n")),
            hint=(
                f"to use other ports or paths, edit {config}"
                if config
                else "to use other ports: vsockproxy demo --port N --metrics-port M"
            ),
        )


def _serve(
    config: Config,
    *,
    beside: AbstractAsyncContextManager[None] | None = None,
    ready: Callable[[], object] = lambda: None,
    hint: str = "",
    load: Callable[[], Config] | None = None,
    is_file: bool = False,
    log: tuple[LogLevel | None, LogFormat | None] = (None, None),
) -> NoReturn:
    """Run the daemon until a signal ends it, and exit with its status.

    Args:
      beside: runs while the daemon does.
      ready: called when every listener is open.
      hint: a remedy to print after an error.
      load: reads the configuration again for a reload; None if it cannot be reloaded.
      is_file: whether it can have changed, so that SIGHUP asks for a reload.
      log: the level and the format that win over the configuration's, where they are given.
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.daemon.signals import supervise  # noqa: PLC0415 - at its use

    failures: list[str] = []
    drained, status = False, FAILED
    with closing(_configured_log(config, log)):
        try:
            serve = partial(supervise, load=load, is_file=is_file)
            with _one_line_without_memory():
                drained = trio.run(serve, config, beside or nullcontext(), _started(ready))
        except* ConfigError as group:  # of a certificate
            failures, status = sentences(group), WRONG
        except* (VsockproxyError, OSError, ImportError) as group:
            failures = sentences(group)
    if failures:
        fail(*failures, hint, status=status)
    sys.exit(0 if drained else FAILED)


def _started(ready: Callable[[], object]) -> Callable[[], None]:
    """Return a function that ends the start: it enables garbage collection, and calls ``ready``.

    What the start made is kept until the end, so no collection looks through it again: that
    would hold the event loop for 30 ms and more each time.
    """

    def started() -> None:
        gc.freeze()
        gc.enable()
        ready()

    return started


def _configured_log(config: Config, fixed: tuple[LogLevel | None, LogFormat | None]) -> Output:
    from vsockproxy.log.output import configure  # noqa: PLC0415 - at its use

    level, form = fixed
    return configure(config.log, colors=is_colored(sys.stderr), level=level, form=form)


@contextmanager
def _one_line_without_memory() -> Iterator[None]:
    """End the process with one line if the block fails for want of memory.

    The event loop does not survive that error, and what its tasks would print at an orderly exit
    hides the cause. The kernel closes the sockets.
    """
    try:
        yield
    except BaseException as error:
        if _lacks_memory(error):
            os.write(2, _OUT_OF_MEMORY)
            os._exit(FAILED)
        raise


def _lacks_memory(error: BaseException | None) -> bool:
    """Return whether a MemoryError is the error, one of its group, or its cause."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            return any(map(_lacks_memory, error.exceptions))
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False
