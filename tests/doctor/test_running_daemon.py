"""The doctor's check of a running daemon."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.fake_services import unix_listener
from tests.waiting import until
from vsockproxy.address.endpoint import Dialable, GuestEndpoint, UnixEndpoint, VsockEndpoint
from vsockproxy.admit.gate import REASONS
from vsockproxy.config.guest import Guest, MuxGlob
from vsockproxy.config.settings import Config
from vsockproxy.doctor.examination import Attempts, examine
from vsockproxy.doctor.finding import Finding
from vsockproxy.doctor.machine import Machine
from vsockproxy.doctor.running_daemon import RunningDaemon, ask_daemon, judge_daemon
from vsockproxy.errors import VsockproxyError, dial_error
from vsockproxy.stats import TargetState


async def query(running: ControlledDaemon) -> RunningDaemon:
    answer = await trio.to_thread.run_sync(partial(ask_daemon, lambda: running.socket))
    assert isinstance(answer, RunningDaemon)
    return answer


def judge(daemon: RunningDaemon | VsockproxyError, config: Config | None = None) -> list[Finding]:
    return list(judge_daemon(daemon, config))


async def test_a_ready_daemon_is_one_finding(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", "db") as running:
        [finding] = judge(await query(running), running.daemon.config)
    assert finding.level == "ok"
    assert "routes: 2, live connections: 0" in finding.text


async def test_a_paused_or_drained_route_is_a_problem_with_resume_as_remedy(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", "db") as running:
        await running.post("/v1/routes/db/pause")
        await running.post("/v1/routes/web/drain")
        found = {one.subject: one for one in judge(await query(running))}
    assert found["route db"].remedy == "vsockproxy resume db"
    assert "paused" in found["route db"].text
    assert found["route web"].remedy == "vsockproxy resume web"
    assert {found[name].level for name in ("route db", "route web")} == {"problem"}


async def test_rejected_clients_are_noted_with_their_rule(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as running:
        for reason in REASONS:
            running.stats("web").rejected[reason] += 2
        notes = [one for one in judge(await query(running)) if one.subject == "route web"]
    assert {one.level for one in notes} == {"note"}
    for reason, sentence in REASONS.items():
        assert any(f"2 clients rejected ({reason}): {sentence}" in one.text for one in notes)


async def test_the_last_failed_reload_is_a_problem(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as running:
        running.daemon.reloads.failed(["file.toml:3: listen: is missing"])
        [found] = [one for one in judge(await query(running)) if one.level == "problem"]
    assert "the last reload failed" in found.text
    assert found.text.endswith("file.toml:3: listen: is missing")
    assert found.remedy == "correct it, then vsockproxy reload"


async def fails_to_dial(running: ControlledDaemon, target: Dialable, reason: str) -> Finding:
    """Change the route's target, let a dial fail, and return the finding about it."""
    [route] = running.daemon.config.routes
    await running.reload(routes=(replace(route, target=target),))
    client = await running.connect(route.name)
    await running.closed(route.name, f"dial_{reason}")
    await client.aclose()
    return judge(await query(running))[-1]


