"""Tests of a reload through the control API, and of a reload that moves the control socket."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import httpx
import structlog
import trio
import trio.testing

from tests.admin.running_daemon import controlled_daemon
from tests.waiting import until
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.process import AdminSettings
from vsockproxy.config.settings import Config
from vsockproxy.errors import ConfigError, Problem


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
    assert reloaded == {"fingerprint": daemon.daemon.config.fingerprint, "source": "command line"}


async def test_reload_without_a_configuration_file_fails(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask("POST", "/v1/reload")
    assert answer.status_code == 409
    assert "without a configuration" in answer.json()["error"]


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
