"""Tests of a reload through the control API, and of a reload that moves the control socket."""

from __future__ import annotations

import stat
from dataclasses import fields, replace
from pathlib import Path

import httpx
import pytest
import structlog
import trio
import trio.testing

from tests.admin.running_daemon import controlled_daemon
from tests.fake_services import unix_listener
from tests.waiting import until
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.changes import Changes
from vsockproxy.config.process import AdminSettings, Limits
from vsockproxy.config.settings import Config, Policy, PumpSettings
from vsockproxy.errors import ConfigError, Problem

KINDS = [one.name for one in fields(Changes)]
GAUGE = "vsockproxy_config_last_reload_successful"


async def test_a_failed_reload_is_answered_with_every_problem(tmp_path: Path) -> None:
    problems = [Problem("listen", "is missing", 3), Problem("", "unknown key", 9)]

    def load() -> Config:
        if problems:
            raise ConfigError("file.toml", tuple(problems))
        return daemon.daemon.config

    async with controlled_daemon(tmp_path, "web", load=load) as daemon:
        answer = await daemon.ask("POST", "/v1/reload")
        problems.clear()
        reloaded = await daemon.post("/v1/reload")
    assert answer.status_code == 409
    assert answer.json()["error"] == "file.toml:3: listen: is missing\nfile.toml:9: unknown key"
    assert answer.json()["remedy"].endswith("correct the configuration, then reload again")
    assert reloaded == {
        "fingerprint": daemon.daemon.config.fingerprint,
        "source": "command line",
        **{kind: [] for kind in KINDS},
    }


@pytest.mark.parametrize("dry_run", [False, True])
async def test_reload_without_a_configuration_file_fails(tmp_path: Path, dry_run: bool) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask("POST", "/v1/reload", dry_run=dry_run)
    assert answer.status_code == 409
    assert "without a configuration" in answer.json()["error"]
    assert answer.json()["remedy"] == "restart it with other options, or run it from a file"


async def test_a_reload_whose_address_is_in_use_says_to_free_it(tmp_path: Path) -> None:
    def load() -> Config:
        [web] = daemon.daemon.config.routes
        return replace(daemon.daemon.config, routes=(replace(web, listen=taken),))

    taken = UnixEndpoint(str(tmp_path / "taken.sock"))
    async with controlled_daemon(tmp_path, "web", load=load) as daemon:
        with unix_listener(Path(taken.path)):
            answer = await daemon.ask("POST", "/v1/reload")
    assert "another process listens" in answer.json()["error"]
    assert answer.json()["remedy"].startswith("nothing has changed: free the address")


