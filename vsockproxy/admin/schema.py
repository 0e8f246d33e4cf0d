"""The JSON of the control API, as models.

Owns: the requests and answers of version 1; `openapi` has their paths.  Fields may be
added: a field keeps its name and meaning.  Times are in seconds, sizes in bytes;
``upstream`` is client to target, ``downstream`` target to client.

An Iterable is a list of any length, whose items are made while they are sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from vsockproxy.config.process import LogLevel
from vsockproxy.connection import Stage
from vsockproxy.stats import RouteState, TargetStateName

HalfState = Literal["open", "ended"]
ConnectionState = Literal[Stage, "open", "half-closed"]
SortKey = Literal[
    "id",
    "route",
    "client",
    "target",
    "age",
    "idle",
    "dial",
    "bytes",
    "upstream_bytes",
    "downstream_bytes",
    "rate",
    "upstream_rate",
    "downstream_rate",
]

_BY = "How clients name their targets, as in sni; null where the configuration has the targets."
_IS_ADDED = "Whether it was added at run time, and no file has it."
_TO = "Where the names lead, as NAME = TARGET, in the order in which they are tried."


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a misspelled filter must not end everything


def _described(text: str, **constraints: Any) -> Any:
    return Field(description=text, **constraints)


class FailedReload(BaseModel):
    """The last reload, which failed: the configuration from before runs."""

    time: Annotated[float, _described("In seconds of the epoch.")]
    problems: Annotated[list[str], _described("What failed, a line each.")]


class Status(BaseModel):
    """State of the daemon."""

    version: str
    pid: int
    started: Annotated[float, _described("Start time, in seconds of the epoch.")]
    uptime_seconds: float
    source: Annotated[str, _described("Origin of the configuration: a file, or a description.")]
    fingerprint: Annotated[str, _described("Hash of the configuration.")]
    pump: Annotated[str, _described("Pump in use: native or portable.")]
    ready: bool
    not_ready: Annotated[list[str], _described("Why the daemon is not ready, a sentence each.")]
    closed_routes: Annotated[
        list[str],
        _described("Routes that an operator or a missing folder keeps closed, a sentence each."),
    ]
    log_level: Annotated[LogLevel, _described("The least severe level that is logged now.")]
    log_level_configured: Annotated[LogLevel, _described("The level of [log].")]
    live: Annotated[int, _described("Live connections of all routes.")]
    descriptors_free: Annotated[int, _described("File descriptors available to connections.")]
    reloads: Annotated[dict[str, int], _described("Reloads, by result: success or failure.")]
    failed_reload: Annotated[
        FailedReload | None, _described("The last reload if it failed, else null.")
    ] = None


class LastError(BaseModel):
    """Last failed dial of a route."""

    time: Annotated[float, _described("In seconds of the epoch.")]
    reason: Annotated[str, _described("As in the metric vsockproxy_dial_failures_total.")]
    message: Annotated[str, _described("What failed, and why.")]
    remedy: Annotated[str, _described("What to do; empty where there is nothing to do.")]


class Target(BaseModel):
    """State of one target of a route."""

    address: str
    state: Annotated[
        TargetStateName,
        _described(
            "Result of the last dial. unknown: not dialled yet; up: connected;"
            " refused: nothing listens there; down: any other failure."
        ),
    ]
    state_seconds: Annotated[float, _described("Time since the state changed.")]
    last_error: Annotated[str | None, _described("Error of the last failed dial.")]


class Route(BaseModel):
    """State and counters of a route."""

    name: str
    listen: str
    targets: Annotated[list[Target], _described("Empty where clients name their targets.")]
    by: Annotated[str | None, _described(_BY)] = None
    to: Annotated[list[str], _described(_TO)] = []
    state: Annotated[
        RouteState,
        _described(
            "listening: accepts clients; queued: a limit leaves clients in the backlog;"
            " paused: an operator leaves clients in the backlog; retrying: the listener cannot be"
            " opened yet; draining: the listener is closed, connections are live; drained: the"
            " listener is closed, none is live; off: a defect ended the route."
        ),
    ]
    queued_by: Annotated[
        str | None, _described("The limit, if the state is queued; as in accept_pauses.")
    ] = None
    closed_by: Annotated[
        str | None,
        _described("Why it accepts no clients, and what to do; null if listening or queued."),
    ] = None
    not_direct: Annotated[
        str | None,
        _described("Why the route is not direct; null where it is."),
    ] = None
    live: Annotated[int, _described("Live connections.")]
    held: Annotated[int, _described("Live connections held until their target is up.")]
    accepted: Annotated[int, _described("Connections accepted since the daemon started.")]
    closed: Annotated[dict[str, int], _described("Closed connections, by reason.")]
    dial_failures: Annotated[dict[str, int], _described("Failed dials, by reason.")]
    rejected: Annotated[dict[str, int], _described("Rejected clients, by reason.")]
    accept_pauses: Annotated[
        dict[str, int], _described("Pauses of accept(2) with clients queued, by reason.")
    ]
    accept_errors: Annotated[int, _described("Failed accept(2) calls.")]
    upstream_bytes: int
    downstream_bytes: int
    last_error: LastError | None = None
    is_added: Annotated[bool, _described(_IS_ADDED)] = False


class Routes(BaseModel):
    """All routes, draining ones included."""

    routes: Iterable[Route]


class Halves(BaseModel):
    """State of each direction: an ended one carries no more bytes."""

    upstream: HalfState
    downstream: HalfState


class Connection(BaseModel):
    """State and counters of a live connection."""

    id: Annotated[int, _described("Unique while the daemon runs; the log's number.")]
    route: str
    client: str
    asked: Annotated[
        str | None, _described("What the client asked for, where clients name their targets.")
    ]
    target: str
    state: Annotated[
        ConnectionState,
        _described(
            "silent: the client has not sent its PROXY header or its first byte; held: until its"
            " target is up; dialling; open; half-closed: one direction has ended."
        ),
    ]
    halves: Halves
    source_port: Annotated[
        int | None, _described("Vsock port of the side that opened the connection, if known.")
    ]
    destination_port: Annotated[int | None, _described("Vsock port that was dialled.")]
    vmm_port: Annotated[int | None, _described("Port in the VMM's OK, over a vsock-mux.")]
    upstream_bytes: int
    downstream_bytes: int
    upstream_rate: Annotated[float, _described("Bytes per second, over about the last second.")]
    downstream_rate: Annotated[float, _described("Bytes per second, over about the last second.")]
    age_seconds: Annotated[float, _described("Time since accept.")]
    idle_seconds: Annotated[float, _described("Time since the last byte of either direction.")]
    dial_seconds: Annotated[
        float | None, _described("Duration of the dial; null while it is under way.")
    ]


class Connections(BaseModel):
    """One page of live connections."""

    total: Annotated[int, _described("Connections on all pages.")]
    connections: Iterable[Connection]
    next: Annotated[str | None, _described("Value of after for the next page; null on the last.")]


class ConnectionQuery(_Request):
    """Filter, order and page of the live connections."""

    route: Annotated[str | None, _described("Name of a route.")] = None
    client: Annotated[
        str | None,
        _described(
            "A client's address, with or without port; an IP network; or CIDs, as 3 or 3-9."
        ),
    ] = None
    sort: SortKey = "id"
    order: Annotated[
        Literal["asc", "desc"] | None,
        _described("By default asc for names and ids, and desc for amounts."),
    ] = None
    limit: Annotated[int, _described("Connections per page.", ge=1, le=1000)] = 100
    after: Annotated[str | None, _described("Value of next of the page before.")] = None


class EndRequest(_Request):
    """Connections to end: those that match every filter given."""

    route: Annotated[str | None, _described("Name of a route.")] = None
    client: Annotated[str | None, _described("As in GET /v1/connections.")] = None
    all: Annotated[bool, _described("Every connection; excludes the filters.")] = False


class LogLevelRequest(_Request):
    """The level of the log from now on, until the daemon ends."""

    level: Annotated[LogLevel | None, _described("Null is the level of the start.")]


class LogLevelSet(BaseModel):
    """The level of the log that holds now."""

    level: LogLevel


class Ended(BaseModel):
    """Ids of the connections that were told to end."""

    ended: list[int]


class ReloadQuery(_Request):
    """How to reload."""

    dry_run: Annotated[bool, _described("Only answer what a reload would change.")] = False


class Reloaded(BaseModel):
    """The configuration after a reload, and what the reload has changed."""

    fingerprint: Annotated[str, _described("Hash of the configuration that runs.")]
    source: str
    added: Annotated[list[str], _described("Names of the new routes.")]
    removed: Annotated[list[str], _described("Names of the routes that drain.")]
    moved: Annotated[list[str], _described("Names of the routes with another listener.")]
    retargeted: Annotated[list[str], _described("Names of the routes with other targets.")]
    changed: Annotated[list[str], _described("Names of the routes with other settings only.")]
    settings: Annotated[list[str], _described("Other settings that differ, as in limits.")]
    needs_restart: Annotated[list[str], _described("Settings that only a restart changes.")]


class ChangeQuery(_Request):
    """How long an added route or guest lasts."""

    persist: Annotated[
        bool,
        _described("Write it to a file in the folder of the first include, and reload."),
    ] = False


class Entry(RootModel[dict[str, Any]]):
    """A route or a guest: the keys that its table has in a file, and for one that is new a name."""


class Changed(BaseModel):
    """What a change of routes or guests has changed."""

    added: Annotated[list[str], _described("Names of the new routes.")]
    removed: Annotated[list[str], _described("Names of the routes that drain.")]
    moved: Annotated[list[str], _described("Names of the routes with another listener.")]
    retargeted: Annotated[list[str], _described("Names of the routes with other targets.")]
    changed: Annotated[list[str], _described("Names of the routes with other settings only.")]


class RouteSettings(BaseModel):
    """One route of the configuration, with its whole policy."""

    name: str
    listen: str
    target: Annotated[str, _described("The first of targets.")]
    targets: Annotated[list[str], _described("All targets, in the order written.")]
    by: Annotated[str | None, _described(_BY)] = None
    to: Annotated[list[str], _described(_TO)] = []
    policy: dict[str, Any]
    is_added: Annotated[bool, _described(_IS_ADDED)] = False


class GuestSettings(BaseModel):
    """One guest of the configuration."""

    name: str
    locator: Annotated[str, _described("Keys that say how it is reached, as in cid = 3.")]
    to_host: Annotated[bool, _described("Whether to_host is set.")]
    is_added: Annotated[bool, _described(_IS_ADDED)] = False


class Configuration(BaseModel):
    """The running configuration."""

    source: str
    fingerprint: str
    routes: Iterable[RouteSettings]
    guests: Iterable[GuestSettings]
    metrics: Annotated[Any, _described("The listener's address, or a list of several.")]
    metrics_tls: Any
    metrics_page: Annotated[str, _described("When the status page is shown: auto, on, off.")]
    admin: Any
    limits: Any
    reload: Any
    log: Any
    pump: Any


class EventsQuery(_Request):
    """First event to return."""

    after: Annotated[int, _described("Return events with a greater id.")] = 0


class Event(BaseModel):
    """A failure or a change of state, as in the log."""

    id: Annotated[int, _described("Ascending from 1.")]
    time: Annotated[float, _described("In seconds of the epoch.")]
    level: str
    event: Annotated[str, _described("Name of the log event.")]
    route: str | None
    message: str


class Events(BaseModel):
    """The last events, the oldest first; the daemon remembers 200."""

    events: list[Event]


class Failure(BaseModel):
    """What failed, and what to do."""

    error: str
    remedy: str
