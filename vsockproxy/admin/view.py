"""The daemon's state as the API shows it.

Owns: the conversion of counters, connections and configuration to the models of `schema`.
Changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from time import monotonic, time
from typing import Any, Final

from pydantic_core import to_json

from vsockproxy import __version__
from vsockproxy.address.endpoint import (
    FdEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.admin import schema
from vsockproxy.admin.daemon_interface import Daemon
from vsockproxy.admin.rates import Rates
from vsockproxy.config.added import Added
from vsockproxy.config.changes import TABLES, Facts, RouteFacts
from vsockproxy.config.guest import Guest
from vsockproxy.config.permission import Grant
from vsockproxy.config.settings import Config, Route
from vsockproxy.connection import Connection
from vsockproxy.log.output import current_level
from vsockproxy.readable import escape
from vsockproxy.stats import RouteStats, TargetState

_AS_TEXT: Final = (TcpEndpoint, VsockEndpoint, UnixEndpoint, MuxEndpoint, FdEndpoint, Grant)


def status(daemon: Daemon) -> schema.Status:
    """Return the daemon's state."""
    not_ready, failure = daemon.not_ready(), daemon.reloads.last_failure
    return schema.Status(
        version=__version__,
        pid=os.getpid(),
        started=daemon.started,
        uptime_seconds=time() - daemon.started,
        source=_text(daemon.config.source),
        fingerprint=daemon.reloads.fingerprint,
        pump=daemon.pump_name,
        ready=not not_ready,
        not_ready=not_ready,
        closed_routes=daemon.closed_routes(),
        log_level=current_level(),
        log_level_configured=daemon.config.log.level,
        live=daemon.supervisor.live(),
        descriptors_free=daemon.supervisor.admission.descriptors_free(),
        reloads=dict(daemon.reloads.results),
        failed_reload=None if failure is None else schema.FailedReload(**failure._asdict()),
    )


def route(daemon: Daemon, stats: RouteStats) -> schema.Route:
    """Return a route's state and counters."""
    state = daemon.supervisor.state_of(stats)
    error = stats.last_error
    return schema.Route(
        name=stats.route.name,
        listen=_text(stats.route.listen),
        targets=[_target(target) for target in stats.targets],
        by=stats.route.by,
        to=stats.route.to,
        state=state,
        queued_by=daemon.supervisor.queued_by(stats) if state == "queued" else None,
        closed_by=daemon.supervisor.closed_by(stats),
        not_direct=daemon.supervisor.not_direct(stats),
        live=len(stats.live),
        held=stats.held,
        accepted=stats.connections,
        closed=dict(stats.closed),
        dial_failures=dict(stats.dial_failures),
        rejected=dict(stats.rejected),
        accept_pauses=dict(stats.accept_pauses),
        accept_errors=stats.accept_errors,
        upstream_bytes=stats.upstream_bytes,
        downstream_bytes=stats.downstream_bytes,
        last_error=None if error is None else schema.LastError(**error._asdict()),
        is_added=stats.route.name in daemon.added.routes,
    )


def _target(target: TargetState) -> schema.Target:
    return schema.Target(
        address=_text(target.address),
        state=target.name,
        state_seconds=target.seconds,
        last_error=None if target.last_error is None else str(target.last_error),
    )


def connection(live: Connection, rates: Rates[Connection]) -> schema.Connection:
    """Return the state and counters of a live connection."""
    upstream_rate, downstream_rate = rates.of(live)
    upstream_ended, downstream_ended = live.halves
    half_closed = upstream_ended or downstream_ended
    return schema.Connection(
        id=live.number,
        route=live.route.name,
        client=live.client,
        asked=None if live.request is None else _text(live.request),
        target=_text(live.target),
        state=live.stage if live.dial_seconds is None else "half-closed" if half_closed else "open",
        halves=schema.Halves(
            upstream="ended" if upstream_ended else "open",
            downstream="ended" if downstream_ended else "open",
        ),
        source_port=live.source_port,
        destination_port=live.destination_port,
        vmm_port=live.vmm_port,
        upstream_bytes=live.upstream_bytes,
        downstream_bytes=live.downstream_bytes,
        upstream_rate=upstream_rate,
        downstream_rate=downstream_rate,
        idle_seconds=live.idle_seconds,  # read before the age, so that it is not greater
        age_seconds=monotonic() - live.opened,
        dial_seconds=live.dial_seconds,
    )


