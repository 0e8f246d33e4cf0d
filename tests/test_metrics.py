"""Tests of the metrics, and of docs/metrics.md, which describes them."""

import errno
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.admin.fake_daemon import FakeDaemon
from vsockproxy import __version__
from vsockproxy.address.endpoint import TcpEndpoint, VsockEndpoint
from vsockproxy.admin.registry import Registry
from vsockproxy.admit.gate import REASONS, QueueReason, RejectReason
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.guest import Cid, CidFile, Guest
from vsockproxy.config.process import Limits
from vsockproxy.config.settings import Policy, Route
from vsockproxy.connection import Connection
from vsockproxy.guests.directory import Guests
from vsockproxy.metrics import MetricsCollector
from vsockproxy.pump.transfer import EndReason
from vsockproxy.reasons import Reason
from vsockproxy.revision import REVISION
from vsockproxy.stats import CONNECTION_BOUNDS, DIAL_BOUNDS, RouteStats, TargetState

PAGE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"
ROUTE: Final = Route(
    "web", TcpEndpoint(None, 8080), VsockEndpoint(3, 80), Policy(max_connections=7)
)
AF_INET: Final = 2
LISTEN_REASONS: Final = {"in_use", "not_local"}


class FixedTransfer:
    """A transfer with fixed byte counts."""

    def upstream_bytes(self) -> int:
        return 11

    def downstream_bytes(self) -> int:
        return 22

    def active(self) -> float:
        return 0.0

    def upstream_done(self) -> bool:
        return False

    def downstream_done(self) -> bool:
        return False

    def descriptor(self, target: bool) -> int:
        return -1

    def duplicate(self, target: bool) -> int:
        raise OSError(errno.EBADF, "closed")

    def stop(self) -> None:
        raise AssertionError("a scrape must not end a transfer")


@pytest.fixture
def stats() -> RouteStats:
    return RouteStats(ROUTE)


@pytest.fixture
def registry(stats: RouteStats) -> CollectorRegistry:
    return Registry(FakeDaemon(stats))


def opened(stats: RouteStats) -> Connection:
    connection = Connection(1, ROUTE, AF_INET, ("203.0.113.7", 4711))
    stats.open(connection)
    return connection


def busy(stats: RouteStats) -> None:
    """Increment every counter."""
    opened(stats).follow(FixedTransfer())
    stats.close(opened(stats), "finished")
    stats.dial_failures["refused"] += 1
    stats.accept_errors += 3
    stats.rejected["denied"] += 1
    stats.accept_pauses["descriptors"] += 1
    stats.requests["denied"] += 1
    stats.held_results["served"] += 1
    stats.targets = [TargetState(ROUTE.targets[0])]
    stats.dial_seconds.observe(0.001)


def test_a_new_route_exports_zeros(registry: CollectorRegistry) -> None:
    for name in ("connections_active", "connections_total", "accept_errors_total"):
        assert registry.get_sample_value(f"vsockproxy_{name}", {"route": "web"}) == 0
    labels = {"route": "web", "direction": "upstream"}
    assert registry.get_sample_value("vsockproxy_bytes_total", labels) == 0


def test_the_byte_counters_rise_while_a_connection_is_open(
    stats: RouteStats, registry: CollectorRegistry
) -> None:
    opened(stats).follow(FixedTransfer())
    moved = {
        direction: registry.get_sample_value(
            "vsockproxy_bytes_total", {"route": "web", "direction": direction}
        )
        for direction in ("upstream", "downstream")
    }
    assert moved == {"upstream": 11, "downstream": 22}


def test_a_closed_connection_leaves_the_gauge_and_stays_in_the_totals(
    stats: RouteStats, registry: CollectorRegistry
) -> None:
    route = {"route": "web"}
    connection = opened(stats)
    assert registry.get_sample_value("vsockproxy_connections_active", route) == 1
    connection.settle(5, 6)
    stats.close(connection, "client_reset")
    assert registry.get_sample_value("vsockproxy_connections_active", route) == 0
    assert registry.get_sample_value("vsockproxy_connections_total", route) == 1
    closed = "vsockproxy_connections_closed_total"
    assert registry.get_sample_value(closed, {**route, "reason": "client_reset"}) == 1
    assert registry.get_sample_value(closed, {**route, "reason": "finished"}) is None
    upstream = {**route, "direction": "upstream"}
    assert registry.get_sample_value("vsockproxy_bytes_total", upstream) == 5
    assert registry.get_sample_value("vsockproxy_connection_seconds_count", route) == 1


@pytest.mark.parametrize(
    ("name", "bounds"), [("dial_seconds", DIAL_BOUNDS), ("connection_seconds", CONNECTION_BOUNDS)]
)
def test_histogram_buckets_are_cumulative(
    stats: RouteStats, registry: CollectorRegistry, name: str, bounds: tuple[float, ...]
) -> None:
    for value in (bounds[0], bounds[1], bounds[-1] * 2):
        getattr(stats, name).observe(value)
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"vsockproxy_{name}_bucket"
    ]
    assert buckets == [
        (bounds[0], 1),
        (bounds[1], 2),
        *((bound, 2) for bound in bounds[2:]),
        (float("inf"), 3),
    ]
    assert registry.get_sample_value(f"vsockproxy_{name}_count", {"route": "web"}) == 3
    assert registry.get_sample_value(f"vsockproxy_{name}_sum", {"route": "web"}) == pytest.approx(
        bounds[0] + bounds[1] + bounds[-1] * 2
    )


