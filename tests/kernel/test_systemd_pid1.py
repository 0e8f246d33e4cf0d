"""The shipped units under a real systemd: start, reload, restart, watchdog, stop, activation.

The module boots once: systemd_scenario.py runs every step there and records facts, and each
test asserts one thing about them.
"""

import pytest

from tests.kernel.facts import RecordedFacts
from tests.kernel.systemd import SCRATCH, run_under_systemd
from tests.kernel.systemd_scenario import WATCHDOG

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> RecordedFacts:
    scratch = tmp_path_factory.mktemp("systemd")
    script = "/opt/vsockproxy/tests/kernel/systemd_scenario.py"
    output = run_under_systemd(["python", script, SCRATCH], scratch).output
    return RecordedFacts(scratch / "facts", f"{output}\n--- see also {scratch}/journal")


def test_start_returns_when_every_route_listens(scenario: RecordedFacts) -> None:
    facts = scenario["start"]
    assert (facts["status"], facts["exchange"]) == (0, "ok"), facts["output"]
    assert facts["state"] == "active"


def test_the_status_line_counts_routes_and_connections(scenario: RecordedFacts) -> None:
    assert scenario["start"]["text"] == "2 routes, 0 live connections"


def test_uploads_to_and_from_a_guest_come_back_whole(scenario: RecordedFacts) -> None:
    facts = scenario["relays"]
    assert (facts["to_guest"], facts["from_guest"]) == ("ok", "ok")


# ---- the sandbox ----


def test_the_daemon_runs_as_a_dynamic_user_without_capabilities_under_seccomp(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["sandbox"]
    assert int(facts["status"]["Uid"]) >= 61184, "DynamicUser= begins there"
    assert facts["status"]["NoNewPrivs"] == "1"
    assert facts["status"]["Seccomp"] == "2"
    assert set(facts["capabilities"]) == {"0" * 16}


def test_root_in_the_daemons_mount_namespace_cannot_write_to_the_system(
    scenario: RecordedFacts,
) -> None:
    for answer in scenario["sandbox"]["root"]:
        assert "Read-only file system" in answer


def test_the_daemon_sees_no_device_of_the_machine(scenario: RecordedFacts) -> None:
    devices = set(scenario["sandbox"]["devices"])
    assert "null" in devices
    assert not devices & {"mem", "kmsg", "vsock", "loop-control", "fuse", "rtc0"}


@pytest.mark.parametrize(
    "operation",
    ["vsock", "tcp", "unix", "read the configuration", "write to /run/vsockproxy"],
)
def test_an_operation_that_the_daemon_needs_is_allowed(
    scenario: RecordedFacts, operation: str
) -> None:
    assert scenario["sandbox"]["found"][operation] == "ok"


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("netlink", "EAFNOSUPPORT"),
        ("packet", "EAFNOSUPPORT"),
        ("write to /etc/vsockproxy", "EROFS"),
        ("list /root", "EACCES"),
        ("list /proc/1", "ENOENT"),
        ("memory that is written and run", "EPERM"),
        ("a user namespace", "EPERM"),
        ("the scheduler", "EPERM"),
        ("a port below 1024", "EACCES"),
    ],
)
def test_an_operation_that_the_daemon_does_not_need_fails(
    scenario: RecordedFacts, operation: str, error: str
) -> None:
    assert scenario["sandbox"]["found"][operation] == error


# ---- reload ----


def test_a_reload_keeps_live_connections_on_the_old_target(scenario: RecordedFacts) -> None:
    facts = scenario["reload"]
    assert facts["status"] == 0
    assert (facts["before"], facts["after"]) == ("hello", "hello")


