"""The shipped units under a real systemd: from start to drain, and what goes wrong between.

One boot for the module: systemd_story.py plays every step there and brings back facts; each
test here is one sentence about them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.systemd import SCRATCH, run_under_systemd
from tests.kernel.systemd_story import WATCHDOG

pytestmark = pytest.mark.kernel

Facts = Mapping[str, Any]


class Story:
    """The facts of each step, and what systemd and the daemon said meanwhile."""

    def __init__(self, scratch: Path, output: str) -> None:
        told = scratch / "story"
        lines = told.read_text().splitlines() if told.exists() else []
        self._steps: dict[str, Facts] = {
            facts.pop("step"): facts for facts in map(json.loads, lines)
        }
        self._evidence = f"{output}\n--- {scratch}/journal has more"

    def __getitem__(self, step: str) -> Facts:
        facts = self._steps.get(step, {"error": "it was never told"})
        if "error" in facts:
            pytest.fail(f"{step}: {facts['error']}\n{self._evidence}", pytrace=False)
        return facts


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    scratch = tmp_path_factory.mktemp("systemd")
    script = "/opt/vsockproxy/tests/kernel/systemd_story.py"
    return Story(scratch, run_under_systemd(["python", script, SCRATCH], scratch).output)


def test_start_returns_when_every_route_listens(story: Story) -> None:
    facts = story["start"]
    assert (facts["status"], facts["exchange"]) == (0, "ok"), facts["said"]
    assert facts["state"] == "active"


def test_the_status_line_counts_routes_and_connections(story: Story) -> None:
    assert story["start"]["text"] == "2 routes, 0 live connections"


def test_bytes_reach_a_guest_and_come_from_a_guest_whole(story: Story) -> None:
    facts = story["relays"]
    assert (facts["to_guest"], facts["from_guest"]) == ("ok", "ok")


# ---- the sandbox ----


def test_the_daemon_is_nobody_with_no_capability_and_a_filter(story: Story) -> None:
    facts = story["sandbox"]
    assert int(facts["status"]["Uid"]) >= 61184, "DynamicUser= begins there"
    assert facts["status"]["NoNewPrivs"] == "1"
    assert facts["status"]["Seccomp"] == "2"
    assert set(facts["capabilities"]) == {"0" * 16}


def test_not_even_root_could_write_to_the_system_in_its_place(story: Story) -> None:
    for answer in story["sandbox"]["root"]:
        assert "Read-only file system" in answer


def test_it_sees_no_device_of_the_machine(story: Story) -> None:
    devices = set(story["sandbox"]["devices"])
    assert "null" in devices
    assert not devices & {"mem", "kmsg", "vsock", "loop-control", "fuse", "rtc0"}


@pytest.mark.parametrize(
    "what",
    ["vsock", "tcp", "unix", "read the configuration", "write to /run/vsockproxy"],
)
def test_what_it_needs_is_allowed(story: Story, what: str) -> None:
    assert story["sandbox"]["found"][what] == "ok"


@pytest.mark.parametrize(
    ("what", "error"),
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
def test_what_it_does_not_need_is_refused(story: Story, what: str, error: str) -> None:
    assert story["sandbox"]["found"][what] == error


# ---- reload ----


def test_a_reload_keeps_live_connections_on_the_old_target(story: Story) -> None:
    facts = story["reload"]
    assert facts["status"] == 0
    assert (facts["before"], facts["after"]) == ("hello", "hello")


def test_a_reload_gives_new_connections_the_new_target_and_opens_new_routes(story: Story) -> None:
    facts = story["reload"]
    assert facts["new"] == "new"
    assert facts["added"] == "ok"
    assert facts["text"].startswith("3 routes")


def test_a_wrong_file_fails_the_reload_and_changes_nothing(story: Story) -> None:
    facts = story["reload_of_a_wrong_file"]
    assert facts["status"] != 0
    assert facts["said"]
    assert (facts["state"], facts["same"], facts["exchange"]) == ("active", True, "ok")


def test_a_reload_that_cannot_bind_is_told_and_changes_nothing(story: Story) -> None:
    facts = story["reload_that_cannot_bind"]
    [logged] = facts["logged"]
    assert "another process listens there" in logged["problem"]
    assert facts["text"].startswith("the last reload failed, see the log; 3 routes, ")
    assert (facts["same"], facts["exchange"]) == (True, "ok")


def test_the_next_good_reload_takes_the_complaint_back(story: Story) -> None:
    assert story["reload_that_cannot_bind"]["text_after"].startswith("2 routes, ")


# ---- restart, watchdog, stop ----


@pytest.mark.parametrize("listener", ["tcp", "vsock"])
def test_restarts_under_load_refuse_no_client(story: Story, listener: str) -> None:
    facts = story["restart"]
    assert len(set(facts["pids"])) == 3, "two restarts"
    assert list(facts[listener]) == ["ok"]
    assert facts[listener]["ok"] > 10


def test_a_listener_whose_route_is_gone_is_not_kept_over_a_restart(story: Story) -> None:
    assert story["restart"]["gone"] == "ECONNRESET"


def test_a_pump_thread_that_hangs_is_killed_by_the_watchdog_and_the_daemon_comes_back(
    story: Story,
) -> None:
    facts = story["held_pump"]
    assert facts["killed_after"] < 2 * WATCHDOG
    assert any("Watchdog timeout" in line for line in facts["said"])
    assert facts["logged"], "the log says it before systemd does"
    assert (facts["restarts"], facts["new"]) == (1, True)


def test_a_client_of_the_time_between_is_served_by_the_next_daemon(story: Story) -> None:
    assert story["held_pump"]["exchange"] == "ok"


def test_a_stop_lets_a_connection_finish_although_it_takes_longer_than_systemd_waits(
    story: Story,
) -> None:
    facts = story["drain"]
    assert facts["text"] == "draining, 1 live connection"
    assert (facts["answer"], facts["state_before"]) == ("hello", "deactivating")
    assert (facts["state"], facts["result"], facts["logged"]) == ("inactive", "success", True)


def test_after_a_stop_nobody_listens(story: Story) -> None:
    assert story["drain"]["connect"] == "ECONNREFUSED"


# ---- sockets of systemd ----


@pytest.mark.parametrize("kind", ["tcp", "vsock"])
def test_the_first_client_of_a_socket_unit_starts_the_daemon(story: Story, kind: str) -> None:
    facts = story["activation"]
    assert facts["before"] == "inactive"
    assert facts[kind] == ["ok", "active", "ok"]


def test_a_daemon_without_a_network_relays_from_a_tcp_socket_unit_to_a_guest(story: Story) -> None:
    facts = story["private_network"]
    assert (facts["apart"], facts["exchange"]) == (True, "ok")


def test_a_socket_that_no_route_listens_on_is_named(story: Story) -> None:
    [logged] = story["private_network"]["surplus"]
    assert (logged["level"], logged["name"]) == ("warning", "guests")


def test_a_daemon_whose_port_is_taken_is_not_ready_and_says_why(story: Story) -> None:
    facts = story["instance"]
    assert facts["status"] != 0
    assert facts["state"] == "activating"
    assert "another process listens there" in facts["said"][0]


def test_an_instance_with_its_own_file_comes_up_once_the_port_is_free(story: Story) -> None:
    assert story["instance"]["exchange"] == "ok"