async def test_the_last_failed_dial_is_shown_with_its_age(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as running:
        target = UnixEndpoint(str(tmp_path / "none"))
        finding = await fails_to_dial(running, target, "not_found")
    assert finding.subject == "route web"
    assert finding.level == "note"
    assert re.search(r"was [\d.]+m?s ago \(1 in all\): cannot dial", finding.text)


async def test_a_failed_dial_before_one_that_was_answered_needs_no_remedy(tmp_path: Path) -> None:
    late = tmp_path / "late"
    async with controlled_daemon(tmp_path, "web") as running:
        assert (await fails_to_dial(running, UnixEndpoint(str(late)), "not_found")).remedy
        with unix_listener(late):
            async with await running.connect("web"):
                await until(lambda: running.stats("web").targets[0].name == "up")
                finding = judge(await query(running))[-1]
    assert finding.text.endswith("; a later dial was answered")
    assert finding.remedy == ""


async def test_a_dial_denied_only_to_the_daemon_is_a_problem(tmp_path: Path) -> None:
    """Root may write to every socket; the daemon's user may not."""
    async with controlled_daemon(tmp_path, "web") as running:
        daemon = await query(running)
    error = dial_error(UnixEndpoint("/run/vm.sock"), errno.EACCES)
    [web] = daemon.routes
    last = {
        "time": 0.0,
        "reason": error.reason,
        "message": error.summary,
        "remedy": error.remedy,
    }
    denied = {**web, "targets": [{"address": str(error.endpoint)}], "last_error": last}
    finding = judge(replace(daemon, routes=[denied]))[-1]
    assert finding.level == "problem"
    assert "setfacl" in finding.remedy


@pytest.mark.parametrize(
    ("code", "level"), [(errno.EAFNOSUPPORT, "problem"), (errno.ENODEV, "note")]
)
async def test_the_remedy_is_that_of_the_failed_dial_and_is_shown_once(
    tmp_path: Path, code: int, level: str
) -> None:
    """The failed target need not be the route's first, and a reason has several remedies."""
    error = dial_error(VsockEndpoint(7, 80), code)
    async with controlled_daemon(tmp_path, "web") as running:
        stats = running.stats("web")
        stats.targets.append(TargetState(VsockEndpoint(7, 80)))
        stats.keep_error(VsockEndpoint(7, 80), error)
        finding = judge(await query(running))[-1]
    assert (finding.subject, finding.level) == ("route web", level)
    assert finding.text.endswith(f" ago: {error.summary}")
    assert finding.remedy == error.remedy


async def test_a_guest_that_is_down_is_a_problem_without_a_file(tmp_path: Path) -> None:
    guest = Guest("web", MuxGlob(str(tmp_path / "vm-*.sock")))
    async with controlled_daemon(tmp_path, "web") as running:
        [route] = running.daemon.config.routes
        named = replace(route, target=GuestEndpoint("web", 80, over="vsock-mux"))
        await running.reload(routes=(named,), guests=(guest,))
        client = await running.connect("web")
        await running.closed("web", "dial_guest")
        await client.aclose()
        found = [one for one in judge(await query(running)) if one.level == "problem"]
    assert [one.subject for one in found] == ["route web"]
    assert "web:80 is down" in found[0].text


async def test_the_daemons_own_file_is_examined_from_any_folder(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('guests.web.cid = 7\nforward.8080 = "web:80"')
    async with controlled_daemon(tmp_path, "web") as running:
        await running.reload(source=str(file))
        daemon = await query(running)
        known = daemon.config()
        file.unlink()
        fallback = daemon.config()
    assert known is not None
    assert [guest.name for guest in known.guests] == ["web"]
    assert fallback is not None
    assert [route.name for route in fallback.routes] == ["web"]


async def test_a_changed_file_is_noted_with_reload_as_remedy(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as running:
        config = running.daemon.config
        daemon = await query(running)
        newer = replace(config, limits=replace(config.limits, max_connections=5))
        unresolved = replace(config, admin=replace(config.admin, socket="auto"))
    assert judge(daemon, newer)[1].remedy == "vsockproxy reload"
    assert len(judge(daemon, unresolved)) == 1


async def test_without_a_file_the_daemons_targets_are_dialled(tmp_path: Path) -> None:
    attempts = Attempts(open_vsock=lambda: 0, read_cid=lambda: 2)
    async with controlled_daemon(tmp_path, "web") as running:
        daemon = await query(running)
        found = await examine(None, machine=Machine(), attempts=attempts, daemon=daemon)
    assert [one.level for one in found if one.subject == "route web"] == ["ok"]
    assert not [one for one in found if one.subject == "configuration"]


@contextmanager
def hanging(path: Path) -> Iterator[Path]:
    with unix_listener(path):
        yield path


def test_a_missing_daemon_is_a_note_and_a_hanging_one_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.doctor.running_daemon._TIMEOUT", 0.05)
    [none] = judge(ask_daemon(lambda: tmp_path / "none"))
    with hanging(tmp_path / "s") as path:
        [hangs] = judge(ask_daemon(lambda: path))
    assert none.level == "note"
    assert "does not exist; start" in none.text
    assert hangs.level == "problem"
