"""The counters as Prometheus metrics, read at each scrape.

Owns: the names, types, labels and help of the metrics, a row each.  Counts nothing: `stats`
holds the counters and `admin.metrics_text` makes the text.  No label holds a client's address, so
the number of series depends on the configuration alone.  docs/metrics.md explains each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple, Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vsockproxy import __version__
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.guest import Cid
from vsockproxy.guests.directory import Guests
from vsockproxy.log.output import lines_lost
from vsockproxy.revision import REVISION
from vsockproxy.stats import ROUTE_STATES, TARGET_STATES, Histogram, Reloads, RouteState, RouteStats


class RoutesSource(Protocol):
    """The part of the supervisor that a scrape reads.

    Attributes:
      admission: the limits that all routes share.
      guests: the directory of guests.
    """

    admission: Admission
    guests: Guests

    def stats(self) -> Iterable[RouteStats]:
        """Return the counters of every route, draining ones included."""
        ...

    def state_of(self, stats: RouteStats) -> RouteState:
        """Return the state of a route."""
        ...


class MetricsSource(Protocol):
    """The part of the daemon that a scrape reads, in the thread of its event loop."""

    reloads: Reloads

    @property
    def supervisor(self) -> RoutesSource:
        """Return the supervisor of the running routes."""
        ...

    @property
    def pump_name(self) -> str:
        """Return ``native`` or ``portable``."""
        ...


class MetricsCollector(Collector):
    """The metrics of one daemon; `collect` runs in the thread of its event loop."""

    def __init__(self, source: MetricsSource) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without samples, for the registry to check their names."""
        return [row.family() for row in _ROWS]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their present values, one with many samples in parts.

        Parts of one metric follow each other and have its name.  Other tasks may run, and routes
        may come and go, between two parts.
        """
        for row in _ROWS:
            family: Any = row.family()
            for labels, value in row.samples(self._source):
                _add(family, labels, value)
                if len(family.samples) >= _PART:
                    yield family
                    family = row.family()
            yield family


_BUILD: Final = {"version": __version__, "revision": REVISION}
_PART: Final = 100  # samples; reading and formatting them takes a millisecond
Labels = Sequence[str]
Value = float | Mapping[str, str] | Histogram
"""The value of a sample: a histogram has a `Histogram`, an info metric has its labels."""

Samples = Iterable[tuple[Labels, Value]]


class _Row(NamedTuple):
    """One metric: its name without suffix, and the function that reads its samples."""

    name: str
    type: type[Metric]
    help: str
    labels: Labels
    samples: Callable[[MetricsSource], Samples]

    def family(self) -> Metric:
        return self.type(self.name, self.help, labels=self.labels)  # type: ignore[call-arg]


def _add(family: Any, labels: Labels, value: Value) -> None:
    if isinstance(value, Histogram):
        bounds = [*map(floatToGoString, value.bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(value.counts), strict=True))
        family.add_metric(labels, buckets, value.sum)
    else:
        family.add_metric(labels, value)


# ---- how a row reads its samples ----


def _daemon(read: Callable[[MetricsSource], Value | None]) -> Callable[[MetricsSource], Samples]:
    """Return a function that reads one sample of the daemon; none if the value is None."""
    return lambda source: [] if (value := read(source)) is None else [((), value)]


def _routes(read: Callable[[RouteStats], Value | None]) -> Callable[[MetricsSource], Samples]:
    """Return a function that reads a sample of each route; none where the value is None."""

    def samples(source: MetricsSource) -> Samples:
        for stats in source.supervisor.stats():
            value = read(stats)
            if value is not None:
                yield (stats.route.name,), value

    return samples


def _each(
    read: Callable[[RouteStats], Mapping[Any, float]], *at_zero: str
) -> Callable[[MetricsSource], Samples]:
    """Return a function that reads a sample of each route and key; a key is one or more labels.

    The keys ``at_zero`` have one from the start: an alert misses the first event of a series.
    """

    def samples(source: MetricsSource) -> Samples:
        for stats in source.supervisor.stats():
            # A copy: it may change between two parts.
            for key, value in {**dict.fromkeys(at_zero, 0), **read(stats)}.items():
                labels = key if isinstance(key, tuple) else (key,)
                yield (stats.route.name, *labels), value

    return samples


def _route_info(stats: RouteStats) -> Mapping[str, str]:
    route = stats.route
    return {"listen": str(route.listen), "target": route.leads_to}


def _route_states(source: MetricsSource) -> Samples:
    for stats in source.supervisor.stats():
        current = source.supervisor.state_of(stats)
        for state in ROUTE_STATES:
            yield (stats.route.name, state), float(state == current)


def _target_states(stats: RouteStats) -> Mapping[tuple[str, str], float]:
    return {
        (str(target.address), state): float(target.name == state)
        for target in stats.targets
        for state in TARGET_STATES
    }


def _resolutions(source: MetricsSource) -> Samples:
    for record in source.supervisor.guests.records():
        for result, number in list(record.results.items()):  # as above
            yield (record.guest.name, result), number


def _guest_cids(source: MetricsSource) -> Samples:
    for record in source.supervisor.guests.records():
        if isinstance(record.found, Cid):
            yield (record.guest.name,), record.found.cid


_ROWS: Final = (
    # Routes
    _Row(
        "vsockproxy_connections_active",
        GaugeMetricFamily,
        "Open connections, including those whose target is being dialled.",
        ["route"],
        _routes(lambda stats: len(stats.live)),
    ),
    _Row(
        "vsockproxy_connections",
        CounterMetricFamily,
        "Accepted connections.",
        ["route"],
        _routes(lambda stats: stats.connections),
    ),
    _Row(
        "vsockproxy_connections_closed",
        CounterMetricFamily,
        "Closed connections, by reason.",
        ["route", "reason"],
        _each(lambda stats: stats.closed, "error"),
    ),
    _Row(
        "vsockproxy_bytes",
        CounterMetricFamily,
        "Bytes delivered to targets (upstream) and to clients (downstream).",
        ["route", "direction"],
        _each(lambda one: {"upstream": one.upstream_bytes, "downstream": one.downstream_bytes}),
    ),
    _Row(
        "vsockproxy_dial_failures",
        CounterMetricFamily,
        "Failed dials, by reason.",
        ["route", "reason"],
        _each(lambda stats: stats.dial_failures, "refused", "timeout"),
    ),
    _Row(
        "vsockproxy_dial_seconds",
        HistogramMetricFamily,
        "Duration of successful dials, including the vsock-mux handshake.",
        ["route"],
        _routes(lambda stats: stats.dial_seconds),
    ),
    _Row(
        "vsockproxy_route_state",
        GaugeMetricFamily,
        "State of a route: 1 for the current state, 0 for the others.",
        ["route", "state"],
        _route_states,
    ),
    _Row(
        "vsockproxy_target_state",
        GaugeMetricFamily,
        "State of a target after its last dial: 1 for the current state, 0 for the others.",
        ["route", "target", "state"],
        _each(_target_states),
    ),
    _Row(
        "vsockproxy_clients_held",
        GaugeMetricFamily,
        "Clients held until their target is up.",
        ["route"],
        _routes(lambda stats: stats.held),
    ),
    _Row(
        "vsockproxy_held_clients",
        CounterMetricFamily,
        "Clients that were held until their target was up, by result.",
        ["route", "result"],
        _each(lambda stats: stats.held_results),
    ),
    _Row(
        "vsockproxy_connection_seconds",
        HistogramMetricFamily,
        "Duration of closed connections, from accept to close.",
        ["route"],
        _routes(lambda stats: stats.connection_seconds),
    ),
    _Row(
        "vsockproxy_accept_errors",
        CounterMetricFamily,
        "Failed accept(2) calls.",
        ["route"],
        _routes(lambda stats: stats.accept_errors),
    ),
    _Row(
        "vsockproxy_clients_rejected",
        CounterMetricFamily,
        "Clients closed before their dial by a rule or a limit, by reason.",
        ["route", "reason"],
        _each(lambda stats: stats.rejected, "denied"),
    ),
    _Row(
        "vsockproxy_requests",
        CounterMetricFamily,
        "Decisions on the targets that clients named, by verdict.",
        ["route", "verdict"],
        _each(lambda stats: stats.requests),
    ),
    _Row(
        "vsockproxy_accept_pauses",
        CounterMetricFamily,
        "Pauses of accept(2) while clients were queued, by reason.",
        ["route", "reason"],
        _each(lambda stats: stats.accept_pauses, "max_connections"),
    ),
    _Row(
        "vsockproxy_connections_limit",
        GaugeMetricFamily,
        "Connection limit of the route (max_connections), if set.",
        ["route"],
        _routes(lambda stats: stats.route.policy.max_connections),
    ),
    _Row(
        "vsockproxy_route",
        InfoMetricFamily,
        "Listener and targets of a route.",
        ["route"],
        _routes(_route_info),
    ),
    # Guests
    _Row(
        "vsockproxy_guest_resolutions",
        CounterMetricFamily,
        "Lookups of a guest's address, by result.",
        ["guest", "result"],
        _resolutions,
    ),
    _Row(
        "vsockproxy_guest_cid",
        GaugeMetricFamily,
        "CID of a guest, while it is known.",
        ["guest"],
        _guest_cids,
    ),
    # The daemon
    _Row(
        "vsockproxy_total_connections_limit",
        GaugeMetricFamily,
        "Connection limit of all routes together (limits.max_connections), if set.",
        [],
        _daemon(lambda source: source.supervisor.admission.limits.max_connections),
    ),
    _Row(
        "vsockproxy_descriptors_free",
        GaugeMetricFamily,
        "File descriptors available to connections.",
        [],
        _daemon(lambda source: source.supervisor.admission.descriptors_free()),
    ),
    _Row(
        "vsockproxy_config_reloads",
        CounterMetricFamily,
        "Reloads of the configuration, by result.",
        ["result"],
        lambda source: [((result,), n) for result, n in source.reloads.results.items()],
    ),
    _Row(
        "vsockproxy_config_last_reload_successful",
        GaugeMetricFamily,
        "Whether the last load or reload succeeded: 1 or 0.",
        [],
        _daemon(lambda source: float(source.reloads.last_failure is None)),
    ),
    _Row(
        "vsockproxy_config_last_reload_success_timestamp_seconds",
        GaugeMetricFamily,
        "Time of the last successful load or reload.",
        [],
        _daemon(lambda source: source.reloads.last_success),
    ),
    _Row(
        "vsockproxy_config",
        InfoMetricFamily,
        "Hash of the running configuration.",
        [],
        _daemon(lambda source: {"hash": source.reloads.fingerprint}),
    ),
    _Row(
        "vsockproxy_log_lines_lost",
        CounterMetricFamily,
        "Log lines that could not be written.",
        [],
        _daemon(lambda _: lines_lost()),
    ),
    _Row(
        "vsockproxy_build",
        InfoMetricFamily,
        "Version, revision and pump of the running daemon.",
        [],
        _daemon(lambda source: {**_BUILD, "pump": source.pump_name}),
    ),
)
"""Every metric; the exposition adds ``_total`` to counters and ``_info`` to info metrics."""
