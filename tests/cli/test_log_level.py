"""The level and the format of the log: option, environment, file, default; and at run time."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial

import pytest
import trio

from tests.cli.conftest import Write
from tests.cli.test_run import accept
from tests.daemon_process import command, daemon
from tests.sockets import connected

FILE = '[log]\nlevel = "warning"\nformat = "logfmt"\n'


@pytest.mark.parametrize(
    ("given", "is_written"),
    [
        (([], {}), False),
        (([], {"VSOCKPROXY_LOG_LEVEL": "info"}), True),
        ((["--log-level", "info"], {"VSOCKPROXY_LOG_LEVEL": "error"}), True),
        ((["--log-level", "error"], {"VSOCKPROXY_LOG_LEVEL": "info"}), False),
    ],
    ids=str,
)
async def test_the_option_then_the_environment_then_the_file_decide_on_the_level(
    write: Write,
    tcp: socket.socket,
    target: socket.socket,
    given: tuple[list[str], Mapping[str, str]],
    is_written: bool,
) -> None:
    options, environ = given
    file, sockets = str(write(FILE)), {"web": tcp}
    async with daemon("run", "-c", file, *options, sockets=sockets, environ=environ) as running:
        client = await connected(tcp)
        server = await accept(target)  # the daemon serves: its signals are handled
        await client.aclose()
        await server.aclose()
        assert await running.stop() == 0
    assert any("event=pump_started" in line for line in running.lines) == is_written


@pytest.mark.parametrize(("option", "value"), [("--half-close", "x"), ("--metrics", "nowhere")])
def test_an_error_of_an_option_of_forward_names_the_option(option: str, value: str) -> None:
    done = command("forward", "unix:/x", "unix:/y", option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"vsockproxy: {option}: {value!r} ")


@pytest.mark.parametrize("name", ["run", "forward"])
@pytest.mark.parametrize("option", ["--log-level", "--log-format"])
def test_a_level_or_format_that_does_not_exist_is_an_error_with_status_2(
    write: Write, name: str, option: str
) -> None:
    arguments = {"run": ["-c", str(write())], "forward": ["unix:/x", "unix:/y"]}
    done = command(name, *arguments[name], option, "loud")
    assert done.returncode == 2
    variable = "$VSOCKPROXY_" + option[2:].upper().replace("-", "_")
    assert f"{option} or {variable}: 'loud' is not valid: expected " in done.stderr


async def test_log_level_changes_what_is_logged_until_reset_and_status_shows_it(
    write: Write, tcp: socket.socket, tmp_path: object
) -> None:
    place = f"{tmp_path}/admin.sock"
    file = write(f'[admin]\nsocket = "{place}"\n')

    async def run(*words: str) -> str:
        done = await trio.to_thread.run_sync(partial(command, *words, "--socket", place))
        assert done.returncode == 0, done.stderr
        return done.stdout

    async with daemon("run", "-c", file, sockets={"web": tcp}) as running:
        await running.wait_for("ready")
        assert await run("log-level", "error") == "log level: error\n"
        assert "log level: error (configured: info)" in await run("status")
        await run("pause", "fd:web")
        await run("reload")
        await run("resume", "fd:web")
        assert await run("log-level", "reset") == "log level: info\n"
        assert "log level" not in await run("status")
        await run("pause", "fd:web")
        await running.wait_for("route_paused")
        assert await running.stop() == 0
    paused = [line for line in running.lines if "event=route_paused" in line]
    assert len(paused) == 1
    assert not [line for line in running.lines if "event=reloaded" in line]
