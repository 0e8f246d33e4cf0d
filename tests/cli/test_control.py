"""The commands that ask and steer a daemon: what they print, and which daemon they mean."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.daemon_process import Daemon, command, daemon
from tests.fake_services import (
    as_ordinary_user,
    dead_unix_socket,
    echo,
    mux_server,
    open_folder,
    unix_listener,
)
from vsockproxy.admin.client import DaemonUnreachableError, find_socket
from vsockproxy.errors import ConfigError

Done = subprocess.CompletedProcess[str]


class Place:
    """A daemon with a file and one route, and the commands that mean it.

    Attributes:
      folder: where its file, its route's socket and its operator's socket are.
      running: its process.
    """

    def __init__(self, folder: Path, running: Daemon) -> None:
        self.folder = folder
        self.running = running

    async def run(self, *arguments: str, status: int = 0) -> Done:
        """A command to its end, which has this status."""
        call = partial(command, *arguments, environ={"VSOCKPROXY_ADMIN": str(self.socket)})
        done = await trio.to_thread.run_sync(call)
        assert done.returncode == status, done.stderr
        return done

    @property
    def socket(self) -> Path:
        return self.folder / "admin.sock"

    async def live(self) -> trio.SocketStream:
        """A client whose first byte has come back."""
        client = await trio.open_unix_socket(str(self.folder / "web.sock"))
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        return client


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    file = tmp_path / "file.toml"
    file.write_text(
        f'[[route]]\nname = "web"\nlisten = "unix:{tmp_path}/web.sock"\n'
        f'target = "vsock-mux:{tmp_path}/guest:80"\n[admin]\nsocket = "{tmp_path}/admin.sock"\n'
    )
    async with mux_server(tmp_path / "guest", {80: echo}), daemon("run", "-c", file) as running:
        await running.wait_for("ready")
        yield Place(tmp_path, running)
        await running.stop()


async def test_the_status_shows_the_daemon_and_its_routes(place: Place) -> None:
    async with await place.live():
        shown = (await place.run("status")).stdout
        told = json.loads((await place.run("status", "--json")).stdout)
    head, _, *rest = shown.splitlines()
    assert f"process {place.running.pid}" in head
    assert "1 connection;" in head
    [row] = [line for line in rest if line.startswith("web ")]
    assert "listening" in row
    assert told["routes"][0]["live"] == 1
    assert told["live"] == 1


async def test_the_status_shows_what_went_wrong_last(place: Place) -> None:
    (place.folder / "guest").unlink()
    client = await trio.open_unix_socket(str(place.folder / "web.sock"))
    await place.running.wait_for("dial_failed")
    shown = (await place.run("status")).stdout
    await client.aclose()
    assert "ago: not_found: cannot dial vsock-mux:" in shown


async def test_connections_are_shown_and_one_is_killed(place: Place) -> None:
    async with await place.live() as first, await place.live() as other:
        shown = (await place.run("connections")).stdout
        assert shown.endswith("2 connections\n")
        told = json.loads((await place.run("connections", "--json", "--sort", "id")).stdout)
        one, two = (live["id"] for live in told["connections"])
        assert (await place.run("kill", str(one))).stdout == "ended 1 connection\n"
        await place.running.wait_for("connection_closed", reason="killed", number=one)
        await other.send_all(b"y")
        assert await other.receive_some() == b"y"
        done = await place.run("kill", str(one), str(two), status=1)
        assert done.stdout == "ended 1 connection\n"
        assert f"there is no live connection {one}" in done.stderr
        await place.running.wait_for("connection_closed", reason="killed", number=two)
        assert isinstance(first, trio.SocketStream)


async def test_all_of_a_route_are_killed_and_none_without_saying_which(place: Place) -> None:
    async with await place.live():
        await place.run("kill", status=2)
        await place.run("kill", "1", "--all", status=2)
        done = await place.run("kill", "--route", "web")
    assert done.stdout == "ended 1 connection\n"


async def test_a_route_is_paused_drained_and_resumed(place: Place) -> None:
    assert (await place.run("pause", "web")).stdout == "web: paused, 0 live connections\n"
    assert (await place.run("resume", "web")).stdout == "web: listening, 0 live connections\n"
    assert (await place.run("drain", "web")).stdout == "web: drained, 0 live connections\n"
    assert not (place.folder / "web.sock").exists()
    assert (await place.run("resume", "web")).stdout == "web: listening, 0 live connections\n"
    await (await place.live()).aclose()
    done = await place.run("drain", "nobody", status=1)
    assert "there is no route 'nobody'" in done.stderr


async def test_a_reload_takes_the_file_or_says_what_is_wrong_with_it(place: Place) -> None:
    file = place.folder / "file.toml"
    right = file.read_text()
    file.write_text(right.replace("listen", "lissen"))
    done = await place.run("reload", status=1)
    assert "lissen" in done.stderr
    assert "nothing has changed" in done.stderr
    await place.running.wait_for("reload_failed")
    file.write_text(right.replace('"web"', '"site"'))
    assert (await place.run("reload")).stdout.startswith(f"reloaded {file}: ")
    assert "site " in (await place.run("status")).stdout


# ---- which daemon ----


def test_the_option_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[admin]\nsocket = "/run/file.sock"\n')
    environ = {"VSOCKPROXY_ADMIN": "/run/variable.sock"}
    option = Path("/run/option.sock")
    assert find_socket(option, file, environ) == option
    assert find_socket(None, file, environ) == Path("/run/variable.sock")
    assert find_socket(None, file, {}) == Path("/run/file.sock")
    assert find_socket(None, None, {}, defaults=[file]) == Path("/run/file.sock")
    assert find_socket(None, None, {"VSOCKPROXY_ADMIN_SOCKET": "/run/x"}) == Path("/run/x")


def test_a_file_that_has_no_socket_or_cannot_be_read_is_said(tmp_path: Path) -> None:
    off, broken = tmp_path / "off.toml", tmp_path / "broken.toml"
    off.write_text('admin.socket = "off"')
    broken.write_text("[")
    with pytest.raises(DaemonUnreachableError, match="disables the control socket"):
        find_socket(None, off, {})
    with pytest.raises(ConfigError):
        find_socket(None, broken, {})


def test_the_users_own_place_is_found_and_two_daemons_are_told_apart(tmp_path: Path) -> None:
    own = tmp_path / "vsockproxy"
    own.mkdir(mode=0o700)
    service = tmp_path / "service"
    service.mkdir()
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "RUNTIME_DIRECTORY": str(service)}
    with unix_listener(own / "admin.sock"):
        assert find_socket(None, None, environ) == own / "admin.sock"
        with unix_listener(service / "admin.sock"), pytest.raises(DaemonUnreachableError) as caught:
            find_socket(None, None, environ)
    assert f"several daemons run: {own}/admin.sock, {service}/admin.sock" in str(caught.value)


def test_a_folder_that_others_may_write_to_is_not_believed(tmp_path: Path) -> None:
    own = tmp_path / "vsockproxy"
    own.mkdir()
    own.chmod(0o777)
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with (
        unix_listener(own / "admin.sock"),
        pytest.raises(DaemonUnreachableError, match="no daemon: neither"),
    ):
        find_socket(None, None, environ)


def test_a_daemon_that_is_not_there_is_said_with_what_to_do(tmp_path: Path) -> None:
    missing, dead = tmp_path / "missing", tmp_path / "dead"
    dead_unix_socket(dead)
    for path, words in ((missing, "does not exist; start"), (dead, "left over from a daemon")):
        done = command("status", "--socket", path)
        assert done.returncode == 1
        assert words in done.stderr


def test_a_socket_of_another_user_is_said_with_what_to_do() -> None:
    from vsockproxy.admin.client import Client  # noqa: PLC0415 - beside its one use

    with open_folder() as folder, unix_listener(folder / "admin.sock"):
        (folder / "admin.sock").chmod(0)
        with (
            as_ordinary_user(),
            pytest.raises(DaemonUnreachableError, match="permission denied"),
        ):
            Client(folder / "admin.sock").get("/v1/status")
