"""The commands for programs that need no listener: connect, ssh-config."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, get_args

import click

from vsockproxy.cli.program import WRONG
from vsockproxy.cli.shared import (
    argument,
    command,
    config_option,
    fail,
    read,
    read_target,
    seconds,
)
from vsockproxy.config.source import NoSourceError, find_source
from vsockproxy.errors import AddressError, VsockproxyError, sentences

if TYPE_CHECKING:
    from vsockproxy.address.endpoint import Target
    from vsockproxy.config.guest import Guest
    from vsockproxy.config.settings import HalfClose, Route
    from vsockproxy.pump.transfer import EndReason

TRUNCATED: Final = 3
"""The exit status of a connection that was reset."""

_DOMAIN: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*", re.IGNORECASE)

wait_option: Final = click.option(
    "--wait", metavar="TIME", help="Dial again for this long, as in 60s."
)
pass_option: Final = click.option(
    "--pass-fd", is_flag=True, help="Pass the connected socket to ssh: ProxyUseFdpass."
)


@command()
@argument("target", metavar="TARGET", help="An address, as in 3:22.")
@config_option
@wait_option
@click.option(
    "--connect-timeout",
    default="5s",
    show_default=True,
    metavar="TIME",
    help="Limit for one dial.",
)
@click.option(
    "--half-close",
    default="auto",
    show_default=True,
    metavar="HOW",
    help="The input's end: auto, forward or hold.",
)
@click.option("--domain", metavar="NAME", help="TARGET is GUEST.NAME:PORT, with a guest's name.")
@pass_option
def connect(
    target: str,
    config: Path | None,
    *,
    wait: str | None,
    connect_timeout: str,
    half_close: str,
    domain: str | None,
    pass_fd: bool,
) -> None:
    """Join standard input and output to a target, as for ssh's ProxyCommand.

    TARGET has the form of a configuration file. The configuration is read
    only for a guest's name. The end of the input is a half-close of the
    target, as a client's is on a route. The command ends when both directions
    have ended: with status 0, or with 3 if the connection was reset. It is 1
    if the target cannot be dialled, 2 if the address is not valid.

    \b
    vsockproxy connect 3:22
    ssh -o ProxyCommand="vsockproxy connect --wait 60s web:22" root@web
    """
    from vsockproxy.address.endpoint import FdEndpoint  # noqa: PLC0415 - at its use
    from vsockproxy.config.duration import parse_timeout  # noqa: PLC0415 - at its use
    from vsockproxy.config.settings import Policy, Route  # noqa: PLC0415 - at its use

    policy = Policy(
        connect_timeout=seconds("--connect-timeout", connect_timeout, parse_timeout),
        half_close=_half_close(half_close),
    )
    patience = seconds("--wait", wait, parse_timeout) if wait is not None else 0.0
    if domain is not None:
        target = read(partial(_of_domain, target, domain, config), VsockproxyError)
    endpoint, guests = read(lambda: read_target(target, config), VsockproxyError)
    route = Route("connect", FdEndpoint("stdin"), endpoint, policy)
    work = partial(_relay, route, guests, patience, pass_fd)
    _run(work, endpoint)


def _half_close(text: str) -> HalfClose:
    from vsockproxy.config.settings import HalfClose  # noqa: PLC0415 - at its use

    choices: tuple[HalfClose, ...] = get_args(HalfClose)
    for choice in choices:
        if text == choice:
            return choice
    return fail(f"--half-close: {text!r} is not one of {', '.join(choices)}", status=WRONG)


def _of_domain(text: str, domain: str, file: Path | None) -> str:
    """Return ``GUEST:PORT`` for ``GUEST.domain:PORT``: never a CID, a host or another address.

    ssh writes a host's name in lower case, so that the case of a guest's name does not count.

    Raises:
      VsockproxyError: the text is not such a name, or the configuration cannot be read.
    """
    from vsockproxy.address.endpoint import check_guest_name  # noqa: PLC0415 - at its use

    host, _, port = text.rpartition(":")
    guest = host.removesuffix(f".{domain}")
    if guest == host:
        raise AddressError(f"{text!r} is not GUEST.{domain}:PORT: add .{domain}, or omit --domain")
    check_guest_name(guest)
    with suppress(NoSourceError):  # `read_target` tells
        names = find_source(file, os.environ).table("guests")
        guest = next((name for name in names if name.lower() == guest.lower()), guest)
    return f"{guest}:{port}"


async def _relay(route: Route, guests: Sequence[Guest], wait: float, pass_fd: bool) -> EndReason:
    from vsockproxy.config.settings import PumpSettings  # noqa: PLC0415 - at its use
    from vsockproxy.dial.unanswered import await_late_answers  # noqa: PLC0415 - at its use
    from vsockproxy.pump.choice import open_pump  # noqa: PLC0415 - at its use
    from vsockproxy.relay.standard_streams import join, pass_socket, reach  # noqa: PLC0415 - at its use

    try:
        target = await reach(route, guests, wait)
        if pass_fd:
            pass_socket(target)
            return "finished"
        async with open_pump(PumpSettings(threads=1)) as pump:
            return await join(target, route, pump)
    finally:
        await await_late_answers()


def _run(work: Callable[[], Awaitable[EndReason]], target: Target) -> NoReturn:
    """Run ``work`` until it or a signal ends it, and exit with its status."""
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.pump.transfer import ENDINGS  # noqa: PLC0415 - at its use
    from vsockproxy.relay.standard_streams import ReaderGoneError  # noqa: PLC0415 - at its use

    outcome: EndReason | signal.Signals = signal.SIGPIPE
    failures: list[str] = []
    try:
        outcome = trio.run(_until_signal, work)
    except* ReaderGoneError:
        pass  # as a program does that has not changed SIGPIPE
    except* VsockproxyError as group:
        failures = sentences(group)
    if failures:
        fail(*failures)
    if isinstance(outcome, signal.Signals):
        signal.signal(outcome, signal.SIG_DFL)
        os.kill(os.getpid(), outcome)
        sys.exit(128 + outcome)  # the signal is blocked
    if outcome != "finished":
        fail(f"the connection to {target} was truncated: {ENDINGS[outcome]}", status=TRUNCATED)
    sys.exit(0)


async def _until_signal(
    work: Callable[[], Awaitable[EndReason]],
) -> EndReason | signal.Signals:
    """Return what ``work`` returns, or the signal that has ended it; a second one kills."""
    import trio  # noqa: PLC0415 - at its use

    outcome: EndReason | signal.Signals = signal.SIGTERM

    async def watch(nursery: trio.Nursery) -> None:
        nonlocal outcome
        async for number in signals:
            outcome = signal.Signals(number)
            signal.signal(number, signal.SIG_DFL)
            nursery.cancel_scope.cancel()

    # One that is ignored, as nohup(1) has it, stays so.
    others = (signal.SIGINT, signal.SIGHUP)
    heard = [number for number in others if signal.getsignal(number) is not signal.SIG_IGN]
    with trio.open_signal_receiver(signal.SIGTERM, *heard) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery)
            outcome = await work()
            nursery.cancel_scope.cancel()
    return outcome


@command("ssh-config")
@config_option
@wait_option
@click.option(
    "--domain", default="vm", show_default=True, metavar="NAME", help="The hosts are GUEST.NAME."
)
@pass_option
def ssh_config(config: Path | None, *, wait: str | None, domain: str, pass_fd: bool) -> None:
    """Print lines for ssh_config: ssh GUEST.vm reaches a guest by its name.

    The guests are those of the configuration at the time of the connection.
    ssh, scp, sftp, rsync and git use these lines.

    \b
    vsockproxy ssh-config >>~/.ssh/config
    ssh root@web.vm
    """
    from vsockproxy.config.duration import parse_timeout  # noqa: PLC0415 - at its use

    if not _DOMAIN.fullmatch(domain):
        fail(f"--domain: {domain!r} is not a domain: use letters, digits, - and dots", status=WRONG)
    words = [*_program(), "connect", "--domain", domain]
    if config is not None:
        words += ["--config", str(config.absolute())]
    if wait is not None:
        seconds("--wait", wait, parse_timeout)
        words += ["--wait", wait]
    if pass_fd:
        words += ["--pass-fd"]
    # ssh expands % and gives the line to a shell.
    line = shlex.join(words).replace("%", "%%")
    if not line.isprintable():
        fail(f"{line!r} cannot be written to ssh_config: rename the file", status=WRONG)
    # The file may end without a newline.
    lines = [
        "",
        f"# The guests of vsockproxy by name, as in: ssh root@GUEST.{domain}",
        f"Host *.{domain}",
        f"    ProxyCommand {line} %h:%p",
        *(["    ProxyUseFdpass yes"] if pass_fd else []),
    ]
    click.echo(os.fsencode("\n".join(lines)))  # a path's own bytes, whatever the locale


def _program() -> list[str]:
    """Return the command line of this program, by absolute paths: ssh may have another PATH."""
    program = shutil.which(sys.argv[0])
    if program and Path(program).name == "vsockproxy":
        return [str(Path(program).absolute())]
    return [sys.executable, "-m", "vsockproxy"]
