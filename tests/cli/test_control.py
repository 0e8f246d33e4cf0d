"""Tests of the commands that query and control a daemon, and of the search for its socket."""

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

pytestmark = pytest.mark.usefixtures("no_other_daemon")

ORDERS = [("pause", "paused"), ("drain", "drained"), ("resume", "listening")]
Done = subprocess.CompletedProcess[str]


class Installation:
    """A daemon with a configuration file and one route.

    Attributes:
      folder: folder of the file, the route's socket and the control socket.
      running: the daemon's process.
    """

    def __init__(self, folder: Path, running: Daemon) -> None:
        self.folder = folder
        self.running = running

    async def run(self, *arguments: str, status: int = 0) -> Done:
        """Run a command, check its exit status, and return its output."""
        call = partial(command, *arguments, environ={"VSOCKPROXY_ADMIN": str(self.socket)})
        done = await trio.to_thread.run_sync(call)
        assert done.returncode == status, done.stderr
        return done

    @property
    def socket(self) -> Path:
        """Return the path of the control socket."""
        return self.folder / "admin.sock"

    async def live(self) -> trio.SocketStream:
        """Return a client that has received its first byte back."""
        client = await trio.open_unix_socket(str(self.folder / "web.sock"))
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        return client


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    file = tmp_path / "file.toml"
    file.write_text(
        f'[[route]]\nname = "web"\nlisten = "unix:{tmp_path}/web.sock"\n'
        f'target = "vsock-mux:{tmp_path}/guest:80"\n[admin]\nsocket = "{tmp_path}/admin.sock"\n'
    )
    async with mux_server(tmp_path / "guest", {80: echo}), daemon("run", "-c", file) as running:
        await running.wait_for("ready")
        yield Installation(tmp_path, running)
        await running.stop()


async def test_status_prints_the_daemon_and_its_routes(installation: Installation) -> None:
    async with await installation.live():
        shown = (await installation.run("status")).stdout
        printed = json.loads((await installation.run("status", "--json")).stdout)
    head, _, *rest = shown.splitlines()
    assert f"process {installation.running.pid}" in head
    assert "1 connection;" in head
    [row] = [line for line in rest if line.startswith("web ")]
    assert "listening" in row
    assert printed["routes"][0]["live"] == 1
    assert printed["live"] == 1


async def test_status_prints_the_last_error_of_a_route(installation: Installation) -> None:
    (installation.folder / "guest").unlink()
    client = await trio.open_unix_socket(str(installation.folder / "web.sock"))
    await installation.running.wait_for("dial_failed")
    shown = (await installation.run("status")).stdout
    await client.aclose()
    assert "ago: not_found: cannot dial vsock-mux:" in shown
    assert "[ENOENT]; start the VM, or correct the path: " in " ".join(shown.split())


async def test_kill_with_ids_ends_them_and_fails_for_unknown_ids(
    installation: Installation,
) -> None:
    async with await installation.live() as first, await installation.live() as other:
        shown = (await installation.run("connections")).stdout
        assert shown.endswith("2 connections\n")
        printed = json.loads(
            (await installation.run("connections", "--json", "--sort", "id")).stdout
        )
        one, two = (live["id"] for live in printed["connections"])
        assert (await installation.run("kill", str(one))).stdout == "ended 1 connection\n"
        await installation.running.wait_for("connection_closed", reason="killed", number=one)
        await other.send_all(b"y")
        assert await other.receive_some() == b"y"
        done = await installation.run("kill", str(one), str(two), status=1)
        assert done.stdout == "ended 1 connection\n"
        assert f"there is no live connection {one}" in done.stderr
        await installation.running.wait_for("connection_closed", reason="killed", number=two)
        assert isinstance(first, trio.SocketStream)


async def test_kill_needs_either_ids_or_a_filter(installation: Installation) -> None:
    async with await installation.live():
        await installation.run("kill", status=2)
        await installation.run("kill", "1", "--all", status=2)
        done = await installation.run("kill", "--route", "web")
    assert done.stdout == "ended 1 connection\n"