def configuration(daemon: Daemon) -> schema.Configuration:
    """Return the running configuration, with routes and guests that are made as they are read."""
    return _settings(daemon.config, daemon.reloads.fingerprint, daemon.added)


def answered_facts(answer: Mapping[str, Any]) -> Facts:
    """Return what `compare` takes of an answer with the JSON of `configuration`.

    What was added at run time is left out: it stays beside what a file says.
    """
    routes = {
        one["name"]: RouteFacts(
            one["listen"], [*one["targets"], one["by"], *one["to"]], one["policy"]
        )
        for one in answer["routes"]
        if not one["is_added"]
    }
    guests = [one for one in answer["guests"] if not one["is_added"]]
    tables = {**{name: answer[name] for name in TABLES if name in answer}, "guests": guests}
    return Facts(routes, tables, answer["pump"])


def facts_as_answered(config: Config, socket: Path) -> Facts:
    """Return `answered_facts` of a daemon with a configuration and this control socket."""
    if config.admin.socket == "auto":
        config = replace(config, admin=replace(config.admin, socket=UnixEndpoint(str(socket))))
    return answered_facts(as_answered(config))


def as_answered(config: Config) -> dict[str, Any]:
    """Return the JSON of `configuration` for a daemon that was started with ``config``."""
    settings = _settings(config, config.fingerprint, Added())
    fields = {name: _listed(value) for name, value in settings}
    return dict(json.loads(to_json(fields, inf_nan_mode="null")))


def _listed(value: object) -> object:
    return list(value) if isinstance(value, Iterator) else value


def _settings(config: Config, fingerprint: str, added: Added) -> schema.Configuration:
    return schema.Configuration(
        source=_text(config.source),
        fingerprint=fingerprint,
        routes=(_route_settings(one, one.name in added.routes) for one in config.routes),
        guests=(_guest_settings(one, one.name in added.guests) for one in config.guests),
        metrics=_one_or_list(plain(config.metrics)),
        metrics_tls=plain(config.metrics_tls),
        metrics_page=config.metrics_page,
        admin=plain(config.admin),
        limits=plain(config.limits),
        reload=plain(config.reload),
        log=plain(config.log),
        pump=plain(config.pump),
    )


def events(daemon: Daemon, after: int) -> list[schema.Event]:
    """Return the remembered events with an id above ``after``, the oldest first."""
    return [
        schema.Event(
            id=event.number,
            time=event.time,
            level=event.level,
            event=event.event,
            route=event.route,
            message=event.message,
        )
        for event in daemon.events.after(after)
    ]


def _route_settings(settings: Route, is_added: bool) -> schema.RouteSettings:
    return schema.RouteSettings(
        name=settings.name,
        listen=_text(settings.listen),
        target=_text(settings.target),
        targets=[_text(target) for target in settings.targets],
        by=settings.by,
        to=settings.to,
        policy=plain(settings.policy),
        is_added=is_added,
    )


def _guest_settings(guest: Guest, is_added: bool) -> schema.GuestSettings:
    to_host = guest.to_host or getattr(guest.locator, "to_host", False)
    return schema.GuestSettings(
        name=guest.name, locator=_text(guest.locator), to_host=to_host, is_added=is_added
    )


def _one_or_list(addresses: list[str]) -> str | list[str] | None:
    """Return addresses as a file can have them: one as a text, and none as None."""
    return addresses if len(addresses) > 1 else next(iter(addresses), None)


def plain(value: object) -> Any:
    """Return a setting as JSON: tables as objects, addresses and access rules as texts."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, (*_AS_TEXT, type)) and not _is_rule(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value if value is None or isinstance(value, int | float) else _text(value)


def _text(value: object) -> str:
    """Return a text that JSON can hold: a file's name need not be UTF-8."""
    return escape(str(value))


def _is_rule(value: object) -> bool:
    return hasattr(value, "matches")
