"""Tests of the rates that `top` computes from snapshots."""

from tests.top.api_answers import event, route, snapshot, status
from vsockproxy.top.traffic import HISTORY, Traffic


def test_rates_are_the_differences_between_two_snapshots() -> None:
    traffic = Traffic()
    traffic.observe(snapshot(10.0, route(upstream_bytes=100, accepted=5)))
    later = route(
        upstream_bytes=300,
        downstream_bytes=50,
        accepted=9,
        dial_failures={"refused": 1, "timeout": 3},
    )
    traffic.observe(snapshot(12.0, later))
    [rates] = traffic.routes
    assert (rates.upstream, rates.downstream, rates.bytes) == (100, 25, 125)
    assert (rates.connections, rates.failures) == (2, 2)
    assert list(rates.history) == [125]


def test_the_first_snapshot_and_a_new_route_have_zero_rates() -> None:
    traffic = Traffic()
    traffic.observe(snapshot(1.0, route(upstream_bytes=100)))
    traffic.observe(snapshot(2.0, route(upstream_bytes=100), route("new", upstream_bytes=900)))
    assert [rates.bytes for rates in traffic.routes] == [0, 0]


def test_a_restarted_daemon_clears_rates_history_and_events() -> None:
    traffic = Traffic()
    traffic.observe(snapshot(1.0, route(upstream_bytes=900), events=[event(70)]))
    traffic.observe(snapshot(2.0, route(upstream_bytes=950)))
    traffic.observe(snapshot(3.0, route(upstream_bytes=5), status=status(started=2000.0)))
    [rates] = traffic.routes
    assert (rates.bytes, list(rates.history), traffic.last_event) == (0, [], 0)


def test_the_history_is_limited_to_one_minute() -> None:
    traffic = Traffic()
    for second in range(HISTORY + 5):
        traffic.observe(snapshot(float(second), route(upstream_bytes=second * second)))
    [rates] = traffic.routes
    assert len(rates.history) == HISTORY
    assert rates.history[-1] == 2 * second - 1


def test_after_a_failed_poll_the_previous_snapshot_stays() -> None:
    traffic = Traffic()
    traffic.observe(snapshot(1.0, events=[event(3)]))
    traffic.record_failure("no daemon")
    assert traffic.snapshot is not None
    assert (traffic.trouble, traffic.last_event) == ("no daemon", 3)
    traffic.observe(snapshot(2.0))
    assert traffic.trouble is None