async def test_pause_drain_and_resume_print_the_new_state(installation: Installation) -> None:
    assert (await installation.run("pause", "web")).stdout == "web: paused, 0 live connections\n"
    assert (
        await installation.run("resume", "web")
    ).stdout == "web: listening, 0 live connections\n"
    assert (await installation.run("drain", "web")).stdout == "web: drained, 0 live connections\n"
    assert not (installation.folder / "web.sock").exists()
    assert (
        await installation.run("resume", "web")
    ).stdout == "web: listening, 0 live connections\n"
    await (await installation.live()).aclose()
    done = await installation.run("drain", "missing", status=1)
    assert "there is no route 'missing'" in done.stderr


@pytest.mark.parametrize(("verb", "state"), ORDERS)
async def test_an_order_to_several_routes_or_to_all_reaches_each_in_spite_of_a_failure(
    installation: Installation, verb: str, state: str
) -> None:
    line = f"web: {state}, 0 live connections\n"
    assert (await installation.run(verb, "--all")).stdout == line
    done = await installation.run(verb, "missing", "web", status=1)
    assert done.stdout == line
    assert "there is no route 'missing'" in done.stderr
    for arguments in ([], ["web", "--all"]):
        done = await installation.run(verb, *arguments, status=2)
        assert "either names of routes, or --all" in done.stderr


async def test_reload_prints_the_fingerprint_or_the_errors_of_the_file(
    installation: Installation,
) -> None:
    file = installation.folder / "file.toml"
    right = file.read_text()
    file.write_text(right.replace("listen", "lissen"))
    done = await installation.run("reload", status=1)
    assert "lissen" in done.stderr
    assert "nothing has changed" in done.stderr
    file.write_text(right.replace("listen", "lissen") + "\noops = 1\n")
    problems = (await installation.run("reload", status=1)).stderr.splitlines()
    checked = (await installation.run("check", "-c", str(file), status=2)).stderr.splitlines()
    assert len(checked) > 1
    assert problems[:-1] == checked
    file.write_text(right.replace("listen", "lissen"))
    await installation.running.wait_for("reload_failed")
    shown = (await installation.run("status")).stdout
    assert "the last reload failed" in shown
    assert "lissen" in shown
    file.write_text(right.replace('"web"', '"site"'))
    changes = ["added: site", "removed: web"]
    previewed = (await installation.run("reload", "--dry-run")).stdout.splitlines()
    compared = (await installation.run("check", "--diff", str(file))).stdout.splitlines()
    done = await installation.run("reload")
    assert previewed == [f"a reload of {file} would change:", *(f"  {one}" for one in changes)]
    assert compared == changes
    assert done.stdout.startswith(f"reloaded {file}: ")
    assert [line.strip() for line in done.stdout.splitlines()[1:]] == changes
    assert "site " in (await installation.run("status")).stdout
    assert (await installation.run("check", "--diff", str(file))).stdout == "no change\n"


async def test_check_diff_shows_what_a_reload_then_changes(installation: Installation) -> None:
    file = installation.folder / "file.toml"
    other = installation.folder / "other.toml"
    other.write_text(
        file.read_text().replace("guest:80", "guest:81")
        + '[limits]\nmax_connections = 7\n[log]\nlevel = "debug"\n[pump]\nthreads = 1\n'
        '[guests.vm]\ncid = 7\n[metrics]\nlisten = "unix:/nonexistent/m"\n'
    )
    compared = (await installation.run("check", "--diff", str(other))).stdout.splitlines()
    assert compared == [
        "retargeted: web",
        "settings: guests, metrics, limits, log",
        "needs a restart: pump",
    ]


async def test_reload_applies_the_level_and_the_format_of_the_log(
    installation: Installation,
) -> None:
    file = installation.folder / "file.toml"
    right = file.read_text()
    file.write_text(right + '[log]\nlevel = "error"\n')
    await installation.run("reload")
    await installation.run("pause", "web")  # an info line, which is not written
    file.write_text(right)
    await installation.run("reload")
    await installation.running.wait_for("reloaded")
    assert not [line for line in installation.running.lines if "route_paused" in line]


