"""What the API is asked and what it answers, as models.

Owns: the JSON of version 1; `operations` says what is asked where.  What is here is only
ever added to: a key keeps its name and its meaning.  Times are seconds, sizes are bytes;
``upstream`` is client to target, ``downstream`` target to client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vsockproxy.stats import RouteState

HalfState = Literal["open", "ended"]
ConnectionState = Literal["dialling", "open", "half-closed"]
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


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid")  # a slip of the pen must not end everything


def _is(text: str, **constraints: Any) -> Any:
    return Field(description=text, **constraints)


class Status(BaseModel):
    """The daemon as a whole."""

    version: str
    pid: int
    started: Annotated[float, _is("When it started, in seconds of the epoch.")]
    uptime_seconds: float
    source: Annotated[str, _is("Where its configuration comes from.")]
    fingerprint: Annotated[str, _is("Changes with anything in the configuration.")]
    pump: Annotated[str, _is("What moves the bytes: native or portable.")]
    ready: bool
    not_ready: Annotated[list[str], _is("What keeps it from being ready, a sentence each.")]
    connections: Annotated[int, _is("How many are open.")]
    descriptors_free: Annotated[int, _is("File descriptors that connections may still take.")]
    reloads: Annotated[dict[str, int], _is("How many reloads went through, and how many not.")]


class LastError(BaseModel):
    """The last dial of a route that failed."""

    time: Annotated[float, _is("In seconds of the epoch.")]
    reason: Annotated[str, _is("As in the metric dial_failures_total.")]
    message: str


class Target(BaseModel):
    """One target of a route."""

    address: str
    state: Annotated[
        Literal["unknown", "up", "refused", "down"],
        _is("What its last answer was: none yet, a connection, that nothing listens, or nothing."),
    ]
    state_seconds: Annotated[float, _is("How long it has been so.")]
    last_error: Annotated[str | None, _is("Of the last dial that failed, however long ago.")]


class Route(BaseModel):
    """A route at work."""

    name: str
    listen: str
    targets: list[Target]
    state: Annotated[
        RouteState,
        _is(
            "listening; waiting: a limit keeps clients in the backlog; paused: an operator does;"
            " draining: accepts no more, connections are left; drained: none are"
        ),
    ]
    queued_by: Annotated[str | None, _is("The limit, where the state is waiting.")] = None
    live: Annotated[int, _is("Connections that are open.")]
    held: Annotated[int, _is("How many of them wait until a target answers.")]
    connections: Annotated[int, _is("Connections that were ever accepted.")]
    closed: Annotated[dict[str, int], _is("Connections that ended, by reason.")]
    dial_failures: dict[str, int]
    rejected: dict[str, int]
    accept_pauses: dict[str, int]
    accept_errors: int
    upstream_bytes: int
    downstream_bytes: int
    last_error: LastError | None = None


class Routes(BaseModel):
    """All routes, those that still drain included."""

    routes: list[Route]


class Halves(BaseModel):
    """The two directions of a connection: an ended one carries no byte any more."""

    upstream: HalfState
    downstream: HalfState


class Connection(BaseModel):
    """One live connection."""

    id: Annotated[int, _is("Unique while the daemon runs; the number of the log.")]
    route: str
    client: str
    target: str
    state: ConnectionState
    halves: Halves
    source_port: Annotated[
        int | None, _is("The vsock port of the side that opened it, where one is known.")
    ]
    destination_port: Annotated[int | None, _is("The vsock port that was asked for.")]
    vmm_port: Annotated[int | None, _is("The number of a VMM's OK.")]
    upstream_bytes: int
    downstream_bytes: int
    upstream_rate: Annotated[float, _is("Bytes a second, over about the last second.")]
    downstream_rate: Annotated[float, _is("Bytes a second, over about the last second.")]
    age_seconds: float
    idle_seconds: Annotated[float, _is("Since the last byte, either way.")]
    dial_seconds: Annotated[float | None, _is("None while it is dialled.")]


class Connections(BaseModel):
    """One page of the live connections."""

    total: Annotated[int, _is("How many there are on all pages.")]
    connections: list[Connection]
    next: Annotated[str | None, _is("The ``after`` of the next page; None on the last.")]


class ConnectionQuery(_Question):
    """Which connections, in which order, and from where on."""

    route: Annotated[str | None, _is("Of this route.")] = None
    client: Annotated[
        str | None,
        _is("Of this client: an address with or without its port, an IP network, CIDs as 3 or 3-9"),
    ] = None
    sort: SortKey = "id"
    order: Annotated[
        Literal["asc", "desc"] | None, _is("Names and ids ascend by default, numbers descend.")
    ] = None
    limit: Annotated[int, _is("How many on a page.", ge=1, le=1000)] = 100
    after: Annotated[str | None, _is("The ``next`` of the page before.")] = None


class EndQuestion(_Question):
    """Which connections to end: those that fit everything given."""

    route: str | None = None
    client: Annotated[str | None, _is("As in the list of connections.")] = None
    all: Annotated[bool, _is("Every connection of the daemon, if nothing else is given.")] = False


class Ended(BaseModel):
    """The connections that were told to end."""

    ended: list[int]


class Reloaded(BaseModel):
    """The configuration that runs now."""

    fingerprint: str
    source: str


class RouteSettings(BaseModel):
    """One route as it is configured, with its whole policy."""

    name: str
    listen: str
    target: str
    policy: dict[str, Any]


class Configuration(BaseModel):
    """The configuration in force."""

    source: str
    fingerprint: str
    routes: list[RouteSettings]
    metrics: Any
    admin: Any
    limits: Any
    log: Any
    pump: Any


class EventsQuery(_Question):
    """From which event on."""

    after: Annotated[int, _is("The greatest number that is known already.")] = 0


class Event(BaseModel):
    """A failure, or a change of state."""

    number: int
    time: Annotated[float, _is("In seconds of the epoch.")]
    level: str
    event: Annotated[str, _is("The word of the log.")]
    route: str | None
    message: str


class Events(BaseModel):
    """The last events, the oldest first; the daemon remembers about 200."""

    events: list[Event]


class Failure(BaseModel):
    """Why nothing was done, and what would help."""

    error: str
    remedy: str
