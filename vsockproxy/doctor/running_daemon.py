"""What a running daemon says of itself: its routes, and why their last dials failed.

Owns: the questions to the daemon and what its answers mean.  Asks by the operator's socket,
and steers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Any, Final

from vsockproxy.address.endpoint import GuestEndpoint, UnixEndpoint
from vsockproxy.address.grammar import parse_target
from vsockproxy.admin.client import Answer, Client, DaemonHangsError
from vsockproxy.config.document import Document, Plain
from vsockproxy.config.load import build_config
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.errors import AddressError, VsockproxyError
from vsockproxy.readable import duration
from vsockproxy.reasons import remedy_for

SUBJECT: Final = "daemon"

_TIMEOUT: Final = 5.0
_OF_THE_DAEMON: Final = frozenset({"denied", "blocked", "no_descriptors", "no_resources"})
"""The reasons that depend on who dials: that we succeed says nothing about the daemon."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon's answers, as `admin.schema` has them, and where it was asked."""

    socket: Path
    status: Answer
    routes: list[Answer]

    def config(self) -> Config | None:
        """The routes that it runs, as a configuration; None where there are none to dial."""
        tables: list[Plain] = [
            {"name": route["name"], "listen": route["listen"], "target": target["address"]}
            for route in self.routes
            for target in route["targets"][:1]
            if _is_dialable(target["address"])
        ]
        try:
            return build_config(Document("the running daemon", {"route": tables}))
        except VsockproxyError:  # one of another version, with addresses of its own
            return None


def ask_daemon(find: Callable[[], Path]) -> Daemon | VsockproxyError:
    """The daemon at the socket that is found, or why there is none to be asked."""
    try:
        client = Client(find(), _TIMEOUT)
        return Daemon(client.path, client.get("/v1/status"), client.get("/v1/routes")["routes"])
    except VsockproxyError as error:
        return error


def judge_daemon(daemon: Daemon | VsockproxyError, config: Config | None) -> Iterator[Finding]:
    """Findings about the daemon and its routes; ``config`` is what a file says, if one does."""
    if isinstance(daemon, VsockproxyError):
        text = str(daemon).partition("\n")[0]
        if isinstance(daemon, DaemonHangsError):
            yield problem(SUBJECT, text, "see its log; `kill -ABRT` ends it with a core dump")
        else:
            yield note(SUBJECT, text)
        return
    yield from _status(daemon, config)
    for route in daemon.routes:
        yield from _route(route)


def _status(daemon: Daemon, config: Config | None) -> Iterator[Finding]:
    status = daemon.status
    text = (
        f"pid {status['pid']} runs (from {status['source']}); {status['pump']} pump;"
        f" routes: {len(daemon.routes)}, live connections: {status['live']}"
    )
    if status["ready"]:
        yield ok(SUBJECT, text)
    else:
        not_ready = "; ".join(status["not_ready"])
        yield problem(
            SUBJECT, f"{text}; it is not ready: {not_ready}", "vsockproxy status; its log"
        )
    if config is not None and _has_changed(config, daemon):
        yield note(SUBJECT, f"{config.source} has changed since it was read", "vsockproxy reload")


def _has_changed(config: Config, daemon: Daemon) -> bool:
    """Whether the file that the daemon runs says something else by now."""
    if config.admin.socket == "auto":  # the daemon has resolved it: to where it was asked
        here = replace(config.admin, socket=UnixEndpoint(str(daemon.socket)))
        config = replace(config, admin=here)
    source, fingerprint = daemon.status["source"], daemon.status["fingerprint"]
    return bool(config.source == source and config.fingerprint != fingerprint)


def _route(route: dict[str, Any]) -> Iterator[Finding]:
    subject = f"route {route['name']}"
    if route["state"] in ("paused", "draining", "drained"):
        text = f"an operator has {'paused' if route['state'] == 'paused' else 'drained'} it"
        yield problem(subject, text, f"vsockproxy resume {route['name']}")
    elif route["state"] == "queued":
        yield note(subject, f"clients wait: {route['queued_by']} is reached")
    last = route["last_error"]
    if last is None:
        return
    number = sum(route["dial_failures"].values())
    text = (
        f"the daemon's last failed dial was {duration(time() - last['time'])} ago"
        f" ({number} in all): {last['message']}"
    )
    if last["reason"] in _OF_THE_DAEMON:
        yield problem(subject, text, _remedy(route, last))
    else:
        yield note(subject, text)


def _remedy(route: Answer, last: Answer) -> str:
    try:
        endpoint = parse_target(route["targets"][0]["address"])
    except AddressError:
        return "see the daemon's log"
    return remedy_for("dial", endpoint, last["reason"])


def _is_dialable(address: str) -> bool:
    try:
        return not isinstance(parse_target(address), GuestEndpoint)
    except AddressError:
        return False