# ---- the search for the control socket ----


def test_the_socket_option_precedes_the_environment_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('[admin]\nsocket = "/run/file.sock"\n')
    environ = {"VSOCKPROXY_ADMIN": "/run/variable.sock"}
    option = Path("/run/option.sock")
    assert find_socket(option, file, environ) == option
    assert find_socket(None, file, environ) == Path("/run/variable.sock")
    assert find_socket(None, file, {}) == Path("/run/file.sock")
    assert find_socket(None, None, {}, places=[file]) == Path("/run/file.sock")
    assert find_socket(None, None, {"VSOCKPROXY_ADMIN_SOCKET": "/run/x"}) == Path("/run/x")


def test_only_the_configuration_that_run_reads_names_the_control_socket(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "config.toml", tmp_path / "config.yaml"
    toml.write_text('forward.80 = "3:80"')
    yaml.write_text("admin: {socket: /run/file.sock}")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_socket(None, None, environ, [yaml]) == Path("/run/file.sock")
    with pytest.raises(DaemonUnreachableError, match="no daemon: neither"):
        find_socket(None, None, environ, [toml, yaml])
    settings = {"VSOCKPROXY_FORWARD": "8080=3:80"}
    for file, places in ((yaml, []), (None, [yaml])):
        with pytest.raises(ConfigError, match="settings too"):
            find_socket(None, file, settings, places)
    for text in ("admin.socket = 'off'", "["):
        toml.write_text(text)
        with pytest.raises(DaemonUnreachableError, match="no daemon: neither"):
            find_socket(None, None, environ, [toml])


def test_a_file_without_a_control_socket_or_with_an_error_raises(tmp_path: Path) -> None:
    off, broken = tmp_path / "off.toml", tmp_path / "broken.toml"
    off.write_text('admin.socket = "off"')
    broken.write_text("[")
    with pytest.raises(DaemonUnreachableError, match="disables the control socket"):
        find_socket(None, off, {})
    with pytest.raises(DaemonUnreachableError, match="the environment disables the control socket"):
        find_socket(None, None, {"VSOCKPROXY_ADMIN_SOCKET": "off"}, [])
    with pytest.raises(ConfigError):
        find_socket(None, broken, {})


def test_the_users_runtime_directory_is_searched_and_two_daemons_are_ambiguous(
    tmp_path: Path,
) -> None:
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


async def test_of_several_daemons_the_one_that_runs_the_file_is_asked(tmp_path: Path) -> None:
    for name in ("vsockproxy", "service"):
        (tmp_path / name).mkdir(mode=0o700)
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "RUNTIME_DIRECTORY": f"{tmp_path}/service"}
    meant, other = tmp_path / "meant.toml", tmp_path / "other.toml"
    route = 'forward."unix:{0}.sock" = "unix:@nothing"\n'
    meant.write_text(route.format(meant))
    admin = f'admin.socket = "{tmp_path}/vsockproxy/admin.sock"\n'
    other.write_text(route.format(other) + admin)
    async with (
        daemon("run", "-c", meant, environ=environ) as running,
        daemon("run", "-c", other, environ=environ) as beside,
    ):
        await running.wait_for("ready")
        await beside.wait_for("ready")
        ask = trio.to_thread.run_sync
        found = await ask(partial(command, "status", "--json", "-c", meant, environ=environ))
        (tmp_path / "link.toml").symlink_to(meant)
        linked = await ask(
            partial(command, "status", "-c", tmp_path / "link.toml", environ=environ)
        )
        doctor = await ask(partial(command, "doctor", "-c", meant, environ=environ))
        several = await ask(partial(command, "status", environ=environ))
        assert await beside.stop() == 0
        assert await running.stop() == 0
    assert json.loads(found.stdout)["pid"] == running.process.pid
    assert linked.returncode == 0, linked.stderr
    assert f"pid {running.process.pid} runs" in doctor.stdout
    assert "cannot listen" not in doctor.stdout
    assert "several daemons run" in several.stderr


