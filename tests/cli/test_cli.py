"""The commands, as the processes that people and systemd start."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
from typer.testing import CliRunner

from tests.daemon_process import REPOSITORY, Daemon, command, daemon, environment
from tests.fake_services import as_ordinary_user, open_folder
from vsockproxy import __version__
from vsockproxy.cli import app
from vsockproxy.config.source import default_file

COMMANDS: Final = (
    *("run", "forward", "demo", "check", "health", "version"),
    *("doctor", "probe", "cid", "guests"),
    *("status", "connections", "kill", "pause", "drain", "resume", "reload"),
)
REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """A listener to hand in, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def target(tmp_path: Path) -> Iterator[socket.socket]:
    """A Unix socket to relay to; nobody accepts unless the test does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "target"))
        sock.listen()
        yield sock


@pytest.fixture
def full() -> Iterator[int]:
    """A file on a full disk."""
    with Path("/dev/full").open("w") as file:
        yield file.fileno()


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, target: socket.socket) -> Write:
    """Writes a file with the route ``fd:web`` to ``target``, and more."""

    def written(more: str = "", name: str = "config.toml") -> Path:
        file = tmp_path / name
        file.write_text(f'[forward]\n"fd:web" = "unix:{target.getsockname()}"\n{more}')
        return file

    return written


async def connect(sock: socket.socket) -> trio.SocketStream:
    client = trio.socket.socket(sock.family)
    await client.connect(sock.getsockname())
    return trio.SocketStream(client)


async def accept(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    taken, _ = await trio.socket.from_stdlib_socket(sock).accept()
    return trio.SocketStream(taken)


async def everything(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


# --- words --------------------------------------------------------------------------------


def test_help_shows_examples_and_every_command() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "vsockproxy forward 8080 3:80 " in done.stdout
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "..." not in done.stdout.split("Commands:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


def test_help_waits_for_nothing_heavy() -> None:
    done = command("--help", environ={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"trio", "pydantic", "structlog", "prometheus_client", "hypercorn"}


def test_version_says_which_pump_runs_and_why() -> None:
    assert command("--version").stdout == f"vsockproxy {__version__}\n"
    first, python, pump = command("version").stdout.splitlines()
    assert first == f"vsockproxy {__version__}"
    assert python.startswith("Python 3.")
    assert pump.startswith(("pump: native (", "pump: portable ("))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str) -> None:
    words = {
        "_VSOCKPROXY_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "vsockproxy ",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "vsockproxy ",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = command(environ=words)
    assert "forward" in done.stdout
    assert "demo" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("run", "--frobnicate"),
        ("check", "--frobnicate"),
        ("forward",),
        ("forward", "8080"),
        ("forward", "8080", "3:80", "8081"),
        ("demo", "--port", "many"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_status_2(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (("forward", "8080", "x"), "'x'"),
        (("forward", "3:80", "8080"), "'3:80'"),
        (("forward", "8080", "3:80", "8080", "3:81"), "'8080'"),
        (("forward", "8080", "3:80", "--log-level", "loud"), "'loud'"),
        (("forward", "8080", "3:80", "--metrics", "vsock::9"), "'vsock::9'"),
        (("forward", "8080", "3:80", "--connect-timeout", "soon"), "'soon'"),
        (("forward", "8080", "3:80", "--half-close", "maybe"), "'maybe'"),
        (("demo", "--port", "65536"), "65536"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_address_or_setting_is_status_2_and_quoted(
    arguments: tuple[str, ...], quoted: str
) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert quoted in done.stderr
    assert all(line.startswith("vsockproxy: ") for line in done.stderr.splitlines())


# --- check --------------------------------------------------------------------------------


def test_check_shows_a_line_for_each_route_however_long(write: Write, tmp_path: Path) -> None:
    path = f"/run/{'x' * 80}"
    more = (
        f'"127.0.0.1:81" = "vsock-mux:{path}:80"\n"[::]:82" = "3:80"\n'
        '[[route]]\nname = "db"\nlisten = "5432"\ntarget = "tcp:db.lan:5432"\nidle_timeout = "1h"\n'
        '[metrics]\nlisten = "9490"\n'
    )
    done = command("check", write(more))
    assert (done.returncode, done.stderr) == (0, "")
    head, _, *routes, summary = done.stdout.splitlines()
    assert head.split() == ["route", "listen", "target", "settings"]
    assert [line.split() for line in routes] == [
        ["fd:web", "fd:web", f"unix:{tmp_path}/target"],
        ["127.0.0.1:81", "tcp:127.0.0.1:81", f"vsock-mux:{path}:80"],
        ["[::]:82", "tcp:[::]:82", "vsock:3:80"],
        ["db", "tcp:5432", "tcp:db.lan:5432", "idle_timeout=1h"],
    ]
    assert summary == "4 routes; metrics: tcp:9490"


def test_check_fits_a_terminal_of_80_columns(write: Write) -> None:
    name = "a-guest-with-quite-a-long-name-for-its-socket"
    file = write(f'[[route]]\nlisten = "81"\ntarget = "vsock-mux:/run/{name}/v.sock:80"\n')
    shown = on_a_terminal("check", str(file))
    assert max(map(len, shown.splitlines())) <= 80
    assert name in "".join(shown.split())


def on_a_terminal(*arguments: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    master, slave = os.openpty()
    try:
        environ = {"TERM": "dumb", "COLUMNS": "80"}
        assert command(*arguments, environ=environ, stdout=slave).returncode == 0
        return os.read(master, 65536).decode()
    finally:
        os.close(slave)
        os.close(master)


def test_check_shows_every_error_and_no_route(write: Write) -> None:
    done = command("check", write('8080 = "3:99999999999"\n81 = "nobody:80"\n[logs]\n'))
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("vsockproxy: ") and "config.toml" in line for line in lines)
    for quoted in ("99999999999", "nobody", "logs"):
        assert quoted in done.stderr


def test_a_file_that_is_not_there_is_status_2() -> None:
    for name in ("check", "run"):
        option = ("--config",) if name == "run" else ()
        done = command(name, *option, "/nowhere/at-all.toml")
        assert done.returncode == 2
        assert "/nowhere/at-all.toml" in done.stderr


CONFIGURATIONS: Final = sorted(
    file for file in (REPOSITORY / "config").iterdir() if file.suffix in (".toml", ".yaml")
)


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda f: f.name)
def test_every_file_in_config_passes_check(file: Path) -> None:
    assert command("check", file).returncode == 0


def test_a_full_disk_behind_standard_output_is_a_sentence(write: Write, full: int) -> None:
    for arguments in (("version",), ("--help",), ("check", write())):
        done = command(*arguments, stdout=full)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr


def test_a_reader_that_has_gone_is_no_traceback(write: Write) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = command("check", write(), stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [("version",), ("check", "config/demo.toml")])
def test_closed_standard_streams_are_no_error(arguments: tuple[str, ...]) -> None:
    shell = ["sh", "-c", 'exec "$0" -m vsockproxy "$@" >&- 2>&-', sys.executable, *arguments]
    assert subprocess.run(shell, env=environment(), cwd=REPOSITORY, check=False).returncode == 0


# --- which file ---------------------------------------------------------------------------


def test_run_without_a_file_names_every_place_it_looked_at() -> None:
    done = command("run")
    assert done.returncode == 2
    variables = ("$VSOCKPROXY_CONFIG", "$VSOCKPROXY_FORWARD")
    for place in ("-c", *variables, "/etc/vsockproxy/config.toml", "config.yaml"):
        assert place in done.stderr


def test_check_without_a_file_takes_what_run_takes(write: Write) -> None:
    named = command("check", environ={"VSOCKPROXY_CONFIG": str(write())})
    asked = command("check", "-c", write())
    assert named.stdout == asked.stdout == command("check", write()).stdout
    settings = command("check", environ={"VSOCKPROXY_FORWARD": "8080=3:80"})
    assert "vsock:3:80" in settings.stdout
    assert command("check").stderr == command("run").stderr


def test_a_file_that_may_not_be_read_says_what_to_do() -> None:
    with open_folder() as folder:
        file = folder / "x.toml"
        file.touch()
        for arguments in (("check", str(file)), ("run", "-c", str(file))):
            file.chmod(0o644)
            CliRunner().invoke(app, arguments)  # what it imports an ordinary user may not read
            file.chmod(0o000)
            with as_ordinary_user():
                done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 2
            assert "x.toml: permission denied: check the mode of the file" in done.stderr


def test_the_first_place_with_a_file_is_taken(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "config.toml", tmp_path / "config.yaml"
    yaml.touch()
    assert default_file((toml, yaml)) == yaml
    toml.touch()
    assert default_file((toml, yaml)) == toml
    toml.unlink()
    yaml.unlink()
    assert default_file((toml, yaml)) is None


async def test_the_environment_names_the_file(write: Write, tcp: socket.socket) -> None:
    environ = {"VSOCKPROXY_CONFIG": str(write())}
    async with daemon("run", sockets={"web": tcp}, environ=environ) as running:
        ready = await running.wait_for("ready")
        assert ready["config"] == environ["VSOCKPROXY_CONFIG"]
        assert await running.stop() == 0


# --- the daemon's life --------------------------------------------------------------------


async def started(
    running: Daemon, tcp: socket.socket, target: socket.socket
) -> tuple[trio.SocketStream, trio.SocketStream]:
    """A connection through a daemon that has just started."""
    await running.wait_for("ready")
    client = await connect(tcp)
    server = await accept(target)
    await client.send_all(b"x")
    assert await server.receive_some() == b"x"
    return client, server


async def test_a_connection_is_relayed_logged_and_drained(
    write: Write, tcp: socket.socket, target: socket.socket
) -> None:
    async with daemon("run", "-c", write(), sockets={"web": tcp}) as running:
        client, server = await started(running, tcp, target)
        running.send_signal(signal.SIGTERM)
        await running.wait_for("draining", connections=1)
        await client.send_all(b"yz")
        await client.send_eof()
        assert await everything(server) == b"yz"
        await server.send_all(b"answer")
        await server.aclose()
        assert await everything(client) == b"answer"
        line = await running.wait_for("connection_closed", reason="finished")
        assert (line["upstream_bytes"], line["downstream_bytes"]) == ("3", "6")
        assert await running.wait() == 0
        await running.wait_for("stopped", drained="true")
        await client.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once_with_status_1(
    write: Write, tcp: socket.socket, target: socket.socket, number: signal.Signals
) -> None:
    async with daemon("run", "-c", write(), sockets={"web": tcp}) as running:
        client, server = await started(running, tcp, target)
        running.send_signal(number)
        await running.wait_for("draining")
        running.send_signal(number)
        assert await running.wait() == 1
        await running.wait_for("connection_closed", reason="shutdown")
        with pytest.raises(trio.BrokenResourceError):
            await everything(client)
        await client.aclose()
        await server.aclose()


async def test_a_drain_that_takes_too_long_is_status_1(
    write: Write, tcp: socket.socket, target: socket.socket
) -> None:
    file = write('[defaults]\ndrain_timeout = "50ms"\n')
    async with daemon("run", "-c", file, sockets={"web": tcp}) as running:
        client, server = await started(running, tcp, target)
        assert await running.stop() == 1
        await running.wait_for("connection_closed", reason="drained")
        await client.aclose()
        await server.aclose()


async def test_metrics_are_served_on_a_socket_that_is_handed_in(
    write: Write, tcp: socket.socket
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as metrics:
        file = write('[metrics]\nlisten = "fd:metrics"\n')
        sockets = {"web": tcp, "metrics": metrics}
        async with daemon("run", "-c", file, sockets=sockets) as running:
            await running.wait_for("ready")
            scraper = await connect(metrics)
            await scraper.send_all(REQUEST)
            answer = await everything(scraper)
            await scraper.aclose()
            assert await running.stop() == 0
    assert b'vsockproxy_connections_total{route="fd:web"} 0.0' in answer
    assert b"process_resident_memory_bytes" in answer


async def test_forward_relays_without_a_file(tcp: socket.socket, target: socket.socket) -> None:
    arguments = ("forward", "fd:web", f"unix:{target.getsockname()}", "--log-level", "debug")
    async with daemon(*arguments, sockets={"web": tcp}) as running:
        client, server = await started(running, tcp, target)
        await client.aclose()
        await server.aclose()
        await running.wait_for("connection_closed")
        assert await running.stop() == 0
        await running.wait_for("listening", owner="route fd:web")


async def test_forward_takes_relative_paths_from_the_shells_folder_on(
    tcp: socket.socket, target: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("forward", "fd:web", "unix:target", "--metrics", "unix:metrics")
    async with daemon(*arguments, sockets={"web": tcp}) as running:
        client, server = await started(running, tcp, target)
        await client.aclose()
        await server.aclose()
        end = await running.wait_for("connection_closed")
        assert end["target"] == f"unix:{tmp_path}/target"
        assert (tmp_path / "metrics").is_socket()
        assert await running.stop() == 0


@pytest.mark.parametrize("listener", ["route", "metrics"])
def test_a_port_that_is_taken_is_status_1_and_named(
    tcp: socket.socket, tmp_path: Path, listener: str
) -> None:
    taken = f"127.0.0.1:{tcp.getsockname()[1]}"
    mine = tmp_path / "mine"
    done = command(
        "forward",
        *(f"unix:{mine}", "3:80"),
        *((taken, "3:81") if listener == "route" else ("--metrics", taken)),
    )
    assert done.returncode == 1
    owner = f"route {taken}" if listener == "route" else "metrics"
    assert f"vsockproxy: {owner}: cannot listen tcp:{taken}: another process" in done.stderr
    assert not mine.exists()


def test_a_socket_that_nobody_hands_in_is_status_1(write: Write) -> None:
    done = command("run", "-c", write())
    assert done.returncode == 1
    assert "vsockproxy: route fd:web: cannot listen fd:web: " in done.stderr


async def test_a_log_on_a_full_disk_leaves_the_daemon_serving(
    write: Write, tcp: socket.socket, target: socket.socket, full: int
) -> None:
    async with daemon("run", "-c", write(), sockets={"web": tcp}, log=full) as running:
        client = await connect(tcp)  # it waits in the backlog until the daemon is ready
        server = await accept(target)
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
        await client.aclose()
        await server.aclose()
        assert await running.stop() == 0
