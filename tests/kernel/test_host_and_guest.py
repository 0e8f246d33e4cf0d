"""TCP clients, the daemon on a host kernel with vhost_vsock, and a real guest with CID 3.

The module boots once: host_scenario.py runs every step there and records facts, and each test
asserts one thing about them.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.kernel.facts import RecordedFacts
from tests.kernel.host_scenario import CONNECT_TIMEOUT, DOWNLOAD, ECHO, MOVED_CID, OUT, UPLOAD
from tests.kernel.qemu import guest_command, run_on_host

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> RecordedFacts:
    scratch = tmp_path_factory.mktemp("host")
    (scratch / "web").mkdir()
    (scratch / "web" / "page").write_text("a page\n")
    script = Path(__file__).with_name("host_scenario.py")
    line = [sys.executable, str(script), str(scratch), *guest_command(scratch)]
    return RecordedFacts(scratch / "facts", run_on_host(line, scratch).output)


@pytest.fixture(scope="module")
def samples(scenario: RecordedFacts) -> dict[tuple[str, ...], float]:
    """The scrape after the transfers: metric and label values, ordered by label name, to value."""
    return {
        (name, *(labels[label] for label in sorted(labels, reverse=True))): value
        for name, labels, value in scenario["counters"]["samples"]
    }


def test_an_upload_reaches_the_guest_whole_and_is_answered_after_the_half_close(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["upload"]
    assert facts["guest_saw"] == facts["sent"]


def test_a_download_from_the_guest_is_whole(scenario: RecordedFacts) -> None:
    facts = scenario["download"]
    assert facts["received"] == facts["expected"]


def test_an_echo_passes_bytes_both_ways_at_once_and_ends_at_the_half_close(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["echo"]
    assert facts["received"] == facts["sent"]


def test_a_guest_reaches_a_tcp_service_of_the_host(scenario: RecordedFacts) -> None:
    facts = scenario["guest_connects_to_the_host"]
    assert facts["host_saw"] == facts["sent"]


def test_ssh_reaches_the_sshd_of_a_guest_by_the_guests_name(scenario: RecordedFacts) -> None:
    facts = scenario["ssh_to_the_guest"]
    assert facts["status"] == 0, facts


def test_a_guest_without_a_network_reaches_an_allowed_name_and_prints_why_another_is_denied(
    scenario: RecordedFacts,
) -> None:
    lines = scenario["ssh_to_the_guest"]["lines"]
    assert lines == [
        "a page",
        "vsockproxy: example.com:80 is denied: target_allow has no rule for example.com:80",
        "a page",
        "curl: (97) Can't complete SOCKS5 connection to 192.0.2.1. (2)",
        "status 97",
    ]


def test_each_decision_on_a_guests_request_is_logged_with_its_cid(scenario: RecordedFacts) -> None:
    for line in scenario["ssh_to_the_guest"]["log"]:
        assert line["client"].startswith("vsock:3:")
        assert line["verdict"] == ("denied" if line["asked"].endswith(":80") else "allowed")


def test_a_line_with_a_guests_name_reaches_its_sshd(scenario: RecordedFacts) -> None:
    facts = scenario["sshd_by_the_name_of_its_guest"]
    assert facts["lines"][0] == "OK 22\n"
    assert facts["lines"][1].startswith("SSH-2.0-OpenSSH")
    assert facts["log"]["asked"] == "web:22"


@pytest.mark.parametrize(
    ("step", "direction", "size"),
    [
        ("upload", "upstream_bytes", UPLOAD),
        ("download", "downstream_bytes", DOWNLOAD),
        ("echo", "upstream_bytes", ECHO),
        ("echo", "downstream_bytes", ECHO),
        ("guest_connects_to_the_host", "upstream_bytes", OUT),
    ],
)
def test_the_log_agrees_with_the_bytes(
    scenario: RecordedFacts, step: str, direction: str, size: int
) -> None:
    assert scenario[step]["logged"][direction] == size


@pytest.mark.parametrize(
    ("route", "direction", "size"),
    [
        ("digest", "upstream", UPLOAD),
        ("source", "upstream", len(f"{DOWNLOAD}\n")),
        ("source", "downstream", DOWNLOAD),
        ("echo", "upstream", ECHO),
        ("echo", "downstream", ECHO),
        ("from-guest", "upstream", OUT),
    ],
)
def test_after_the_transfers_the_byte_counters_equal_the_bytes_sent(
    samples: Mapping[tuple[str, ...], float], route: str, direction: str, size: int
) -> None:
    assert samples["vsockproxy_bytes_total", route, direction] == size


def test_after_the_transfers_every_connection_is_counted_as_finished(
    samples: Mapping[tuple[str, ...], float],
) -> None:
    for route in ("digest", "source", "echo", "out", "from-guest"):
        assert samples["vsockproxy_connections_active", route] == 0
        assert samples["vsockproxy_connections_closed_total", route, "finished"] == 1


@pytest.mark.parametrize(
    ("step", "reason", "text"),
    [
        ("no_such_cid", "no_transport", "no running VM owns CID 77"),
        ("booting_guest", "timeout", "the guest does not answer"),
        ("refused_port", "refused", "nothing listens on its port 9999"),
        ("dead_guest", "no_transport", "no running VM owns CID 3"),
    ],
)
def test_a_failed_dial_resets_the_client_and_the_log_says_why(
    scenario: RecordedFacts, step: str, reason: str, text: str
) -> None:
    facts = scenario[step]
    assert facts["client_saw"] == "ECONNRESET"
    assert facts["logged"]["reason"] == reason
    assert text in facts["logged"]["error"]


def test_a_connect_timeout_above_the_kernels_two_seconds_is_kept(scenario: RecordedFacts) -> None:
    assert scenario["booting_guest"]["seconds"] >= CONNECT_TIMEOUT - 0.5


def test_failed_dials_are_counted_by_reason(samples: Mapping[tuple[str, ...], float]) -> None:
    assert samples["vsockproxy_dial_failures_total", "nowhere", "no_transport"] == 1
    assert samples["vsockproxy_dial_failures_total", "digest", "timeout"] == 1
    assert samples["vsockproxy_dial_failures_total", "closed", "refused"] == 1


def test_a_client_held_while_the_guest_boots_gets_its_answer(scenario: RecordedFacts) -> None:
    connected, served = scenario["early_client_connects"], scenario["early_client_is_served"]
    assert connected["reason"] in ("no_transport", "timeout")
    assert (connected["held"], served["held"]) == (1, 0)
    assert served["received"] == "early bird"
    assert served["logged"]["held_seconds"] > CONNECT_TIMEOUT
    assert served["up"]["target"] == "vsock:3:9002"


def test_clients_of_a_killed_guest_are_reset(scenario: RecordedFacts) -> None:
    assert scenario["killed_guest"]["client_saw"] == {"busy": "ECONNRESET", "idle": "ECONNRESET"}


def test_connections_of_a_killed_guest_are_logged_as_target_reset(scenario: RecordedFacts) -> None:
    for logged in scenario["killed_guest"]["logged"]:
        assert logged["reason"] == "target_reset"
        assert logged["target"].startswith("vsock:3:")


def test_a_guest_named_by_its_qemu_monitor_is_found_at_its_cid(scenario: RecordedFacts) -> None:
    facts = scenario["named_guest"]
    assert facts["received"] == facts["sent"]
    assert facts["at"] == "cid = 3"


def test_a_guest_whose_monitor_is_gone_is_not_found(scenario: RecordedFacts) -> None:
    facts = scenario["guest_not_found"]
    assert facts["client_saw"] == "ECONNRESET"
    assert facts["logged"]["reason"] == "guest"
    assert "is a stale socket" in facts["logged"]["error"]


def test_a_guest_that_restarts_with_another_cid_is_reached_without_a_reload(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["moved_guest"]
    assert facts["received"] == facts["sent"]
    assert facts["at"] == f"cid = {MOVED_CID}"
    samples = {name: value for name, _, value in facts["samples"]}
    assert samples["vsockproxy_guest_cid"] == MOVED_CID
    assert samples["vsockproxy_config_reloads_total"] == 0


def test_after_every_step_the_daemon_stops_with_status_0(scenario: RecordedFacts) -> None:
    assert scenario["stop"]["status"] == 0
