"""The commands `run` and `forward`: a connection's life, signals, and errors at the start."""

import json
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from click.testing import CliRunner

from tests.cli.conftest import Write
from tests.daemon_process import PATIENCE, Daemon, command, daemon, environment
from tests.sockets import connected, read_to_end
from vsockproxy.cli import app

REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


async def accept(sock: socket.socket) -> trio.SocketStream:
    sock.setblocking(False)
    taken, _ = await trio.socket.from_stdlib_socket(sock).accept()
    return trio.SocketStream(taken)


async def started(
    running: Daemon, tcp: socket.socket, target: socket.socket
) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Wait until the daemon is ready, and return both ends of a connection through it."""
    await running.wait_for("ready")
    client = await connected(tcp)
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
        assert await read_to_end(server) == b"yz"
        await server.send_all(b"answer")
        await server.aclose()
        assert await read_to_end(client) == b"answer"
        line = await running.wait_for("connection_closed", reason="finished")
        assert (line["upstream_bytes"], line["downstream_bytes"]) == ("3", "6")
        assert await running.wait() == 0
        await running.wait_for("stopped", drained="true")
        await client.aclose()


async def test_a_daemon_with_the_file_of_standard_input_serves_and_a_reload_says_why_it_cannot(
    write: Write, tcp: socket.socket, target: socket.socket, tmp_path: Path
) -> None:
    file = write(f'[admin]\nsocket = "{tmp_path}/admin.sock"\n')
    reason = "the configuration was read from standard input, which has ended"
    with file.open() as opened:
        async with daemon("run", "-c", "-", sockets={"web": tcp}, stdin=opened.fileno()) as running:
            client, server = await started(running, tcp, target)
            running.send_signal(signal.SIGHUP)
            await running.wait_for("reload_failed", problem=reason)
            ask = partial(command, "reload", "--socket", f"{tmp_path}/admin.sock")
            for option in ((), ("--dry-run",)):
                done = await trio.to_thread.run_sync(partial(ask, *option))
                assert done.returncode == 1
                assert f"{reason}\n" in done.stderr
                assert "restart the daemon, or run it from a file" in done.stderr
            check = partial(CliRunner().invoke, app, ["check", "--diff", "--json", "-"])
            shown = await trio.to_thread.run_sync(partial(check, input=file.read_bytes()))
            assert not any(json.loads(shown.stdout)["changes"].values())
            await client.aclose()
            await server.aclose()
            assert await running.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_resets_connections_and_exits_with_status_1(
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
            await read_to_end(client)
        await client.aclose()
        await server.aclose()


async def test_a_drain_beyond_drain_timeout_exits_with_status_1(
    write: Write, tcp: socket.socket, target: socket.socket
) -> None:
    file = write('[defaults]\ndrain_timeout = "50ms"\n')
    async with daemon("run", "-c", file, sockets={"web": tcp}) as running:
        client, server = await started(running, tcp, target)
        assert await running.stop() == 1
        await running.wait_for("connection_closed", reason="drained")
        await client.aclose()
        await server.aclose()


async def test_metrics_are_served_on_an_inherited_socket(write: Write, tcp: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as metrics:
        file = write('[metrics]\nlisten = "fd:metrics"\n')
        sockets = {"web": tcp, "metrics": metrics}
        async with daemon("run", "-c", file, sockets=sockets) as running:
            await running.wait_for("ready")
            scraper = await connected(metrics)
            await scraper.send_all(REQUEST)
            answer = await read_to_end(scraper)
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
        await running.wait_for("listening", route="fd:web", listen="fd:web")


async def test_status_finds_a_forward_with_a_control_socket(tmp_path: Path) -> None:
    socket_file = tmp_path / "admin.sock"
    listen, target = f"unix:{tmp_path}/web", f"unix:{tmp_path}/guest"
    async with daemon("forward", listen, target, "--admin", socket_file) as running:
        await running.wait_for("ready")
        call = partial(command, "status", "--socket", socket_file)
        done = await trio.to_thread.run_sync(call)
        assert f"unix:{tmp_path}/web" in done.stdout
        assert await running.stop() == 0


async def test_each_listener_has_a_line_at_the_start_and_where_its_target_changes(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        f'[forward]\n"unix:{tmp_path}/web" = "unix:/g/3"\n[metrics]\nlisten = "unix:{tmp_path}/m"\n'
    )
    async with daemon("run", "-c", file) as running:
        web = {"route": f"unix:{tmp_path}/web", "listen": f"unix:{tmp_path}/web"}
        await running.wait_for("listening", **web, target="unix:/g/3")
        await running.wait_for("listening", server="metrics", listen=f"unix:{tmp_path}/m")
        await running.wait_for("ready")
        for text in (file.read_text(), file.read_text().replace("/g/3", "/g/4")):
            file.write_text(text)
            running.send_signal(signal.SIGHUP)
            await running.wait_for("reloaded")
        await running.wait_for("listening", **web, target="unix:/g/4")
        assert await running.stop() == 0
    assert sum("event=listening" in line for line in running.lines) == 3


async def test_forward_resolves_relative_paths_in_the_working_directory(
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
def test_a_port_in_use_exits_with_status_1_and_is_named(
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


def test_a_missing_inherited_socket_exits_with_status_1(write: Write) -> None:
    done = command("run", "-c", write())
    assert done.returncode == 1
    assert "vsockproxy: route fd:web: cannot listen fd:web: " in done.stderr


async def test_a_daemon_whose_log_is_on_a_full_disk_serves_clients(
    write: Write, tcp: socket.socket, target: socket.socket, full: int
) -> None:
    async with daemon("run", "-c", write(), sockets={"web": tcp}, log=full) as running:
        client = await connected(tcp)  # queued until the daemon is ready
        server = await accept(target)
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
        await client.aclose()
        await server.aclose()
        assert await running.stop() == 0


@pytest.mark.parametrize("error", ["trio.TrioInternalError('x') from MemoryError()", "MemoryError"])
def test_an_event_loop_without_memory_ends_with_one_line_and_status_1(error: str) -> None:
    # A fake: what it stands in for cannot be made to fail in the same place each time.
    fake = f"""
import trio
from vsockproxy.daemon import signals
async def supervise(*_, **__):
    async with trio.open_nursery():
        raise {error}
signals.supervise = supervise
from vsockproxy.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", fake, "forward", "127.0.0.1:1", "127.0.0.1:2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vsockproxy: no memory is left: ")
    assert done.stderr.count("\n") == 1


# ---- garbage collection ----

# The program; when it ends it says whether garbage is collected, and not in what the start made.
_ASKED: Final = """
import atexit, gc
from vsockproxy.__main__ import main
atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 0, flush=True))
main()
"""


@pytest.mark.parametrize(
    ("port", "is_ready", "state"), [(80, True, "True True"), (-1, False, "False False")]
)
def test_garbage_is_collected_from_ready_on_and_not_in_what_the_start_made(
    tmp_path: Path, port: int, is_ready: bool, state: str
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f'forward."unix:{tmp_path}/front" = "vsock-mux:{tmp_path}/x:{port}"\n')
    with subprocess.Popen(
        [sys.executable, "-c", _ASKED, "run", "-c", str(file)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any("event=ready" in line for line in process.stderr) is is_ready
        process.terminate()
        said, _ = process.communicate(timeout=PATIENCE)
    assert said.strip() == state
