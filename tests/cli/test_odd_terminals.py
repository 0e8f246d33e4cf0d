"""Output that a terminal cannot spell, or must not obey: every command, every encoding, colours.

The names that a VMM, a client or a file chose have control characters, newlines and marks that
turn the direction of writing.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.daemon_process import command, daemon
from tests.waiting import until
from vsockproxy.address.endpoint import MuxEndpoint
from vsockproxy.cli import app

NAME: Final = "süd-日本"
HOSTILE: Final = "v\x1b[31m\u202e\x9b2J\nvsockproxy: forged"
COMMANDS: Final = app.every_command()

ENCODINGS: Final[dict[str, Mapping[str, str]]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "LC_ALL=C": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}

ARGUMENTS: Final[dict[str, list[str]]] = {
    "run": ["-c", "{file}"],
    "forward": ["unix:{folder}/none/{hostile}", "unix:{folder}/{name}"],
    "demo": ["-c", "{file}"],
    "connect": ["unix:{folder}/{hostile}"],
    "ssh-config": [],
    "check": ["{file}"],
    "health": ["--url", "http://{name}.invalid:1"],
    "version": [],
    "doctor": ["-c", "{file}"],
    "probe": ["unix:{folder}/{hostile}"],
    "cid": [],
    "guests": ["-c", "{file}"],
    "status": [],
    "connections": [],
    "kill": ["--route", "{name}"],
    "pause": ["{name}", "{hostile}"],
    "drain": ["{name}", "{hostile}"],
    "resume": ["{name}", "{hostile}"],
    "reload": [],
    "route": ["replace", "{name}", "listen={hostile}"],
    "guest": ["remove", "{hostile}"],
    "top": [],
    "log-level": ["info"],
    "help": ["{hostile}"],
}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[ControlledDaemon]:
    """Yield a daemon whose one route has failed to reach a target with a hostile path."""
    target = MuxEndpoint(f"{tmp_path}/{HOSTILE}", 80)
    async with controlled_daemon(tmp_path, NAME, target=target) as started:
        client = await started.connect(NAME)
        await until(lambda: started.stats(NAME).last_error)
        await client.aclose()
        yield started


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file whose route is named alike, with a listener in a missing folder."""
    path = tmp_path / f"{NAME}.toml"
    listen, target = f"unix:{tmp_path}/none/{HOSTILE}", f"vsock-mux:{tmp_path}/{HOSTILE}:80"
    path.write_text(
        f'[[route]]\nname = "{NAME}"\nlisten = {json.dumps(listen)}\n'
        f"target = {json.dumps(target)}\n"
        f"[guests.web]\nmux = {json.dumps(f'/run/{HOSTILE}')}\n",
        encoding="utf-8",
    )
    return path


def words(name: str, file: Path) -> list[str]:
    """Return the command line of a command."""
    places = {"file": str(file), "folder": str(file.parent), "name": NAME, "hostile": HOSTILE}
    return [name, *(word.format_map(places) for word in ARGUMENTS[name])]


def test_every_command_has_arguments_here() -> None:
    assert set(COMMANDS) == set(ARGUMENTS)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
async def test_no_command_fails_or_forges_a_line_where_a_terminal_spells_ascii_only(
    running: ControlledDaemon, file: Path, name: str
) -> None:
    options = {param.opts[0]: param for param in COMMANDS[name].params}
    for more in [[], ["--json"]] if "--json" in options else [[]]:
        environ = {**ENCODINGS["ascii"], "VSOCKPROXY_ADMIN": str(running.socket)}
        call = partial(command, *words(name, file), *more, environ=environ)
        done = await trio.to_thread.run_sync(call)
        lines = [*done.stdout.split("\n"), *done.stderr.split("\n")]
        assert all(line.isascii() and line.isprintable() for line in lines)
        assert not [line for line in lines if line.startswith("vsockproxy: forged")]


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_table_is_whole_in_every_encoding(running: ControlledDaemon, encoding: str) -> None:
    environ = {**ENCODINGS[encoding], "VSOCKPROXY_ADMIN": str(running.socket)}
    done = await trio.to_thread.run_sync(partial(raw_output, "status", environ=environ))
    spelled = done.decode("latin-1")
    head, rule, row = spelled.splitlines()[2:5]
    assert head.split()[0] == "route"
    assert set(rule) <= set("-+ ")
    name = r"s\xfcd-\u65e5\u672c" if encoding != "latin-1" else r"süd-\u65e5\u672c"
    assert row.startswith(f"{name} ")
    assert head.index("listen") == row.index("unix:")  # the columns are aligned


