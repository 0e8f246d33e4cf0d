"""The image built from this working copy: its metadata, its runs, and its sandbox."""

import errno
import json
import os
import re
import socket
import tomllib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.container import podman
from tests.container.podman import IMAGE, PROFILE, USER, Container, container, run_python
from tests.daemon_process import PATIENCE, REPOSITORY
from tests.fake_services import echo, mux_server, open_folder
from tests.sockets import read_to_end
from vsockproxy.address.endpoint import AF_VSOCK

pytestmark = pytest.mark.container

AF_X25: Final = 9
"""An unused family; a run in which it is denied shows that the profile is in force."""

FRONT: Final = {"VSOCKPROXY_FORWARD": "unix:/run/vm/front=vsock-mux:/run/vm/guest:80"}
TRY_X25: Final = f"import socket; socket.socket({AF_X25}, socket.SOCK_SEQPACKET)"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with podman.storage():
        yield podman.build_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def folder(image: str) -> Iterator[Path]:
    """A folder for sockets, owned by the daemon's user."""
    with open_folder() as path:
        os.chown(path, USER, USER)
        yield path


@pytest.fixture
def denying(tmp_path: Path) -> Path:
    """The profile without AF_VSOCK, which it denies as Docker's default profile does."""
    profile = json.loads(PROFILE.read_text())
    profile["syscalls"] = [rule for rule in profile["syscalls"] if family(rule) != AF_VSOCK]
    profile["syscalls"] += [denial(AF_VSOCK), denial(AF_X25)]
    path = tmp_path / "denying.json"
    path.write_text(json.dumps(profile))
    return path


def family(rule: dict[str, object]) -> object:
    """Return the address family of a rule for socket(2), else None."""
    arguments = rule.get("args")
    if rule["names"] != ["socket"] or not isinstance(arguments, list):
        return None
    return arguments[0]["value"]


def denial(number: int) -> dict[str, object]:
    return {
        "names": ["socket"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno.EPERM,
        "args": [{"index": 0, "value": number, "op": "SCMP_CMP_EQ"}],
    }


@asynccontextmanager
async def running(
    folder: Path, more: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Container, trio.SocketStream]]:
    """Run a container and a fake guest; yield the container and a client connected to the guest."""
    async with mux_server(folder / "guest", {80: echo}):
        (folder / "guest").chmod(0o666)  # the daemon's user must be able to write to it
        async with container(folder, {**FRONT, **(more or {})}) as daemon:
            await daemon.wait_for("ready")
            async with await trio.open_unix_socket(folder / "front") as client:
                await client.send_all(b"x")
                assert await client.receive_some() == b"x"
                yield daemon, client


# --- metadata ------------------------------------------------------------------------------


def test_the_images_metadata_agrees_with_the_project(image: str) -> None:
    description = podman.describe(image)
    config = description["Config"]
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert (config["User"], config["StopSignal"]) == (f"{USER}:{USER}", "SIGTERM")
    assert (config["Entrypoint"], config["Cmd"]) == (["vsockproxy"], ["run"])
    assert description["Healthcheck"]["Test"] == ["CMD", "vsockproxy", "health"]


