"""The daemon's state as the API shows it.

Owns: the step from `stats`, `listener` and `route` to the models of `schema`, and which
connections a filter means.  Changes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from heapq import nlargest, nsmallest
from time import monotonic, time
from typing import Any, Final, TypeVar

from vsockproxy import __version__
from vsockproxy.address.endpoint import (
    FdEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.admin import schema
from vsockproxy.admin.daemon import Daemon
from vsockproxy.admin.rates import Rates
from vsockproxy.admit.peer import peer_at
from vsockproxy.config.access import CidRule, NetworkRule, parse_rule
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection
from vsockproxy.errors import AddressError
from vsockproxy.stats import RouteStats, TargetState

Key = tuple[Any, int]
"""What a connection is sorted by, and its number: no two are alike."""

_Item = TypeVar("_Item")

_TEXTS: Final = frozenset({"route", "client", "target"})
_ASCEND: Final = _TEXTS | {"id"}
_ADDRESSES: Final = (TcpEndpoint, VsockEndpoint, UnixEndpoint, MuxEndpoint, FdEndpoint)


def status(daemon: Daemon) -> schema.Status:
    """The daemon as a whole."""
    not_ready = daemon.not_ready()
    return schema.Status(
        version=__version__,
        pid=os.getpid(),
        started=daemon.started,
        uptime_seconds=time() - daemon.started,
        source=daemon.config.source,
        fingerprint=daemon.config.fingerprint,
        pump=daemon.pump_name,
        ready=not not_ready,
        not_ready=not_ready,
        connections=sum(len(stats.live) for stats in daemon.supervisor.stats()),
        descriptors_free=daemon.supervisor.admission.descriptors_free(),
        reloads=dict(daemon.reloads.results),
    )


def route(daemon: Daemon, stats: RouteStats) -> schema.Route:
    """A route at work."""
    state = daemon.supervisor.state_of(stats)
    listener = daemon.supervisor.listeners.get(stats.route.listen)
    queued_by = listener.queue_reason() if listener and state == "queued" else None
    error = stats.last_error
    return schema.Route(
        name=stats.route.name,
        listen=str(stats.route.listen),
        targets=[_target(known) for known in stats.targets],
        state=state,
        queued_by=queued_by,
        live=len(stats.live),
        held=stats.held,
        connections=stats.connections,
        closed=dict(stats.closed),
        dial_failures=dict(stats.dial_failures),
        rejected=dict(stats.rejected),
        accept_pauses=dict(stats.accept_pauses),
        accept_errors=stats.accept_errors,
        upstream_bytes=stats.upstream_bytes,
        downstream_bytes=stats.downstream_bytes,
        last_error=None if error is None else schema.LastError(**error._asdict()),
    )


def _target(known: TargetState) -> schema.Target:
    return schema.Target(
        address=str(known.address),
        state=known.name,
        state_seconds=known.seconds,
        last_error=None if known.last_error is None else str(known.last_error),
    )


def connection(live: Connection, rates: Rates) -> schema.Connection:
    """One live connection."""
    upstream_rate, downstream_rate = rates.of(live)
    upstream_ended, downstream_ended = live.halves
    dialling = live.dial_seconds is None
    half = upstream_ended or downstream_ended
    return schema.Connection(
        id=live.number,
        route=live.route.name,
        client=live.client,
        target=str(live.target),
        state="dialling" if dialling else "half-closed" if half else "open",
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
        idle_seconds=live.idle_seconds,  # before the age, which must not be less
        age_seconds=monotonic() - live.opened,
        dial_seconds=live.dial_seconds,
    )


def configuration(daemon: Daemon) -> schema.Configuration:
    """The configuration in force."""
    config = daemon.config
    return schema.Configuration(
        source=config.source,
        fingerprint=config.fingerprint,
        routes=[_settings(one) for one in config.routes],
        metrics=plain(config.metrics),
        admin=plain(config.admin),
        limits=plain(config.limits),
        log=plain(config.log),
        pump=plain(config.pump),
    )


def _settings(one: Route) -> schema.RouteSettings:
    return schema.RouteSettings(
        name=one.name, listen=str(one.listen), target=str(one.target), policy=plain(one.policy)
    )


def plain(value: object) -> Any:
    """A frozen value as JSON has it; what is an address or a rule, as its text."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, (*_ADDRESSES, type)) and _has_words(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _has_words(value: object) -> bool:
    """Whether a value is a table and no rule: those have a `matches`."""
    return not hasattr(value, "matches")


# ---- which connections ----


def selected(
    daemon: Daemon, route_name: str | None = None, client: str | None = None
) -> Iterator[Connection]:
    """The live connections of a route and of a client; None is all."""
    is_meant = _by_client(client) if client is not None else None
    for stats in daemon.supervisor.stats():
        if route_name in (None, stats.route.name):
            for live in list(stats.live):
                if is_meant is None or is_meant(live):
                    yield live


def _by_client(text: str) -> Callable[[Connection], bool]:
    """An address with a port is a client's name; a network and CIDs are rules of `access`."""
    try:
        rule = parse_rule(text)
    except AddressError:
        rule = None
    if isinstance(rule, NetworkRule | CidRule):
        matches = rule.matches
        return lambda live: matches(peer_at(live.family, live.address))
    return lambda live: live.client == text


def page(
    connections: Iterable[Connection], query: schema.ConnectionQuery, rates: Rates
) -> tuple[list[Connection], str | None]:
    """Those of one page in their order, and where the next one begins.

    Sorted by what changes, a connection can be on two pages or on none; by id it cannot.
    """
    key = _key(query.sort, rates)
    descends = (query.order or ("asc" if query.sort in _ASCEND else "desc")) == "desc"
    keyed: Iterable[tuple[Key, Connection]] = ((key(live), live) for live in connections)
    if query.after is not None:
        start = _read_cursor(query.after, query.sort)
        keyed = [pair for pair in keyed if (pair[0] < start if descends else pair[0] > start)]
    best = (nlargest if descends else nsmallest)(query.limit + 1, keyed, key=lambda pair: pair[0])
    shown = best[: query.limit]
    more = len(best) > query.limit
    return [live for _, live in shown], _write_cursor(shown[-1][0]) if more else None


def _key(sort: schema.SortKey, rates: Rates) -> Callable[[Connection], Key]:
    values: dict[str, Callable[[Connection], Any]] = {
        "id": lambda live: live.number,
        "route": lambda live: live.route.name,
        "client": lambda live: live.client,
        "target": lambda live: str(live.target),
        "age": lambda live: -live.opened,
        "idle": lambda live: live.idle_seconds,
        "dial": lambda live: live.dial_seconds or 0.0,
        "bytes": lambda live: live.upstream_bytes + live.downstream_bytes,
        "upstream_bytes": lambda live: live.upstream_bytes,
        "downstream_bytes": lambda live: live.downstream_bytes,
        "rate": lambda live: sum(rates.of(live)),
        "upstream_rate": lambda live: rates.of(live)[0],
        "downstream_rate": lambda live: rates.of(live)[1],
    }
    value = values[sort]
    return lambda live: (value(live), live.number)


def _write_cursor(key: Key) -> str:
    return json.dumps(key)


def _read_cursor(text: str, sort: schema.SortKey) -> Key:
    """The place that `_write_cursor` wrote; raises `AddressError` for what it cannot have."""
    kind = str if sort in _TEXTS else int | float
    try:
        value, number = json.loads(text)
        if isinstance(value, kind) and isinstance(number, int):
            return value, number
    except (ValueError, TypeError, RecursionError):
        pass
    raise AddressError(f"{text!r} is no next of a page that is sorted by {sort}")
