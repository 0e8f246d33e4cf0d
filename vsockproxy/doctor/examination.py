"""The doctor's examination: all checks in their order.

Owns: the order, and the checks that try something: an AF_VSOCK socket, the local CID, the
pump.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from vsockproxy.address.endpoint import AF_VSOCK
from vsockproxy.address.sockaddr import errno_of, new_socket
from vsockproxy.config.settings import Config, PumpSettings
from vsockproxy.dial import vsock
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.doctor.listeners import (
    Bind,
    judge_certificates,
    judge_listeners,
    judge_users,
    try_bind,
    untried,
)
from vsockproxy.doctor.machine import Machine
from vsockproxy.doctor.running_daemon import RunningDaemon, judge_daemon
from vsockproxy.doctor.sandbox import judge_sandbox
from vsockproxy.doctor.targets import chosen_by_clients, judge_targets
from vsockproxy.doctor.transports import judge_transports, uses_vsock
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.pump.choice import open_pump
from vsockproxy.readable import count

_MOST_SHOWN: Final = 10  # listeners that were not tried


def try_vsock() -> int:
    """Open an AF_VSOCK socket as the daemon does, close it, and return the errno or 0."""
    try:
        new_socket(AF_VSOCK).close()
    except OSError as error:
        return errno_of(error)
    return 0


def try_local_cid() -> int | OSError:
    """Return the local CID, or the error of reading it."""
    try:
        return vsock.read_local_cid()
    except OSError as error:
        return error


@dataclass(frozen=True, slots=True)
class Attempts:
    """Functions that try something on this machine; another one's files are judged without."""

    open_vsock: Callable[[], int] = try_vsock
    read_cid: Callable[[], int | OSError] = try_local_cid
    bind: Bind = try_bind


async def examine(
    config: Config | ConfigError | None,
    *,
    machine: Machine,
    attempts: Attempts | None,
    daemon: RunningDaemon | VsockproxyError | None = None,
) -> list[Finding]:
    """Return all findings, those about the machine first and about the targets last.

    Args:
      config: the configuration, or its errors; None for no configuration, and then the targets
        are those of the running daemon.
      attempts: None to judge only the machine's files and the configuration.
      daemon: the result of `ask_daemon`.
    """
    known = config if isinstance(config, Config) else None
    if known is None and isinstance(daemon, RunningDaemon):
        known = daemon.config()
    attempt = cid = None
    if attempts is not None:
        attempt = attempts.open_vsock() if _is_worth_trying(machine, known) else None
        cid = attempts.read_cid()
    findings = [
        *judge_sandbox(machine, known),
        *judge_transports(machine, known, attempt=attempt, cid=cid),
    ]
    if attempts is not None:
        findings.append(await _pump(known.pump if known else PumpSettings()))
    if config is not None or known is None:
        findings.extend(_configuration(config))
    if daemon is not None:
        findings.extend(judge_daemon(daemon, known))
    if attempts is not None and known is not None:
        findings.extend(judge_listeners(known, _running(daemon), attempts.bind))
        findings.extend(judge_certificates(known))
        findings.extend(judge_users(known))
        findings.extend(await judge_targets(known))
    findings.extend(_unchecked(known, attempts, daemon))
    return findings


def _running(daemon: object) -> frozenset[str]:
    """Return the addresses that the running daemon has."""
    if not isinstance(daemon, RunningDaemon):
        return frozenset()
    routes = (route["listen"] for route in daemon.routes if not route["closed_by"])
    return frozenset((*routes, *daemon.others))


def _unchecked(
    config: Config | None, attempts: Attempts | None, daemon: object
) -> Iterator[Finding]:
    """Yield a note of what was not looked at: nothing is said about it."""
    missing = []
    if attempts is None:
        missing.append("targets, listeners, certificates and the pump (--root dials nothing)")
    elif config is None:
        missing.append("targets, listeners and certificates (no configuration)")
    else:
        if listeners := untried(config):
            missing.append(f"the listeners {_listed(listeners)}")
        if routes := chosen_by_clients(config):
            missing.append(f"what clients of {_listed(routes)} ask for beyond the targets above")
        if config.metrics_tls is not None:
            missing.append("when the certificates expire")
    if not isinstance(daemon, RunningDaemon):
        missing.append("a running daemon: its routes, rejected clients and last reload")
    if missing:
        yield note("not checked", "; ".join(missing))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MOST_SHOWN]) + (" and others" if len(names) > _MOST_SHOWN else "")


def _is_worth_trying(machine: Machine, config: Config | None) -> bool:
    """Return whether to open AF_VSOCK: if a route needs it, or a sandbox may deny it.

    An attempt loads kernel modules; without a sandbox, the machine's files are sufficient.
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
        text = f"the native pump is configured but not available: {error}"
        return problem(
            "pump",
            text,
            'set choice = "auto" under [pump], or install gcc and reinstall vsockproxy',
        )


def _configuration(config: Config | ConfigError | None) -> Iterator[Finding]:
    match config:
        case None:
            yield note(
                "configuration", "not found: no targets were dialled", "name it with -c FILE"
            )
        case ConfigError():
            for line in str(config).splitlines():
                yield problem("configuration", line, "correct the file (docs/configuration.md)")
        case Config():
            routes = count(len(config.routes), "route")
            yield ok("configuration", f"{config.source}: {routes}")
