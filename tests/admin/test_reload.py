"""Tests of a reload through the control API, and of a reload that moves the control socket."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import trio
import trio.testing

from tests.admin.running_daemon import controlled_daemon
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