def test_info_metrics_have_the_route_and_the_build_as_labels(registry: CollectorRegistry) -> None:
    route = {"route": "web", "listen": "tcp:8080", "target": "vsock:3:80"}
    assert registry.get_sample_value("vsockproxy_route_info", route) == 1
    build = {"version": __version__, "revision": REVISION, "pump": "native"}
    assert registry.get_sample_value("vsockproxy_build_info", build) == 1


def test_set_limits_and_free_descriptors_are_exported(stats: RouteStats) -> None:
    registry = Registry(FakeDaemon(stats, admission=Admission(Limits(9))))
    assert registry.get_sample_value("vsockproxy_connections_limit", {"route": "web"}) == 7
    assert registry.get_sample_value("vsockproxy_total_connections_limit") == 9
    free = registry.get_sample_value("vsockproxy_descriptors_free")
    assert free
    assert 0 < free < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    bare = Registry(FakeDaemon())
    assert bare.get_sample_value("vsockproxy_total_connections_limit") is None


def test_no_label_holds_a_clients_address(stats: RouteStats, registry: CollectorRegistry) -> None:
    busy(stats)
    assert b"203.0.113.7" not in generate_latest(registry)


def test_both_formats_can_be_parsed(stats: RouteStats, registry: CollectorRegistry) -> None:
    busy(stats)
    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call] # upstream has no types
    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call] # the same
    names = {family.name for family in families}
    assert {"vsockproxy_bytes", "vsockproxy_dial_seconds", "process_open_fds"} <= names
    assert b"# TYPE vsockproxy_bytes_total counter" in generate_latest(registry)


def test_two_registries_share_no_samples(stats: RouteStats) -> None:
    one = Registry(FakeDaemon(stats))
    two = Registry(FakeDaemon())
    assert one.get_sample_value("vsockproxy_connections_total", {"route": "web"}) == 0
    assert two.get_sample_value("vsockproxy_connections_total", {"route": "web"}) is None


def test_describe_returns_the_names_without_samples(stats: RouteStats) -> None:
    collector = MetricsCollector(FakeDaemon(stats))
    described = list(collector.describe())
    assert [m.name for m in described] == [m.name for m in collector.collect()]
    assert not any(metric.samples for metric in described)


# ---- docs/metrics.md ----


def exposed(stats: RouteStats) -> Iterator[tuple[str, str, frozenset[str]]]:
    """Yield the name, type and labels of every metric, as the text format shows them."""
    busy(stats)
    admission = Admission(Limits(max_connections=9))
    guests = Guests([Guest("web", CidFile("/run/web.cid"))])
    guests.records()[0].found = Cid(3)
    collector = MetricsCollector(FakeDaemon(stats, admission=admission, guests=guests))
    for family in collector.collect():
        labels = frozenset(label for sample in family.samples for label in sample.labels)
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        kind = "gauge" if family.type == "info" else family.type
        yield family.name + suffix, kind, labels - {"le"}


def test_every_counter_of_an_alert_exists_at_zero_from_the_start(stats: RouteStats) -> None:
    """An alert on a rate misses the first event of a series that begins with it."""
    rules = (PAGE.parents[1] / "config" / "prometheus" / "rules.yaml").read_text()
    counters = set(re.findall(r"vsockproxy_\w+_total", rules)) - {"vsockproxy_bytes_total"}
    samples = [one for row in MetricsCollector(FakeDaemon(stats)).collect() for one in row.samples]
    zeros = {one.name for one in samples if one.value == 0}
    assert counters <= zeros
    assert not [one for one in samples if one.name.endswith("_total") and one.value]


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table under a heading of the page, without back-quotes."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `.*\|$", section, re.MULTILINE)
    return [[cell.strip().replace("`", "") for cell in row.split("|")[1:-1]] for row in rows]


def test_the_page_lists_exactly_the_exported_metrics(stats: RouteStats) -> None:
    written = {
        (name, kind, frozenset(filter(None, labels.split(", "))))
        for name, kind, labels, _ in table("Metrics")
    }
    assert written == set(exposed(stats))


def test_the_page_lists_every_reason_of_a_closed_connection() -> None:
    written = [row[0] for row in table("Reasons for closed connections")]
    assert written == [*get_args(EndReason), "dial_*", "rejected_*"]


def test_the_page_lists_every_reason_of_a_rejected_or_queued_client() -> None:
    assert [row[0] for row in table("Reasons for rejected clients")] == _words(RejectReason)
    assert [row[0] for row in table("Reasons for queued clients")] == _words(QueueReason)
    assert {*_words(RejectReason), *_words(QueueReason)} == set(REASONS)


def _words(literals: object) -> list[str]:
    """Return the words of a union of literals, in order."""
    return [
        word
        for one in get_args(literals)
        for word in (_words(one) if get_args(one) else [str(one)])
    ]


def test_the_page_lists_every_reason_of_a_failed_dial() -> None:
    written = [row[0] for row in table("Reasons for failed dials")]
    assert written == [reason for reason in get_args(Reason) if reason not in LISTEN_REASONS]


def test_the_queries_of_the_page_use_only_existing_metrics(stats: RouteStats) -> None:
    queries = PAGE.read_text().split("## Queries")[1]
    known = {name for name, _, _ in exposed(stats)}
    used = set(re.findall(r"vsockproxy_\w+", queries))
    assert {name.removesuffix("_bucket") for name in used} <= known
    assert len(used) >= 6
