"""The doctor's round: which questions are asked of this machine, and in which order.

Owns: the order, and what the machine is asked beside its files: an AF_VSOCK socket, the
local CID, the pump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vsockproxy.address.endpoint import AF_VSOCK
from vsockproxy.address.sockaddr import errno_of, new_socket
from vsockproxy.config.settings import Config, PumpSettings
from vsockproxy.dial import vsock
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.doctor.machine import Machine
from vsockproxy.doctor.running_daemon import Daemon, judge_daemon
from vsockproxy.doctor.sandbox import judge_process
from vsockproxy.doctor.targets import ask_targets
from vsockproxy.doctor.transports import judge_transports, uses_vsock
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.pump.native import open_pump
from vsockproxy.readable import count


def try_vsock() -> int:
    """The errno of opening an AF_VSOCK socket as the daemon does; 0 for success."""
    try:
        new_socket(AF_VSOCK).close()
    except OSError as error:
        return errno_of(error)
    return 0


def try_local_cid() -> int | OSError:
    """The local CID, or why it cannot be read."""
    try:
        return vsock.read_local_cid()
    except OSError as error:
        return error


@dataclass(frozen=True, slots=True)
class Attempts:
    """What is tried on the machine itself; another's files are judged without."""

    open_vsock: Callable[[], int] = try_vsock
    read_cid: Callable[[], int | OSError] = try_local_cid


async def examine(
    config: Config | ConfigError | None,
    *,
    machine: Machine,
    attempts: Attempts | None,
    daemon: Daemon | VsockproxyError | None = None,
) -> list[Finding]:
    """All findings, about the machine first and the targets last; never raises.

    ``config`` is the configuration, or what is wrong in it, or None where there is none; the
    targets are the running daemon's then.  Without ``attempts`` only the machine's facts and
    the configuration are judged.  ``daemon`` is what `ask_daemon` gave.
    """
    known = config if isinstance(config, Config) else None
    if known is None and isinstance(daemon, Daemon):
        known = daemon.config()
    attempt = cid = None
    if attempts is not None:
        attempt = attempts.open_vsock() if _is_worth_trying(machine, known) else None
        cid = attempts.read_cid()
    findings = [
        *judge_process(machine, known),
        *judge_transports(machine, known, attempt=attempt, cid=cid),
    ]
    if attempts is not None:
        findings.append(await _pump(known.pump if known else PumpSettings()))
    if config is not None or known is None:
        findings.extend(_configuration(config))
    if daemon is not None:
        findings.extend(judge_daemon(daemon, known))
    if attempts is not None and known is not None:
        findings.extend(await ask_targets(known))
    return findings


def _is_worth_trying(machine: Machine, config: Config | None) -> bool:
    """Whether to open AF_VSOCK: where a route needs it, or something here may deny it.

    To try has the kernel load modules, and where nothing filters, the files say enough.
    """
    if config is not None:
        return uses_vsock(config)
    confined = bool(machine.seccomp or machine.label)
    return confined and machine.has_vsock is not False


async def _pump(settings: PumpSettings) -> Finding:
    try:
        async with open_pump(settings) as pump:
            text = f"{pump.name}: {pump.why}"
            if pump.name == "portable" and settings.choice == "auto":
                return note("pump", text)
            return ok("pump", text)
    except (ImportError, OSError) as error:
        text = f"native was asked for and cannot be had: {error}"
        return problem("pump", text, 'choice = "auto" under [pump], or reinstall with gcc there')


def _configuration(config: Config | ConfigError | None) -> Iterator[Finding]:
    match config:
        case None:
            yield note("configuration", "there is none: no targets were looked at", "-c FILE")
        case ConfigError():
            for line in str(config).splitlines():
                yield problem("configuration", line, "correct it: docs/configuration.md")
        case Config():
            routes = count(len(config.routes), "route")
            yield ok("configuration", f"{config.source}: {routes}")