def test_a_socket_in_a_world_writable_folder_is_ignored(tmp_path: Path) -> None:
    own = tmp_path / "vsockproxy"
    own.mkdir()
    own.chmod(0o777)
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with (
        unix_listener(own / "admin.sock"),
        pytest.raises(DaemonUnreachableError, match="no daemon: neither"),
    ):
        find_socket(None, None, environ)


def test_status_without_a_daemon_fails_with_the_remedy(tmp_path: Path) -> None:
    missing, dead = tmp_path / "missing", tmp_path / "dead"
    dead_unix_socket(dead)
    for path, words in ((missing, "does not exist; start"), (dead, "left over from a daemon")):
        done = command("status", "--socket", path)
        assert done.returncode == 1
        assert words in done.stderr


def test_a_control_socket_without_permission_raises_permission_denied() -> None:
    from vsockproxy.admin.client import Client  # noqa: PLC0415 - its only use

    with open_folder() as folder, unix_listener(folder / "admin.sock"):
        (folder / "admin.sock").chmod(0)
        with (
            as_ordinary_user(),
            pytest.raises(DaemonUnreachableError, match="permission denied"),
        ):
            Client(folder / "admin.sock").get("/v1/status")


async def test_reload_and_check_cover_included_files(installation: Installation) -> None:
    folder = installation.folder
    file, included = folder / "file.toml", folder / "conf.d/db.toml"
    file.write_text('include = ["conf.d/*.toml"]\n' + file.read_text())
    included.parent.mkdir()
    await installation.run("reload")
    included.write_text(f'[forward]\n"unix:{folder}/db.sock" = "unix:{folder}/guest"\n')
    name = f"unix:{folder}/db.sock"
    diff = (await installation.run("check", "--diff", str(file))).stdout
    assert diff == f"added: {name}\n"
    assert f"added: {name}" in (await installation.run("reload", "--dry-run")).stdout
    doctor = await installation.run("doctor")
    assert "has changed since the daemon read it" in " ".join(doctor.stdout.split())
    assert f"added: {name}" in (await installation.run("reload")).stdout
    included.write_text("[forward]\nbroken\n")
    failed = await installation.run("reload", status=1)
    assert f"{included}:2:7: " in failed.stderr
    shown = (await installation.run("status")).stdout
    assert f"{included}:2:7: " in shown
    assert name in shown
    included.unlink()
    assert f"removed: {name}" in (await installation.run("reload")).stdout


async def test_route_and_guest_are_added_replaced_and_removed(installation: Installation) -> None:
    run, folder = installation.run, installation.folder
    listen = f"listen=unix:{folder}/a.sock"
    guest = await run("guest", "add", "vm", f"mux={folder}/guest")
    assert guest.stdout == "guest vm: added\n"
    added = await run("route", "add", "a", listen, "target=vm:80", "wait_for_guest=5s")
    assert added.stdout == "route a: added\n"
    client = await trio.open_unix_socket(f"{folder}/a.sock")
    await client.send_all(b"x")
    assert await client.receive_some() == b"x"
    await client.aclose()
    replaced = await run("route", "replace", "a", listen, "target=vm:81", "access_log=false")
    assert replaced.stdout == "route a: replaced\n"
    moved = await run("guest", "replace", "vm", f"mux={folder}/other")
    assert moved.stdout == "guest vm: replaced\nretargeted: a\n"
    assert (await run("check", "--diff", str(folder / "file.toml"))).stdout == "no change\n"
    assert "in use: route a: target\n" in (await run("guest", "remove", "vm", status=1)).stderr
    assert (await run("route", "remove", "a")).stdout == "route a: removed\n"
    assert (await run("guest", "remove", "vm")).returncode == 0
    await run("route", "add", "b", status=2)
    await run("route", "add", "b", "listen", status=2)
    await run("route", "remove", "a", "--persist", status=2)
