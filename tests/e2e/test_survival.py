"""The real program with killed peers, a full descriptor table, an unread log, a dead target."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from tests.daemon_process import Daemon, daemon, environment
from tests.fake_services import echo
from tests.sockets import ends_by_reset, read_to_end

# Each has unread data when it is killed, so that the kernel resets its connection.
CLIENT = """
import signal, socket, sys
s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
s.sendall(bytes(100_000))
s.recv(1, socket.MSG_PEEK)
print("unread", flush=True)
signal.pause()
"""
TARGET = """
import signal, socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    s, _ = listener.accept()
s.sendall(b"part")
s.recv(1, socket.MSG_PEEK)
print("unread", flush=True)
signal.pause()
"""


@asynccontextmanager
async def process(program: str, *arguments: object) -> AsyncIterator[trio.Process]:
    """Run a Python process; kill it at the end of the block, if not before."""
    running = await trio.lowlevel.open_process(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        async with running.stdout:
            yield running
    finally:
        running.kill()
        await running.wait()


@asynccontextmanager
async def routes_to(tmp_path: Path, **targets: int) -> AsyncIterator[tuple[Daemon, dict[str, int]]]:
    """Run a daemon with a route to each of these ports; yield it and the routes' own ports."""
    fronts = {name: socket.create_server(("127.0.0.1", 0)) for name in targets}
    lines = [f'"fd:{name}" = "127.0.0.1:{port}"' for name, port in targets.items()]
    file = tmp_path / "config.toml"
    file.write_text("\n".join(["[forward]", *lines]))
    async with daemon("run", "-c", file, sockets=fronts) as running:
        await running.wait_for("ready")
        yield running, {name: front.getsockname()[1] for name, front in fronts.items()}
        assert await running.stop() in (0, 1)
    for front in fronts.values():
        front.close()


@pytest.fixture
async def echo_port(nursery: trio.Nursery) -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def answers(port: int) -> bool:
    """Return whether the echo behind a route answers."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"still here?")
        await client.send_eof()
        return await read_to_end(client) == b"still here?"


async def test_a_killed_client_ends_only_its_own_connection(tmp_path: Path, echo_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
        async with (
            target,
            routes_to(tmp_path, sink=listener.getsockname()[1], echo=echo_port) as (
                running,
                ports,
            ),
            process(CLIENT, ports["sink"]) as client,
            await target.accept() as server,
        ):
            await server.send_all(b"never read")
            assert client.stdout is not None
            assert (await client.stdout.receive_some()).strip() == b"unread"
            client.kill()
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(server)
            await running.wait_for("connection_closed", route="fd:sink", reason="client_reset")
            assert await answers(ports["echo"])


async def test_a_killed_target_resets_its_client_and_is_logged(
    tmp_path: Path, echo_port: int
) -> None:
    async with process(TARGET) as target:
        assert target.stdout is not None
        port = int(await target.stdout.receive_some())
        async with routes_to(tmp_path, sink=port, echo=echo_port) as (running, ports):
            client = await trio.open_tcp_stream("127.0.0.1", ports["sink"])
            assert await client.receive_some() == b"part"
            await client.send_all(b"never read")
            assert (await target.stdout.receive_some()).strip() == b"unread"
            target.kill()
            assert await ends_by_reset(client)
            end = await running.wait_for(
                "connection_closed", route="fd:sink", reason="target_reset"
            )
            assert "reset the connection" in end["why"]
            assert await answers(ports["echo"])


async def test_a_full_descriptor_table_queues_clients_and_is_logged(
    tmp_path: Path, echo_port: int
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=200) as front:
        file = tmp_path / "config.toml"
        file.write_text(f'[forward]\n"fd:front" = "127.0.0.1:{echo_port}"\n')
        async with daemon("run", "-c", file, sockets={"front": front}) as running:
            await running.wait_for("ready")
            _leave_descriptors(running.pid, 20)
            clients = [await trio.open_tcp_stream(*front.getsockname()) for _ in range(60)]
            logged = await running.wait_for("clients_queued", reason="descriptors")
            assert "LimitNOFILE" in logged["why"]
            for client in clients:
                await client.aclose()
            assert await answers(front.getsockname()[1])
            assert await running.stop() == 0
            assert not any("accept_failed" in line for line in running.lines)
            assert not any("dial_failed" in line for line in running.lines)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit(2) and /proc")
async def test_too_little_memory_queues_clients_until_there_is_more(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=4096) as front,
        socket.create_server(("127.0.0.1", 0), backlog=4096) as target,
    ):
        target.setblocking(False)
        incoming = trio.SocketListener(trio.socket.from_stdlib_socket(target))
        file = tmp_path / "config.toml"
        port = target.getsockname()[1]
        file.write_text(f'[forward]\n"fd:front" = "127.0.0.1:{port}"\n')
        async with daemon("run", "-c", file, sockets={"front": front}) as running:
            await running.wait_for("ready")
            clients = [await trio.open_tcp_stream(*front.getsockname())]
            server = await incoming.accept()
            _leave_memory(running.pid, 3 << 20)  # the daemon wants 4 MiB
            logged = None
            while logged is None:
                assert len(clients) < 900, "there is memory for all of them"
                clients += [await trio.open_tcp_stream(*front.getsockname()) for _ in range(10)]
                with trio.move_on_after(0.05):  # the daemon is slower than its clients
                    logged = await running.wait_for("clients_queued", reason="memory")
            assert "LimitAS" in logged["why"]
            await clients[0].send_all(b"on")
            assert await server.receive_some() == b"on"
            _leave_memory(running.pid, None)
            for _ in clients[1:]:
                await (await incoming.accept()).aclose()
            for stream in (*clients, server):
                await stream.aclose()
            assert await running.stop() == 0


async def test_an_unread_log_delays_no_relay(tmp_path: Path, echo_port: int) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with (
        os.fdopen(reader, "rb") as log,
        os.fdopen(writer, "wb") as pipe,
        socket.create_server(("127.0.0.1", 0), backlog=200) as front,
    ):
        port = front.getsockname()[1]
        file = tmp_path / "config.toml"
        file.write_text(f'[forward]\n"fd:front" = "127.0.0.1:{echo_port}"\n')
        async with daemon("run", "-c", file, sockets={"front": front}, log=writer) as running:
            for _ in range(100):  # the pipe holds about twenty access lines
                assert await answers(port)
            assert await running.stop() == 0
        pipe.close()
        assert log.readline().startswith(b"time=")


async def test_a_dead_target_with_many_clients_is_logged_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as front:
        file = tmp_path / "config.toml"
        file.write_text(f'[forward]\n"fd:front" = "unix:{tmp_path}/dead"\n')
        async with daemon("run", "-c", file, sockets={"front": front}) as running:
            for _ in range(10):
                with suppress(OSError):  # reset before it has noticed that it is connected
                    assert await ends_by_reset(await trio.open_tcp_stream(*front.getsockname()))
            logged = await running.wait_for("dial_failed", reason="not_found")
            assert (logged["number"], logged["left_out"]) == ("1", "0")
            assert await running.stop() == 0
            assert sum("dial_" in line for line in running.lines) == 1


def _leave_descriptors(pid: int, number: int) -> None:
    """Limit a process to ``number`` more descriptors than it has open."""
    limit = len(list(Path(f"/proc/{pid}/fd").iterdir())) + number
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))


def _leave_memory(pid: int, size: int | None) -> None:
    """Limit a process to ``size`` bytes more than it has; None takes the limit away."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    most = resource.RLIM_INFINITY if size is None else pages * resource.getpagesize() + size
    resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
