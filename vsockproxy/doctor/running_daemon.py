"""The check of a running daemon: its status, its routes and their last failed dials.

Owns: the requests to the daemon's control socket, and the judgement of its answers.  Changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import Any, Final

from vsockproxy.address.endpoint import GuestEndpoint, UnixEndpoint
from vsockproxy.address.grammar import parse_target
from vsockproxy.admin.client import Answer, Client, DaemonHangsError
from vsockproxy.admit.gate import REASONS
from vsockproxy.config.document import Document, Plain
from vsockproxy.config.load import build_config, load_config
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.errors import AddressError, VsockproxyError
from vsockproxy.readable import count, duration, escape

SUBJECT: Final = "daemon"

_TIMEOUT: Final = 5.0
_OF_THE_DAEMON: Final = frozenset({"denied", "blocked", "no_descriptors", "no_resources"})
"""Reasons that depend on the dialling process: the doctor's own success does not refute them."""


@dataclass(frozen=True, slots=True)
class RunningDaemon:
    """A daemon's control socket and its answers, in the form of `admin.schema`.

    Attributes:
      others: the addresses where it listens for HTTP.
    """

    socket: Path
    status: Answer
    routes: list[Answer]
    others: tuple[str, ...] = ()

    def config(self) -> Config | None:
        """Return the daemon's configuration: its file, else its routes that can be dialled.

        None if it is invalid.
        """
        file = Path(self.status["source"])
        if file.is_absolute():
            with suppress(VsockproxyError):  # another user's, or broken since
                return load_config(file)
        tables: list[Plain] = [
            {"name": route["name"], "listen": route["listen"], "target": target["address"]}
            for route in self.routes
            for target in route["targets"][:1]
            if _is_dialable(target["address"])
        ]
        try:
            return build_config(Document("the running daemon", {"route": tables}))
        except VsockproxyError:  # a daemon of another version may have addresses unknown here
            return None


def ask_daemon(find: Callable[[], Path]) -> RunningDaemon | VsockproxyError:
    """Query the daemon at the socket that ``find`` returns; return its answers or the error.

    Blocks, for at most 5 seconds in each read and write. An error of ``find`` is returned too.
    """
    try:
        client = Client(find(), _TIMEOUT)
        status, routes = client.get("/v1/status"), client.get("/v1/routes")["routes"]
        metrics = client.get("/v1/config")["metrics"]
        listed = metrics if isinstance(metrics, list) else [metrics]
        others = (f"unix:{client.path}", *filter(None, listed))
        return RunningDaemon(client.path, status, routes, others)
    except VsockproxyError as error:
        return error


def judge_daemon(
    daemon: RunningDaemon | VsockproxyError, config: Config | None
) -> Iterator[Finding]:
    """Yield findings about the daemon and its routes; ``config`` is a file's, or None."""
    if isinstance(daemon, VsockproxyError):
        text = str(daemon).partition("\n")[0]
        if isinstance(daemon, DaemonHangsError):
            yield problem(SUBJECT, text, "see its log; `kill -ABRT PID` ends it with a core dump")
        else:
            yield note(SUBJECT, text)
        return
    yield from _status(daemon, config)
    for route in daemon.routes:
        yield from _targets(route)
        yield from _route(route)


def _status(daemon: RunningDaemon, config: Config | None) -> Iterator[Finding]:
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
            SUBJECT,
            f"{text}; it is not ready: {not_ready}",
            "see vsockproxy status and the daemon's log",
        )
    if failure := status["failed_reload"]:
        ago = duration(time() - failure["time"])
        for line in failure["problems"]:
            text = f"the last reload failed {ago} ago, the old configuration runs: {line}"
            yield problem(SUBJECT, text, "correct it, then vsockproxy reload")
    if config is not None and _has_changed(config, daemon):
        yield note(
            SUBJECT, f"{config.source} has changed since the daemon read it", "vsockproxy reload"
        )


def _has_changed(config: Config, daemon: RunningDaemon) -> bool:
    """Return whether the daemon's file has changed since the daemon read it."""
    if config.admin.socket == "auto":  # the daemon resolved it to this socket
        here = replace(config.admin, socket=UnixEndpoint(str(daemon.socket)))
        config = replace(config, admin=here)
    source, fingerprint = daemon.status["source"], daemon.status["fingerprint"]
    return bool(escape(config.source) == source and config.fingerprint != fingerprint)


def _route(route: dict[str, Any]) -> Iterator[Finding]:
    subject = f"route {route['name']}"
    if closed := route["closed_by"]:
        text, _, remedy = closed.partition("; ")
        yield problem(subject, text, remedy) if remedy else note(subject, text)
    elif route["state"] == "queued":
        yield note(subject, f"clients are queued: {route['queued_by']} is reached")
    yield from _rejections(subject, route["rejected"])
    last = route["last_error"]
    if last is None:
        return
    number = sum(route["dial_failures"].values())
    all_told = f" ({number} in all)" if number else ""  # not of a dial again for a held client
    text = (
        f"the daemon's last failed dial was {duration(time() - last['time'])} ago{all_told}:"
        f" {last['message']}"
    )
    if last["reason"] in _OF_THE_DAEMON:
        yield problem(subject, text, last["remedy"])
    elif all(target["state"] == "up" for target in route["targets"]):
        yield note(subject, f"{text}; a later dial was answered")
    else:
        yield note(subject, text, last["remedy"])


def _targets(route: dict[str, Any]) -> Iterator[Finding]:
    """Yield a problem for each guest that the daemon found down: it alone may know the address."""
    for target in route["targets"]:
        if not _is_dialable(target["address"]) and target["state"] in ("down", "refused"):
            text = f"{target['address']} is {target['state']}: {target['last_error']}"
            yield problem(f"route {route['name']}", text, "see vsockproxy status")


def _rejections(subject: str, rejected: dict[str, int]) -> Iterator[Finding]:
    """Yield a note for each rule that has closed clients; which ones is in the log."""
    for reason, number in rejected.items():
        text = f"{count(number, 'client')} rejected ({reason}): {REASONS[reason]}"
        yield note(subject, text, "see client_rejected in the log, and the route's settings")


def _is_dialable(address: str) -> bool:
    try:
        return not isinstance(parse_target(address), GuestEndpoint)
    except AddressError:
        return False
