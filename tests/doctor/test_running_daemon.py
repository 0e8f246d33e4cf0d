"""What the doctor hears from a daemon that runs, and what it makes of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.admin.running_daemon import Steered, steered
from tests.fake_services import unix_listener
from vsockproxy.address.endpoint import Dialable, UnixEndpoint
from vsockproxy.config.settings import Config
from vsockproxy.doctor.examination import Attempts, examine
from vsockproxy.doctor.finding import Finding
from vsockproxy.doctor.machine import Machine
from vsockproxy.doctor.running_daemon import Daemon, ask_daemon, judge_daemon
from vsockproxy.errors import VsockproxyError, dial_error


async def asked(running: Steered) -> Daemon:
    answer = await trio.to_thread.run_sync(partial(ask_daemon, lambda: running.socket))
    assert isinstance(answer, Daemon)
    return answer


def told(daemon: Daemon | VsockproxyError, config: Config | None = None) -> list[Finding]:
    return list(judge_daemon(daemon, config))


async def test_a_daemon_at_work_is_told_in_a_line(tmp_path: Path) -> None:
    async with steered(tmp_path, "web", "db") as running:
        [finding] = told(await asked(running), running.daemon.config)
    assert finding.level == "ok"
    assert "routes: 2, live connections: 0" in finding.text


async def test_a_route_that_an_operator_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    async with steered(tmp_path, "web", "db") as running:
        await running.post("/v1/routes/db/pause")
        await running.post("/v1/routes/web/drain")
        found = {one.subject: one for one in told(await asked(running))}
    assert found["route db"].remedy == "vsockproxy resume db"
    assert "paused" in found["route db"].text
    assert found["route web"].remedy == "vsockproxy resume web"
    assert {found[name].level for name in ("route db", "route web")} == {"problem"}


async def fails_to_dial(running: Steered, target: Dialable, reason: str) -> Finding:
    """Lead the one route elsewhere, connect, and ask what became of it."""
    [route] = running.daemon.config.routes
    await running.reload(routes=(replace(route, target=target),))
    client = await running.connect(route.name)
    await running.closed(route.name, f"dial_{reason}")
    await client.aclose()
    return told(await asked(running))[-1]


async def test_the_last_failed_dial_is_told_with_its_age(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as running:
        target = UnixEndpoint(str(tmp_path / "none"))
        finding = await fails_to_dial(running, target, "not_found")
    assert finding.subject == "route web"
    assert finding.level == "note"
    assert re.search(r"was [\d.]+m?s ago \(1 in all\): cannot dial", finding.text)


async def test_what_only_the_daemon_may_not_do_is_a_problem_of_its_own(tmp_path: Path) -> None:
    """Root, who asks, may write to every socket; the daemon's user may not."""
    async with steered(tmp_path, "web") as running:
        daemon = await asked(running)
    target = UnixEndpoint("/run/vm.sock")
    message = str(dial_error(target, 13))
    [web] = daemon.routes
    last = {"time": 0.0, "reason": "denied", "message": message}
    denied = {**web, "targets": [{"address": str(target)}], "last_error": last}
    finding = told(replace(daemon, routes=[denied]))[-1]
    assert finding.level == "problem"
    assert "setfacl" in finding.remedy


async def test_a_file_that_has_changed_wants_a_reload(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as running:
        config = running.daemon.config
        daemon = await asked(running)
        newer = replace(config, limits=replace(config.limits, max_connections=5))
        unresolved = replace(config, admin=replace(config.admin, socket="auto"))
    assert told(daemon, newer)[1].remedy == "vsockproxy reload"
    assert len(told(daemon, unresolved)) == 1


async def test_without_a_file_the_targets_are_those_of_the_daemon(tmp_path: Path) -> None:
    attempts = Attempts(open_vsock=lambda: 0, read_cid=lambda: 2)
    async with steered(tmp_path, "web") as running:
        daemon = await asked(running)
        found = await examine(None, machine=Machine(), attempts=attempts, daemon=daemon)
    assert [one.level for one in found if one.subject == "route web"] == ["ok"]
    assert not [one for one in found if one.subject == "configuration"]


@contextmanager
def hanging(path: Path) -> Iterator[Path]:
    with unix_listener(path):
        yield path


def test_no_daemon_is_no_problem_and_one_that_hangs_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.doctor.running_daemon._TIMEOUT", 0.05)
    [none] = told(ask_daemon(lambda: tmp_path / "none"))
    with hanging(tmp_path / "s") as path:
        [hangs] = told(ask_daemon(lambda: path))
    assert none.level == "note"
    assert "does not exist; start" in none.text
    assert hangs.level == "problem"
