"""What the routes have done, as Prometheus sees it: a view that is made at each scrape.

Owns: the names, types and labels of the metrics.  Counts nothing itself and must not be
imported by what does: `stats` holds the numbers, `admin` serves the text.  No label ever
holds a peer's address, so the number of series depends on the configuration alone.

docs/metrics.md says what each one means; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from vsockproxy.admit.admission import Admission
from vsockproxy.config.guest import Cid
from vsockproxy.guests.directory import GuestRecord, Guests
from vsockproxy.log.output import lines_lost
from vsockproxy.stats import TARGET_STATES, Histogram, Reloads, RouteStats

Stats = Callable[[], Iterable[RouteStats]]


def make_registry(
    stats: Stats,
    version: str,
    pump: str,
    admission: Admission | None = None,
    reloads: Reloads | None = None,
    *,
    guests: Guests | None = None,
) -> CollectorRegistry:
    """A registry of its own with the routes', the process's and the interpreter's metrics.

    ``stats`` is called at each scrape; ``pump`` is the running pump's name; ``admission`` is
    what all routes share; ``reloads`` is how the configuration came to be what it is;
    ``guests`` are those that are found out at each dial.
    """
    registry = CollectorRegistry()
    registry.register(MetricsCollector(stats, version, pump, admission, reloads, guests=guests))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class MetricsCollector(Collector):
    """The metrics of all routes; must be collected in the thread that runs the routes."""

    def __init__(
        self,
        stats: Stats,
        version: str,
        pump: str,
        admission: Admission | None = None,
        reloads: Reloads | None = None,
        *,
        guests: Guests | None = None,
    ) -> None:
        self._stats = stats
        self._admission = admission
        self._reloads = reloads
        self._guests = guests or Guests()
        self._build = {"version": version, "pump": pump}

    def describe(self) -> Iterable[Metric]:
        """The metrics without their samples; what the registry checks names with."""
        return _Families().all()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        families = _Families()
        families.build.add_metric([], self._build)
        families.lines_lost.add_metric([], lines_lost())
        if self._admission is not None:
            families.add_admission(self._admission)
        if self._reloads is not None:
            families.add_reloads(self._reloads)
        for record in self._guests.records():
            families.add_guest(record)
        for stats in self._stats():
            families.add(stats)
        yield from families.all()


class _Families:
    """One scrape's metrics, filled route by route."""

    def __init__(self) -> None:
        self.build = InfoMetricFamily(
            "vsockproxy_build", "The running vsockproxy: its version and its pump."
        )
        self.reloads = CounterMetricFamily(
            "vsockproxy_config_reloads",
            "Reloads of the configuration, by whether they went through.",
            labels=["result"],
        )
        self.last_reload = GaugeMetricFamily(
            "vsockproxy_config_last_reload_success_timestamp_seconds",
            "When the running configuration was taken.",
        )
        self.config = InfoMetricFamily(
            "vsockproxy_config", "The running configuration: a hash of what it says."
        )
        self.lines_lost = CounterMetricFamily(
            "vsockproxy_log_lines_lost", "Lines of the log that could not be written."
        )
        self.route = InfoMetricFamily(
            "vsockproxy_route", "A route: its listener and its target.", labels=["route"]
        )
        self.active = GaugeMetricFamily(
            "vsockproxy_connections_active", "Connections that are open now.", labels=["route"]
        )
        self.connections = CounterMetricFamily(
            "vsockproxy_connections", "Connections that were accepted.", labels=["route"]
        )
        self.closed = CounterMetricFamily(
            "vsockproxy_connections_closed",
            "Connections that ended, by what ended them.",
            labels=["route", "reason"],
        )
        self.bytes = CounterMetricFamily(
            "vsockproxy_bytes",
            "Bytes delivered to the target (upstream) and to clients (downstream).",
            labels=["route", "direction"],
        )
        self.target_state = GaugeMetricFamily(
            "vsockproxy_target_state",
            "What each target's last answer was: 1 for the state that it is in.",
            labels=["route", "target", "state"],
        )
        self.held = GaugeMetricFamily(
            "vsockproxy_clients_held",
            "Clients that are held until a target answers.",
            labels=["route"],
        )
        self.held_results = CounterMetricFamily(
            "vsockproxy_held_clients",
            "Clients that were held until a target answered, by how that ended.",
            labels=["route", "result"],
        )
        self.dial_failures = CounterMetricFamily(
            "vsockproxy_dial_failures",
            "Targets that could not be reached, by why.",
            labels=["route", "reason"],
        )
        self.accept_errors = CounterMetricFamily(
            "vsockproxy_accept_errors", "Failed accept(2) calls.", labels=["route"]
        )
        self.rejected = CounterMetricFamily(
            "vsockproxy_clients_rejected",
            "Clients that were turned away, by why.",
            labels=["route", "reason"],
        )
        self.accept_pauses = CounterMetricFamily(
            "vsockproxy_accept_pauses",
            "How often accepting paused while clients waited, by why.",
            labels=["route", "reason"],
        )
        self.limit = GaugeMetricFamily(
            "vsockproxy_connections_limit",
            "How many connections a route may have, where it has a limit.",
            labels=["route"],
        )
        self.total_limit = GaugeMetricFamily(
            "vsockproxy_total_connections_limit",
            "How many connections all routes together may have, where there is a limit.",
        )
        self.guest_resolutions = CounterMetricFamily(
            "vsockproxy_guest_resolutions",
            "How often it was asked where a guest is, by whether that was found out.",
            labels=["guest", "result"],
        )
        self.guest_cid = GaugeMetricFamily(
            "vsockproxy_guest_cid",
            "The CID that a guest was found to have, while it is found.",
            labels=["guest"],
        )
        self.descriptors_free = GaugeMetricFamily(
            "vsockproxy_descriptors_free",
            "File descriptors that connections may still take.",
        )
        self.dial_seconds = HistogramMetricFamily(
            "vsockproxy_dial_seconds",
            "How long dials that succeeded took, handshake included.",
            labels=["route"],
        )
        self.connection_seconds = HistogramMetricFamily(
            "vsockproxy_connection_seconds",
            "How long ended connections lasted, from accept to close.",
            labels=["route"],
        )

    def all(self) -> Iterable[Metric]:
        return vars(self).values()

    def add_admission(self, admission: Admission) -> None:
        self.descriptors_free.add_metric([], admission.descriptors_free())
        if admission.limits.max_connections is not None:
            self.total_limit.add_metric([], admission.limits.max_connections)

    def add_guest(self, record: GuestRecord) -> None:
        for result, number in record.results.items():
            self.guest_resolutions.add_metric([record.guest.name, result], number)
        if isinstance(record.found, Cid):
            self.guest_cid.add_metric([record.guest.name], record.found.cid)

    def add_reloads(self, reloads: Reloads) -> None:
        for result, number in reloads.results.items():
            self.reloads.add_metric([result], number)
        self.last_reload.add_metric([], reloads.last_success)
        self.config.add_metric([], {"hash": reloads.fingerprint})

    def add(self, stats: RouteStats) -> None:
        route = stats.route
        label = [route.name]
        self.route.add_metric(
            label, {"listen": str(route.listen), "target": ", ".join(map(str, route.targets))}
        )
        self.active.add_metric(label, len(stats.live))
        self.connections.add_metric(label, stats.connections)
        self.bytes.add_metric([route.name, "upstream"], stats.upstream_bytes)
        self.bytes.add_metric([route.name, "downstream"], stats.downstream_bytes)
        self.accept_errors.add_metric(label, stats.accept_errors)
        if route.policy.max_connections is not None:
            self.limit.add_metric(label, route.policy.max_connections)
        self.held.add_metric(label, stats.held)
        for result, number in stats.held_results.items():
            self.held_results.add_metric([route.name, result], number)
        for target in stats.targets:
            for state in TARGET_STATES:
                labels = [route.name, str(target.address), state]
                self.target_state.add_metric(labels, float(target.name == state))
        for family, counter in (
            (self.closed, stats.closed),
            (self.dial_failures, stats.dial_failures),
            (self.rejected, stats.rejected),
            (self.accept_pauses, stats.accept_pauses),
        ):
            for reason, number in counter.items():
                family.add_metric([route.name, reason], number)
        _add_histogram(self.dial_seconds, label, stats.dial_seconds)
        _add_histogram(self.connection_seconds, label, stats.connection_seconds)


def _add_histogram(family: HistogramMetricFamily, label: list[str], values: Histogram) -> None:
    names = [*map(floatToGoString, values.bounds), "+Inf"]
    counts = accumulate(values.counts)
    family.add_metric(label, list(zip(names, counts, strict=True)), values.sum)