def test_the_final_stage_runs_no_command_and_needs_no_shell() -> None:
    final = (REPOSITORY / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert not re.findall(r"(?m)^(RUN|SHELL|ADD)\b", final)
    assert not re.findall(r"(?m)^(?:ENTRYPOINT|CMD|HEALTHCHECK.* CMD) +[^\[ ]", final)


def test_two_builds_of_the_same_source_have_the_same_layers(image: str, tmp_path: Path) -> None:
    again = podman.build_image(tmp_path, f"{image}-again")
    assert podman.describe(again)["RootFS"]["Layers"] == podman.describe(image)["RootFS"]["Layers"]


def test_the_image_has_the_locked_requirements_and_no_installer(image: str) -> None:
    ask = (
        "from importlib.metadata import distributions;"
        "print(*(f'{each.name}=={each.version}' for each in distributions()))"
    )
    lock = (REPOSITORY / "release" / "requirements.txt").read_text()
    # Of the others each is for another system.
    locked = set(re.findall(r"(?m)^([\w.-]+==[\w.]+) \\\\$", lock))
    installed = {normal(name) for name in run_python(ask, PROFILE).stdout.split()}
    assert {name for name in installed if not name.startswith("vsockproxy==")} >= locked
    assert not {name for name in installed if name.startswith(("pip==", "setuptools=="))}


def normal(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def test_the_image_has_the_native_pump(image: str) -> None:
    done = podman.podman(
        "run",
        "--rm",
        "--network=none",
        "--ulimit=nproc=4096:4096",
        "--ulimit=nofile=4096:4096",
        image,
        "version",
    )
    assert "\npump: native (" in done.stdout


# --- runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pump", ["native", "portable"])
async def test_an_echo_through_the_container_returns_every_byte(folder: Path, pump: str) -> None:
    data = os.urandom(1 << 20)
    more = {"VSOCKPROXY_PUMP_CHOICE": pump, "VSOCKPROXY_DEFAULTS_HALF_CLOSE": "forward"}
    async with running(folder, more) as (_, client), trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(data)
            await client.send_eof()

        nursery.start_soon(send)
        with trio.fail_after(PATIENCE):
            assert await read_to_end(client) == data


async def test_the_daemon_has_no_capability_and_a_read_only_root(
    folder: Path,
) -> None:
    async with running(folder) as (daemon, _):
        proc = await daemon.proc()
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    [root] = [mount for mount in mounts if mount[4] == "/"]
    assert "ro" in root[5].split(",")


@pytest.mark.parametrize("listen", ["9490", "0.0.0.0:9490", "unix:/run/vm/metrics"])
async def test_the_health_check_of_a_serving_daemon_passes(folder: Path, listen: str) -> None:
    async with running(folder, {"VSOCKPROXY_METRICS_LISTEN": listen}) as (daemon, _):
        checked = await daemon.podman("healthcheck run")
        assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.parametrize(("socket", "status"), [({}, 0), ({"VSOCKPROXY_ADMIN_SOCKET": "off"}, 1)])
async def test_the_health_check_without_metrics_asks_the_control_socket(
    folder: Path, socket: dict[str, str], status: int
) -> None:
    async with running(folder, socket) as (daemon, _):
        assert (await daemon.podman("healthcheck run")).returncode == status


async def test_commands_inside_a_read_only_container_find_its_daemon(folder: Path) -> None:
    async with running(folder) as (daemon, _):
        for name, words in (("status", "unix:/run/vm/front"), ("health", "ready")):
            done = await daemon.execute("vsockproxy", name)
            assert (done.returncode, done.stderr) == (0, ""), name
            assert words in done.stdout


async def test_a_stop_lets_a_connection_finish_and_exits_with_status_0(folder: Path) -> None:
    async with running(folder) as (daemon, client), trio.open_nursery() as nursery:
        nursery.start_soon(partial(daemon.podman, "stop", "--time=20"))
        await daemon.wait_for("draining", connections=1)
        await client.send_all(b"last data")
        assert await client.receive_some() == b"last data"
        await client.aclose()
        assert await daemon.wait() == 0
        await daemon.wait_for("stopped", drained="true")


async def test_a_wrong_configuration_exits_with_status_2(folder: Path) -> None:
    async with container(folder, {"VSOCKPROXY_FORWARD": "80"}) as daemon:
        assert await daemon.wait() == 2
        assert any("VSOCKPROXY_FORWARD: '80' has no target" in line for line in daemon.lines)


# --- sandbox -------------------------------------------------------------------------------


def test_the_profile_allows_only_the_families_that_the_daemon_uses(image: str) -> None:
    rules = json.loads(PROFILE.read_text())["syscalls"]
    families = {family(rule) for rule in rules if "socket" in rule["names"]}
    assert families == {
        *(socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, AF_VSOCK)
    }
    done = run_python(TRY_X25, PROFILE)
    assert f"OSError: [Errno {errno.ENOSYS}]" in done.stderr


@pytest.mark.parametrize(
    "call", ["libc.unshare(0x10000000)", "libc.ptrace(0, 0, 0, 0)", "libc.setns(0, 0)"]
)
def test_the_profile_denies_calls_that_the_daemon_does_not_make(image: str, call: str) -> None:
    libc = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)"
    code = f"{libc}; {call}; print(ctypes.get_errno())"
    assert run_python(code, PROFILE).stdout == f"{errno.ENOSYS}\n"


async def test_a_dial_where_vsock_is_denied_logs_the_remedy(folder: Path, denying: Path) -> None:
    require_in_force(denying)
    environ = {"VSOCKPROXY_FORWARD": "unix:/run/vm/front=3:80"}
    async with container(folder, environ, denying) as daemon:
        await daemon.wait_for("ready")
        async with await trio.open_unix_socket(folder / "front") as client:
            assert await read_to_end(client) == b""
        logged = await daemon.wait_for("dial_failed", reason="blocked")
    assert "--security-opt seccomp=seccomp-vsock.json" in logged["remedy"]
    assert "[EPERM]" in logged["error"]


async def test_a_listener_where_vsock_is_denied_logs_the_remedy(
    folder: Path, denying: Path
) -> None:
    require_in_force(denying)
    environ = {"VSOCKPROXY_FORWARD": "vsock::5432=unix:/run/vm/db"}
    async with container(folder, environ, denying) as daemon:
        assert await daemon.wait() == 1
        errors = [line for line in daemon.lines if "cannot listen vsock:any:5432" in line]
    assert "--security-opt seccomp=seccomp-vsock.json" in errors[0]


def require_in_force(denying: Path) -> None:
    """Fail unless the filter stops sockets before they are made.

    Without the filter the daemon would open AF_VSOCK on this machine's own kernel.
    """
    rules = [
        rule for rule in json.loads(denying.read_text())["syscalls"] if "socket" in rule["names"]
    ]
    allowed = {family(rule) for rule in rules if rule["action"] == "SCMP_ACT_ALLOW"}
    assert not allowed & {AF_VSOCK, AF_X25, None}  # None: a rule for every family
    done = run_python(TRY_X25, denying)
    assert f"PermissionError: [Errno {errno.EPERM}]" in done.stderr, (IMAGE, done)