def raw_output(*arguments: str, environ: Mapping[str, str]) -> bytes:
    reader, writer = os.pipe()
    try:
        done = command(*arguments, environ=environ, stdout=writer)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        output = stream.read()
    assert done.returncode == 0, done.stderr
    return output


async def test_the_api_answers_in_printable_ascii(running: ControlledDaemon) -> None:
    for path in ("/v1/status", "/v1/routes", "/v1/config", "/v1/events", "/v1/connections"):
        answer = await running.ask("GET", path)
        assert answer.status_code == 200
        assert answer.text.isascii()
        assert answer.text.isprintable()
    assert (await running.get("/v1/routes"))["routes"][0]["name"] == NAME


async def test_a_path_that_is_not_utf_8_is_shown_by_the_api_and_the_commands(
    tmp_path: Path,
) -> None:
    path = os.fsdecode(os.fsencode(f"{tmp_path}/") + b"\xff")
    async with controlled_daemon(tmp_path, "web", target=MuxEndpoint(path, 80)) as running:
        [route] = (await running.get("/v1/routes"))["routes"]
        assert route["targets"][0]["address"] == f"vsock-mux:{tmp_path}/\\udcff:80"
        environ = {"VSOCKPROXY_ADMIN": str(running.socket)}
        done = await trio.to_thread.run_sync(partial(command, "status", environ=environ))
    assert rf"{tmp_path}/\udcff:80" in done.stdout


# ---- colours ----


def on_a_terminal(*arguments: str, environ: Mapping[str, str]) -> str:
    """Return the output of a command on a terminal with colours."""
    ours, theirs = pty.openpty()
    try:
        done = command(*arguments, environ={"TERM": "xterm", **environ}, stdout=theirs)
        assert done.returncode == 0, done.stderr
        return os.read(ours, 65536).decode()
    finally:
        os.close(theirs)
        os.close(ours)


COLORED: Final = sorted(
    name
    for name, one in COMMANDS.items()
    if any("--color" in parameter.opts for parameter in one.params)
)


def test_each_command_with_colours_has_the_option() -> None:
    daemons = ["demo", "forward", "run"]
    assert sorted(["check", "connections", "doctor", "status", "top", *daemons]) == COLORED


@pytest.mark.parametrize(
    ("options", "environ", "has_colors"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
        (["--color", "never"], {}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
    ],
    ids=str,
)
async def test_the_option_then_no_color_then_the_terminal_decide_on_colours(
    running: ControlledDaemon, options: list[str], environ: dict[str, str], has_colors: bool
) -> None:
    environ = {"VSOCKPROXY_ADMIN": str(running.socket), **environ}
    for name in ("status", "connections"):
        call = partial(on_a_terminal, name, *options, environ=environ)
        shown = await trio.to_thread.run_sync(call)
        assert ("\x1b[" in shown) == has_colors


@pytest.mark.parametrize("color", ["always", "never"])
async def test_a_pipe_gets_colours_only_where_they_are_asked_for(
    running: ControlledDaemon, file: Path, color: str
) -> None:
    environ = {"VSOCKPROXY_ADMIN": str(running.socket)}
    for arguments in (["status"], ["doctor", "-c", str(file)]):
        call = partial(command, *arguments, "--color", color, environ=environ)
        done: subprocess.CompletedProcess[str] = await trio.to_thread.run_sync(call)
        assert ("\x1b[" in done.stdout) == (color == "always")


@pytest.mark.parametrize("name", ["run", "forward"])
@pytest.mark.parametrize("color", ["always", "never"])
def test_the_log_for_people_has_colours_as_the_option_says(
    tmp_path: Path, name: str, color: str
) -> None:
    file = tmp_path / "c.toml"
    missing = f"unix:{tmp_path}/missing/x"
    file.write_text(f'[log]\nformat = "human"\n[forward]\n"{missing}" = "unix:/x"\n')
    arguments = {
        "run": ["-c", str(file)],
        "forward": [missing, "unix:/x", "--log-format", "human"],
    }
    done = command(name, *arguments[name], "--color", color)
    assert "pump_started" in done.stderr
    assert ("\x1b[" in done.stderr) == (color == "always")


@pytest.mark.parametrize("name", ["status", "connections"])
async def test_watch_redraws_until_it_is_interrupted(running: ControlledDaemon, name: str) -> None:
    environ = {"VSOCKPROXY_ADMIN": str(running.socket)}
    async with daemon(name, "--watch", environ=environ) as watching:
        await until(lambda: watching.output.count("route ") > 1)
        watching.send_signal(signal.SIGINT)
        assert await watching.wait() == 0
