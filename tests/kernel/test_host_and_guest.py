"""A TCP client, the daemon on a host kernel with vhost_vsock, and a true guest with CID 3.

One boot for the module: host_story.py plays every step there and brings back facts; each
test here is one sentence about them.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.host_story import CONNECT_TIMEOUT, DOWNLOAD, ECHO, MOVED_CID, OUT, UPLOAD
from tests.kernel.vm import guest_line, run_on_host

pytestmark = pytest.mark.kernel

Facts = Mapping[str, Any]


class Story:
    """The facts of each step, and what the host printed meanwhile."""

    def __init__(self, told: Path, output: str) -> None:
        lines = told.read_text().splitlines() if told.exists() else []
        self._steps: dict[str, Facts] = {
            facts.pop("step"): facts for facts in map(json.loads, lines)
        }
        self._output = output

    def __getitem__(self, step: str) -> Facts:
        facts = self._steps.get(step, {"error": "it was never told"})
        if "error" in facts:
            pytest.fail(f"{step}: {facts['error']}\n{self._output}", pytrace=False)
        return facts


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    scratch = tmp_path_factory.mktemp("host")
    script = Path(__file__).with_name("host_story.py")
    line = [sys.executable, str(script), str(scratch), *guest_line(scratch)]
    return Story(scratch / "story", run_on_host(line, scratch).output)


@pytest.fixture(scope="module")
def samples(story: Story) -> dict[tuple[str, ...], float]:
    """The scrape after the transfers: (metric, label values by label name) -> value."""
    return {
        (name, *(labels[label] for label in sorted(labels, reverse=True))): value
        for name, labels, value in story["counters"]["samples"]
    }


def test_an_upload_reaches_the_guest_whole_and_its_answer_comes_after_our_eof(story: Story) -> None:
    facts = story["upload"]
    assert facts["guest_saw"] == facts["sent"]


def test_a_download_from_the_guest_is_whole(story: Story) -> None:
    facts = story["download"]
    assert facts["received"] == facts["wanted"]


def test_bytes_pass_both_ways_at_once_and_the_half_close_ends_the_echo(story: Story) -> None:
    facts = story["echo"]
    assert facts["received"] == facts["sent"]


def test_the_guest_reaches_a_tcp_service_of_the_host(story: Story) -> None:
    facts = story["out_of_the_guest"]
    assert facts["host_saw"] == facts["sent"]


@pytest.mark.parametrize(
    ("step", "direction", "size"),
    [
        ("upload", "upstream_bytes", UPLOAD),
        ("download", "downstream_bytes", DOWNLOAD),
        ("echo", "upstream_bytes", ECHO),
        ("echo", "downstream_bytes", ECHO),
        ("out_of_the_guest", "upstream_bytes", OUT),
    ],
)
def test_the_log_agrees_with_the_bytes(story: Story, step: str, direction: str, size: int) -> None:
    assert story[step]["logged"][direction] == size


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
def test_the_counters_agree_with_the_bytes(
    samples: Mapping[tuple[str, ...], float], route: str, direction: str, size: int
) -> None:
    assert samples["vsockproxy_bytes_total", route, direction] == size


def test_finished_connections_are_counted_and_none_is_left(
    samples: Mapping[tuple[str, ...], float],
) -> None:
    for route in ("digest", "source", "echo", "out", "from-guest"):
        assert samples["vsockproxy_connections_active", route] == 0
        assert samples["vsockproxy_connections_closed_total", route, "finished"] == 1


@pytest.mark.parametrize(
    ("step", "reason", "words"),
    [
        ("no_such_cid", "no_transport", "no running VM owns CID 77"),
        ("booting_guest", "timeout", "the guest does not answer"),
        ("refused_port", "refused", "nothing listens on its port 9999"),
        ("dead_guest", "no_transport", "no running VM owns CID 3"),
    ],
)
def test_a_failed_dial_resets_the_client_and_the_log_says_why(
    story: Story, step: str, reason: str, words: str
) -> None:
    facts = story[step]
    assert facts["client_saw"] == "ECONNRESET"
    assert facts["logged"]["reason"] == reason
    assert words in facts["logged"]["error"]


def test_connect_timeout_reaches_past_the_kernels_two_seconds(story: Story) -> None:
    assert story["booting_guest"]["seconds"] >= CONNECT_TIMEOUT - 0.5


def test_failed_dials_are_counted_by_reason(samples: Mapping[tuple[str, ...], float]) -> None:
    assert samples["vsockproxy_dial_failures_total", "nowhere", "no_transport"] == 1
    assert samples["vsockproxy_dial_failures_total", "digest", "timeout"] == 1
    assert samples["vsockproxy_dial_failures_total", "closed", "refused"] == 1


def test_a_client_that_came_before_the_guest_had_booted_gets_its_answer(story: Story) -> None:
    came, served = story["early_client_comes"], story["early_client_is_served"]
    assert came["reason"] in ("no_transport", "timeout")
    assert (came["waiting"], served["waiting"]) == (1, 0)
    assert served["received"] == "early bird"
    assert served["logged"]["held_seconds"] > CONNECT_TIMEOUT
    assert served["up"]["target"] == "vsock:3:9002"


def test_clients_of_a_killed_guest_are_reset_not_ended(story: Story) -> None:
    assert story["killed_guest"]["client_saw"] == {"busy": "ECONNRESET", "idle": "ECONNRESET"}


def test_the_log_says_that_the_target_was_reset(story: Story) -> None:
    for logged in story["killed_guest"]["logged"]:
        assert logged["reason"] == "target_reset"
        assert logged["target"].startswith("vsock:3:")


def test_a_guest_is_found_by_its_qemu_monitor(story: Story) -> None:
    facts = story["named_guest"]
    assert facts["received"] == facts["sent"]
    assert facts["at"] == "cid = 3"


def test_while_its_monitor_is_gone_the_guest_is_not_found(story: Story) -> None:
    facts = story["lost_guest"]
    assert facts["client_saw"] == "ECONNRESET"
    assert facts["logged"]["reason"] == "guest"
    assert "nobody listens at any more" in facts["logged"]["error"]


def test_a_guest_that_restarts_with_another_cid_is_reached_without_a_reload(story: Story) -> None:
    facts = story["moved_guest"]
    assert facts["received"] == facts["sent"]
    assert facts["at"] == f"cid = {MOVED_CID}"
    samples = {name: value for name, _, value in facts["samples"]}
    assert samples["vsockproxy_guest_cid"] == MOVED_CID
    assert samples["vsockproxy_config_reloads_total"] == 0


def test_the_daemon_ends_well_after_all_that(story: Story) -> None:
    assert story["stop"]["status"] == 0