async def test_a_reload_of_a_daemon_that_stops_says_to_start_it_again(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", load=lambda: daemon.daemon.config) as daemon:
        client, _ = await daemon.live("web")
        daemon.daemon.stop()
        answer = await daemon.ask("POST", "/v1/reload")
        await client.aclose()
    assert answer.status_code == 409
    assert answer.json()["remedy"] == "start the daemon again once it has ended"


async def test_a_reload_and_a_dry_run_answer_with_what_changes(tmp_path: Path) -> None:
    def load() -> Config:
        return new

    names = ("stays", "gone", "moved", "aimed", "tuned")
    async with controlled_daemon(tmp_path, *names, load=load) as daemon:
        old = daemon.daemon.config
        stays, gone, moved, aimed, tuned = old.routes
        new = replace(
            old,
            routes=(
                stays,
                replace(moved, listen=UnixEndpoint(str(tmp_path / "elsewhere.sock"))),
                replace(aimed, target=UnixEndpoint(str(tmp_path / "guest"))),
                replace(tuned, policy=Policy(idle_timeout=5)),
                replace(gone, name="new", listen=UnixEndpoint(str(tmp_path / "new.sock"))),
            ),
            limits=Limits(7),
            pump=PumpSettings("portable"),
        )
        expected = {
            "added": ["new"],
            "removed": ["gone"],
            "moved": ["moved"],
            "retargeted": ["aimed"],
            "changed": ["tuned"],
            "settings": ["limits"],
            "needs_restart": ["pump"],
        }
        previewed = await daemon.ask("POST", "/v1/reload", dry_run=True)
        assert daemon.daemon.config is old
        with structlog.testing.capture_logs() as logs:
            reloaded = await daemon.post("/v1/reload")
            again = await daemon.post("/v1/reload")
    lines = [line for line in logs if line["event"] == "reloaded"]
    assert {kind: lines[0][kind] for kind in KINDS} == {
        kind: names[0] for kind, names in expected.items()
    }
    assert lines[1].keys() & set(KINDS) == {"needs_restart"}
    assert expected.keys() == set(KINDS)
    assert {kind: previewed.json()[kind] for kind in KINDS} == expected
    assert {kind: reloaded[kind] for kind in KINDS} == expected
    assert {kind: again[kind] for kind in KINDS} == {
        **{kind: [] for kind in KINDS},
        "needs_restart": ["pump"],
    }


async def test_a_failed_reload_is_shown_until_one_succeeds(tmp_path: Path) -> None:
    problems = [Problem("listen", "is missing", 3)]

    def load() -> Config:
        if problems:
            raise ConfigError("file.toml", tuple(problems))
        return daemon.daemon.config

    async def gauge() -> str:
        text = (await daemon.ask("GET", "/metrics")).text
        [line] = [one for one in text.splitlines() if one.startswith(GAUGE)]
        return line.removeprefix(GAUGE).strip()

    async with controlled_daemon(tmp_path, "web", load=load) as daemon:
        assert await gauge() == "1.0"
        assert (await daemon.get("/v1/status"))["failed_reload"] is None
        await daemon.ask("POST", "/v1/reload")
        assert await gauge() == "0.0"
        failed = (await daemon.get("/v1/status"))["failed_reload"]
        assert failed["problems"] == ["file.toml:3: listen: is missing"]
        problems.clear()
        await daemon.post("/v1/reload")
        assert await gauge() == "1.0"
        assert (await daemon.get("/v1/status"))["failed_reload"] is None


async def test_reload_changes_the_path_and_the_mode_of_the_control_socket(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        moved = UnixEndpoint(str(tmp_path / "moved.sock"))
        await daemon.reload(admin=AdminSettings(UnixEndpoint(str(daemon.socket)), 0o660))
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
        await daemon.reload(admin=AdminSettings(moved))
        assert not daemon.socket.exists()
        transport = httpx.AsyncHTTPTransport(uds=moved.path)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://daemon/v1/status")).status_code == 200
        await daemon.reload(admin=AdminSettings(None))
        assert not await trio.Path(moved.path).exists()


async def test_a_reload_that_moves_the_control_socket_is_answered(tmp_path: Path) -> None:
    moved = AdminSettings(UnixEndpoint(str(tmp_path / "moved.sock")))

    def load() -> Config:
        return replace(daemon.daemon.config, admin=moved)

    async with controlled_daemon(tmp_path, "web", load=load) as daemon:
        reloaded = await daemon.post("/v1/reload")
        assert not daemon.socket.exists()
    assert reloaded["fingerprint"] == daemon.daemon.config.fingerprint


async def test_a_removed_control_socket_is_bound_again_with_its_mode_and_serves(
    tmp_path: Path,
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with controlled_daemon(tmp_path, "web") as daemon:
            daemon.socket.unlink()
            await until(daemon.socket.exists)
            assert (await daemon.get("/v1/status"))["ready"]
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    [bound] = [entry for entry in logs if entry["event"] == "listener_bound"]
    assert bound["server"] == "admin"


async def test_a_control_socket_removed_before_a_reload_is_bound_again(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        daemon.socket.unlink()
        await daemon.reload()
        await until(daemon.socket.exists)
        assert (await daemon.get("/v1/status"))["ready"]
