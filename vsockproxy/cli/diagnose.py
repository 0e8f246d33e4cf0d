"""The commands that find problems: doctor, probe, cid."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsockproxy.cli.output import is_colored, printable, say, say_json
from vsockproxy.cli.program import FAILED
from vsockproxy.cli.shared import (
    PATH,
    argument,
    color_option,
    command,
    config_option,
    fail,
    json_option,
    read,
    read_target,
    seconds,
    socket_option,
)
from vsockproxy.config.source import NoSourceError, find_source
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.readable import duration

if TYPE_CHECKING:
    from vsockproxy.address.endpoint import Target
    from vsockproxy.config.guest import Guest
    from vsockproxy.config.settings import Config
    from vsockproxy.doctor.finding import Finding
    from vsockproxy.doctor.probe import Probe


@command()
@argument("target", metavar="TARGET", help="An address, as in 3:80.")
@config_option
@click.option("--wait", metavar="TIME", help="Retry for this long, as in 60s.")
@click.option(
    "--timeout", default="5s", show_default=True, metavar="TIME", help="Limit for one dial."
)
@click.option(
    "--send",
    default="",
    metavar="TEXT",
    help=r"Send TEXT (\r, \n, \xNN are escapes) and wait for data.",
)
@json_option
def probe(
    target: str,
    config: Path | None,
    *,
    wait: str | None,
    timeout: str,
    send: str,
    as_json: bool,
) -> None:
    """Dial a target as the daemon does; show the result and a remedy.

    TARGET has the form of a configuration file. The configuration is read
    only for a guest's name. The exit status is 0 if the target was reached, 1
    if not, 2 if the address is not valid.

    \b
    vsockproxy probe 3:80
    vsockproxy probe --wait 60s vsock-mux:/run/vm.sock:22
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.config.duration import parse_timeout  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.probe import describe  # noqa: PLC0415 - at its use

    limit = seconds("--timeout", timeout, parse_timeout)
    retry_time = seconds("--wait", wait, parse_timeout) if wait is not None else None
    endpoint, guests = read(lambda: read_target(target, config), VsockproxyError)
    text = read(lambda: _unescaped(send), VsockproxyError)
    result = trio.run(probe_target, endpoint, guests, limit, retry_time, text)
    if as_json:
        say_json(result.as_json(), indent=None)
    else:
        say(*describe(result))
    sys.exit(0 if result.reached else FAILED)


async def probe_target(
    target: Target, guests: Sequence[Guest], timeout: float, retry_time: float | None, send: bytes
) -> Probe:
    """Return the result of a dial, or of the last one within ``retry_time`` seconds.

    A VMM whose dial was given up may still answer, for a bounded time, before it returns.
    """
    from vsockproxy.dial.unanswered import await_late_answers  # noqa: PLC0415 - at its use
    from vsockproxy.doctor import probe as dialling  # noqa: PLC0415 - at its use
    from vsockproxy.guests.directory import Guests  # noqa: PLC0415 - at its use

    attempt = partial(dialling.probe, target, timeout, guests=Guests(guests), send=send)
    if retry_time is None:
        result = await attempt()
    else:
        with _progress() as show:
            result = await dialling.wait_for(attempt, retry_time, show)
    await await_late_answers()
    return result


@contextmanager
def _progress() -> Iterator[Callable[[Probe, float], None]]:
    """Yield a function that shows the last result and the time left, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _result, _left: None
        return
    from rich.console import Console  # noqa: PLC0415 - at its use

    console = Console(stderr=True, markup=False, highlight=False)
    spinner = "line" if console.options.ascii_only else "dots"
    with console.status("dialling", spinner=spinner) as status:
        yield lambda result, left: status.update(f"{duration(left)} left: {result.what}")


def _unescaped(text: str) -> bytes:
    try:
        # The bytes of what was typed are characters up to U+00FF meanwhile, as those of \\xNN are.
        return text.encode().decode("unicode_escape").encode("latin-1")
    except UnicodeDecodeError as error:
        raise VsockproxyError(f"--send: {error.reason}") from error
    except UnicodeEncodeError as error:
        sentence = "--send: \\u is for one byte, up to 00FF: type a greater character itself"
        raise VsockproxyError(sentence) from error


@command()
@json_option
def cid(as_json: bool) -> None:
    """Show the vsock CID of this machine, with its meaning on a terminal.

    CID 2 is a host of VMs; a greater one is a guest. The exit status is 1 if
    there is no CID or it cannot be read. vsockproxy works without it.
    """
    from vsockproxy.address.endpoint import CID_ANY  # noqa: PLC0415 - at its use
    from vsockproxy.dial.vsock import read_local_cid  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.transports import describe_cid, describe_cid_error  # noqa: PLC0415 - at its use

    number: int | None = None
    try:
        found = read_local_cid()
    except OSError as error:
        words = describe_cid_error(error)
    else:
        number = None if found == CID_ANY else found
        words = describe_cid(found)
    if as_json:
        say_json({"cid": number, "meaning": words}, indent=None)
        sys.exit(FAILED if number is None else 0)
    if number is None:
        fail(words)
    say(words if sys.stdout.isatty() else number)


@command()
@config_option
@socket_option
@click.option(
    "--root",
    type=PATH,
    default=Path("/"),
    show_default=True,
    metavar="DIR",
    help="Examine the machine whose /proc, /sys, ... are in DIR.",
)
@json_option
@color_option
def doctor(config: Path | None, socket: Path | None, *, root: Path, as_json: bool) -> None:
    """Find problems of this machine and show their remedies.

    Examines the machine, the process, the configuration, its targets and the
    running daemon. Without a configuration, the targets are those of the
    running daemon. Changes nothing and needs no root; run it as the daemon's
    user to get the daemon's results. With --root, dials nothing. The exit
    status is 0 if there are no problems, 1 if there are.
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.admin.client import find_socket  # noqa: PLC0415 - at its use
    from vsockproxy.doctor import report  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.examination import Attempts, examine  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.machine import read_machine  # noqa: PLC0415 - at its use
    from vsockproxy.doctor.running_daemon import ask_daemon  # noqa: PLC0415 - at its use

    here = root == Path("/")
    find = partial(find_socket, socket, config, os.environ)
    findings = trio.run(
        partial(
            examine,
            _configuration(config),
            machine=read_machine(root),
            attempts=Attempts() if here else None,
            daemon=ask_daemon(find) if here else None,
        )
    )
    if as_json:
        say_json(report.as_json(findings))
    else:
        _print(findings)
    sys.exit(FAILED if any(finding.level == "problem" for finding in findings) else 0)


def _configuration(file: Path | None) -> Config | ConfigError | None:
    """Return the configuration that `run` would use, its errors, or None."""
    try:
        return find_source(file, os.environ).load()
    except NoSourceError:
        return None
    except ConfigError as error:
        return error


def _print(findings: list[Finding]) -> None:
    from vsockproxy.doctor import report  # noqa: PLC0415 - at its use

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    for finding in findings:
        first, *rest = report.lines_of(finding, width)
        shown = printable(first)
        if is_colored(sys.stdout):
            level = click.style(finding.level, fg=report.COLOURS[finding.level], bold=True)
            shown = shown.replace(finding.level, level, 1)
        click.echo(shown, color=True)
        say(*rest)
    say(report.summary(findings))