def test_a_reload_gives_new_connections_the_new_target_and_opens_new_routes(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["reload"]
    assert facts["new"] == "new"
    assert facts["added"] == "ok"
    assert facts["text"].startswith("3 routes")


def test_a_wrong_file_fails_the_reload_and_changes_nothing(scenario: RecordedFacts) -> None:
    facts = scenario["reload_of_a_wrong_file"]
    assert facts["status"] != 0
    assert facts["output"]
    assert (facts["state"], facts["same_process"], facts["exchange"]) == ("active", True, "ok")


def test_a_reload_that_cannot_bind_is_logged_and_changes_nothing(scenario: RecordedFacts) -> None:
    facts = scenario["reload_that_cannot_bind"]
    [logged] = facts["logged"]
    assert "another process listens there" in logged["problem"]
    assert facts["text"].startswith("the last reload failed, see the log; 3 routes, ")
    assert (facts["same_process"], facts["exchange"]) == (True, "ok")


def test_after_a_failed_reload_a_good_one_clears_the_status_line(scenario: RecordedFacts) -> None:
    assert scenario["reload_that_cannot_bind"]["text_after"].startswith("2 routes, ")


# ---- restart, watchdog, stop ----


@pytest.mark.parametrize("listener", ["tcp", "vsock"])
def test_restarts_under_load_refuse_no_client(scenario: RecordedFacts, listener: str) -> None:
    facts = scenario["restart"]
    assert len(set(facts["pids"])) == 3, "the daemon was restarted twice"
    assert list(facts[listener]) == ["ok"]
    assert facts[listener]["ok"] > 10


def test_a_listener_without_a_route_is_closed_at_a_restart(scenario: RecordedFacts) -> None:
    assert scenario["restart"]["removed"] == "ECONNRESET"


def test_a_daemon_whose_pump_thread_hangs_is_killed_by_the_watchdog_and_restarted(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["hung_pump"]
    assert facts["killed_after"] < 2 * WATCHDOG
    assert any("Watchdog timeout" in line for line in facts["output"])
    assert facts["logged"], "pump_hung is logged before the watchdog kills the daemon"
    assert (facts["restarts"], facts["new"]) == (1, True)


def test_a_client_that_connects_before_the_restart_is_served_after_it(
    scenario: RecordedFacts,
) -> None:
    assert scenario["hung_pump"]["exchange"] == "ok"


def test_a_stop_lets_a_connection_finish_that_outlives_timeout_stop_sec(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["drain"]
    assert facts["text"] == "draining, 1 live connection"
    assert (facts["answer"], facts["state_before"]) == ("hello", "deactivating")
    assert (facts["state"], facts["result"], facts["logged"]) == ("inactive", "success", True)


def test_after_a_stop_a_client_is_refused(scenario: RecordedFacts) -> None:
    assert scenario["drain"]["connect"] == "ECONNREFUSED"


# ---- sockets of systemd ----


@pytest.mark.parametrize("kind", ["tcp", "vsock"])
def test_the_first_client_of_a_socket_unit_starts_the_daemon(
    scenario: RecordedFacts, kind: str
) -> None:
    facts = scenario["activation"]
    assert facts["before"] == "inactive"
    assert facts[kind] == ["ok", "active", "ok"]


def test_a_daemon_in_a_private_network_relays_from_a_tcp_socket_unit_to_a_guest(
    scenario: RecordedFacts,
) -> None:
    facts = scenario["private_network"]
    assert (facts["private"], facts["exchange"]) == (True, "ok")


def test_a_socket_that_no_route_uses_is_logged_by_name(scenario: RecordedFacts) -> None:
    [logged] = scenario["private_network"]["unused_socket"]
    assert (logged["level"], logged["name"]) == ("warning", "guests")


def test_a_daemon_whose_port_is_in_use_is_not_ready_and_logs_why(scenario: RecordedFacts) -> None:
    facts = scenario["instance"]
    assert facts["status"] != 0
    assert facts["state"] == "activating"
    assert "another process listens there" in facts["output"][0]


def test_an_instance_whose_port_becomes_free_starts(scenario: RecordedFacts) -> None:
    assert scenario["instance"]["exchange"] == "ok"
