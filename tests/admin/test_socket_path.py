"""The control socket of a daemon that names none, and how the commands find it."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.daemon_process import command, daemon
from tests.fake_services import unix_listener
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.admin import socket_path
from vsockproxy.admin.socket_path import DefaultSocket, default_places
from vsockproxy.config.process import AdminSettings
from vsockproxy.config.settings import Config
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.errors import ListenError, listen_error

UID = os.getuid()


def config(source: str) -> Config:
    return Config((), source=source)


def chosen(default: DefaultSocket, source: str) -> str:
    endpoint = default.resolve(config(source)).admin.listen
    return "" if endpoint is None else endpoint.path


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two folders in place of /tmp and /dev/shm."""
    folders = tmp_path / "tmp", tmp_path / "shm"
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(socket_path, "_SHARED", tuple(map(str, folders)))
    return folders


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/etc/vsockproxy/web.toml", "admin-web.sock"),
        ("environment", f"admin-run-{os.getpid()}.sock"),
        ("command line", f"admin-forward-{os.getpid()}.sock"),
    ],
)
def test_the_socket_is_named_after_the_instance_in_the_users_folder(
    tmp_path: Path, source: str, name: str
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = tmp_path / "vsockproxy" if UID else root / "vsockproxy"
    assert chosen(DefaultSocket(environ, UID, root), source) == f"{folder}/{name}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(folder.iterdir())


def test_a_service_managers_folder_has_the_short_name(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}:/other"}
    assert chosen(DefaultSocket(environ, UID), "/x/web.toml") == f"{tmp_path}/admin.sock"


@asynccontextmanager
async def started(default: DefaultSocket, source: str) -> AsyncIterator[Path]:
    """Run a daemon in this process for a block; yield its control socket."""
    daemon = Daemon(default.resolve(config(source)), control=default)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        assert daemon.config.admin.listen is not None
        yield Path(daemon.config.admin.listen.path)
        daemon.stop()


async def test_of_two_daemons_that_chose_one_name_the_second_gets_its_pid_and_a_reload_keeps_both(
    tmp_path: Path, shared: tuple[Path, Path]
) -> None:
    first, second = (DefaultSocket({}, UID, tmp_path / "absent") for _ in range(2))
    path = shared[0] / f"vsockproxy-{UID}" / "admin-web.sock"
    assert chosen(first, "/x/web.toml") == chosen(second, "/y/web.toml") == str(path)
    async with started(first, "/x/web.toml") as one, started(second, "/y/web.toml") as other:
        assert (one, other) == (path, path.with_name(own_name("web")))
        assert chosen(first, "/x/web.toml") == str(one)
        assert chosen(second, "/y/web.toml") == str(other)


async def test_a_reload_to_auto_beside_a_daemon_of_that_name_adds_the_pid(
    tmp_path: Path, shared: tuple[Path, Path]
) -> None:
    path = shared[0] / f"vsockproxy-{UID}" / "admin-web.sock"
    path.parent.mkdir(mode=0o700)
    default = DefaultSocket({}, UID, tmp_path / "absent")
    off = replace(config("web.toml"), admin=AdminSettings(None))
    load = partial(default.resolve, config("web.toml"))
    daemon = Daemon(default.resolve(off), control=default, load=load)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        with unix_listener(path):
            await daemon.reload()
            assert daemon.base.admin.listen == daemon.config.admin.listen
            assert str(daemon.config.admin.listen) == f"unix:{path.parent}/{own_name('web')}"
        daemon.stop()


def own_name(instance: str) -> str:
    return f"admin-{instance}-{os.getpid()}.sock"


def test_a_path_that_is_too_long_for_a_socket_is_passed_over_for_the_next(
    tmp_path: Path, shared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(socket_path, "_SHARED", (str(long), str(shared[1])))
    default = DefaultSocket({}, UID, tmp_path / "absent")
    assert chosen(default, "web.toml") == f"{shared[1]}/vsockproxy-{UID}/admin-web.sock"


def test_the_failed_bind_of_another_endpoint_chooses_no_other_place(tmp_path: Path) -> None:
    default = DefaultSocket({"RUNTIME_DIRECTORY": str(tmp_path)}, UID)
    resolved = default.resolve(config("web.toml"))
    error = listen_error(UnixEndpoint("/x"), errno.EADDRINUSE)
    with pytest.raises(ListenError):
        default.after(error, resolved)
    assert default.resolve(config("web.toml")) == resolved


def test_a_folder_that_another_user_can_write_to_is_passed_over_for_the_next(
    tmp_path: Path, shared: tuple[Path, Path]
) -> None:
    planted = shared[0] / f"vsockproxy-{UID}"
    planted.mkdir()
    planted.chmod(0o777)
    default = DefaultSocket({}, UID, tmp_path / "absent")
    assert chosen(default, "web.toml") == f"{shared[1]}/vsockproxy-{UID}/admin-web.sock"


def test_without_any_usable_folder_there_is_no_socket_and_the_error_names_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_path, "_SHARED", (f"{tmp_path}/no", f"{tmp_path}/none"))
    errors: list[str] = []
    default = DefaultSocket({}, UID, tmp_path / "absent", failed=errors.append)
    assert not chosen(default, "web.toml")
    assert not chosen(default, "web.toml")
    [error] = errors
    assert error.count(os.strerror(errno.ENOENT)) == 3


def test_off_and_a_path_are_left_as_they_are(tmp_path: Path) -> None:
    off = replace(config("web.toml"), admin=AdminSettings(None))
    default = DefaultSocket({"RUNTIME_DIRECTORY": str(tmp_path)}, UID)
    assert default.resolve(off) is off


def test_the_commands_find_a_socket_in_each_default_folder(
    tmp_path: Path, shared: tuple[Path, Path]
) -> None:
    names = ("vsockproxy", f"tmp/vsockproxy-{UID}", f"shm/vsockproxy-{UID}", "run/vsockproxy-a")
    paths = [tmp_path / name / "admin-web.sock" for name in names]
    with ExitStack() as stack:
        for path in paths:
            path.parent.mkdir(mode=0o700, parents=True)
            stack.enter_context(unix_listener(path))
        environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
        found = default_places(environ, UID, tmp_path / "run")
        assert set(found) >= set(paths)


@pytest.mark.parametrize("how", ["run", "forward"])
async def test_status_and_health_find_a_daemon_that_names_no_socket(
    tmp_path: Path, how: str
) -> None:
    file = tmp_path / "web.toml"
    listen, target = f"unix:{tmp_path}/l", f"unix:{tmp_path}/guest"
    file.write_text(f'[forward]\n"{listen}" = "{target}"\n')
    arguments = ("run", "-c", str(file)) if how == "run" else ("forward", listen, target)
    environ = {"RUNTIME_DIRECTORY": str(tmp_path)}
    async with daemon(*arguments, environ=environ) as running:
        await running.wait_for("ready")
        for name, words in (("status", listen), ("health", "ready")):
            done = await trio.to_thread.run_sync(partial(command, name, environ=environ))
            assert done.returncode == 0, done.stderr
            assert words in done.stdout
        assert await running.stop() == 0


@pytest.mark.parametrize("verb", ["status", "connections", "reload", "doctor", "health"])
async def test_a_command_finds_the_only_daemon_though_its_file_can_no_longer_be_parsed(
    tmp_path: Path, verb: str
) -> None:
    file = tmp_path / "web.toml"
    file.write_text(f'forward."unix:{tmp_path}/web" = "unix:@nothing"')
    environ = {"RUNTIME_DIRECTORY": str(tmp_path), "VSOCKPROXY_CONFIG": str(file)}
    async with daemon("run", environ=environ) as running:
        await running.wait_for("ready")
        file.write_text("[forward")
        done = await trio.to_thread.run_sync(partial(command, verb, environ=environ))
        assert await running.stop() == 0
    output = done.stdout + done.stderr
    wanted = {"reload": "nothing has changed", "doctor": f"pid {running.process.pid} runs"}
    assert wanted.get(verb, "") in output
    assert done.returncode == int(verb in wanted)


async def test_a_reload_swaps_the_paths_of_the_control_and_the_metrics_socket(
    tmp_path: Path,
) -> None:
    file, one, two = tmp_path / "c.toml", f"{tmp_path}/one", f"{tmp_path}/two"
    text = (
        'admin.socket = "{0}"\nmetrics.listen = "unix:{1}"\n'
        f'forward."unix:{tmp_path}/in" = "unix:@none"\n'
    )
    file.write_text(text.format(one, two))
    async with daemon("run", "-c", file) as running:
        await running.wait_for("ready")
        file.write_text(text.format(two, one))
        ask = trio.to_thread.run_sync
        done = await ask(partial(command, "reload", "--socket", one))
        assert done.returncode == 0, done.stderr
        assert (await ask(partial(command, "status", "--socket", two))).returncode == 0
        assert (await ask(partial(command, "status", "--socket", one))).returncode == 1
        assert await running.stop() == 0


def test_the_error_of_the_file_is_shown_where_no_daemon_runs(tmp_path: Path) -> None:
    file = tmp_path / "web.toml"
    file.write_text("[forward")
    environ = {"RUNTIME_DIRECTORY": str(tmp_path), "VSOCKPROXY_CONFIG": str(file)}
    done = command("status", environ=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(file) in done.stderr


async def test_a_daemon_whose_control_socket_cannot_be_made_says_so_and_serves(
    tmp_path: Path,
) -> None:
    arguments = ("forward", f"unix:{tmp_path}/l", f"unix:{tmp_path}/guest")
    async with daemon(*arguments) as running:
        line = await running.wait_for("control_socket_failed")
        assert "/nonexistent" in line["error"]
        await running.wait_for("ready")
        assert await running.stop() == 0


def test_health_takes_the_socket_to_ask_and_names_it(tmp_path: Path) -> None:
    done = command("health", "--socket", tmp_path / "none.sock")
    assert done.returncode == 1
    assert f"unix:{tmp_path}/none.sock" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"), [("3", "readyz"), ("3s", "readyz"), ("3x", "--timeout: ")]
)
def test_health_takes_its_time_with_and_without_a_unit(text: str, words: str) -> None:
    done = command("health", "--url", "ftp://readyz", "--timeout", text)
    assert words in done.stderr
