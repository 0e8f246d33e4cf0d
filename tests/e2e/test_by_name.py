"""The real program with clients that name their targets, from a configuration file."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack
from itertools import count, islice
from pathlib import Path

import pytest
import trio

from tests.daemon_process import command, daemon
from tests.fake_services import mux_server
from tests.sockets import read_to_end

CONFIG = """
[[route]]
name = "in"
listen = "fd:in"
by = "http-host"
to = [{{ name = "*.vm", target = "sbx-{{1}}:80" }}]
half_close = "forward"

[[route]]
name = "out"
listen = "fd:out"
by = "proxy"
target_allow = [{allowed}]

[guests]
"sbx-*" = {{ mux = "{folder}/{{name}}.sock" }}

[admin]
socket = "{folder}/admin.sock"
"""


HASH = "$2b$05$" + "a" * 53


async def greets(stream: trio.SocketStream) -> None:
    await read_to_end(stream)
    await stream.send_all(b"hello")


async def ask(listener: socket.socket, request: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1]) as client:
        await client.send_all(request)
        await client.send_eof()
        return await read_to_end(client)


def host(name: str) -> bytes:
    return f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()


def connect(target: str) -> bytes:
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode()


def test_check_shows_the_rules_and_the_fault_of_a_file_of_users(tmp_path: Path) -> None:
    config, users = tmp_path / "config.toml", tmp_path / "users"
    text = CONFIG.format(folder=tmp_path, allowed="")
    config.write_text(text)
    shown = command("check", config)
    assert "by http-host: *.vm = sbx-{1}:80" in shown.stdout, shown
    assert "by proxy" in shown.stdout

    users.write_text("# people\nann:secret\n")
    config.write_text(text.replace('"proxy"', f'"proxy"\ncredentials = "{users}"'))
    shown = command("check", config)
    assert shown.returncode == 2
    assert f"{users}:2: the user's password is not a bcrypt hash" in shown.stderr
    assert "secret" not in shown.stderr


def test_check_warns_of_a_file_of_users_that_every_user_can_read(tmp_path: Path) -> None:
    config, users = tmp_path / "config.toml", tmp_path / "users"
    users.write_text(f"ann:{HASH}\n")
    text = CONFIG.format(folder=tmp_path, allowed="")
    config.write_text(text.replace('"proxy"', f'"proxy"\ncredentials = "{users}"'))
    for mode, warning in (
        (0o640, ""),
        (
            0o644,
            f"vsockproxy: warning: route out: every user of this machine can read the hashes"
            f" in {users}; run chmod o= {users}\n",
        ),
    ):
        users.chmod(mode)
        shown = command("check", config)
        assert (shown.returncode, shown.stderr) == (0, warning)


async def test_clients_reach_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    with ExitStack() as stack:
        names = ("in", "out", "service")
        sockets = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names
        }
        service = sockets.pop("service")
        port = service.getsockname()[1]
        config.write_text(CONFIG.format(folder=tmp_path, allowed=f'"127.0.0.1:{port}"'))
        async with daemon("run", "-c", config, sockets=sockets) as running:
            await running.wait_for("ready")

            # A guest that is born after the daemon is reached; other labels are guests' names too.
            async with mux_server(tmp_path / "new.sock", {80: greets}):
                assert await ask(sockets["in"], host("new.vm")) == b"hello"
            line = await running.wait_for("request_decided", route="in", verdict="allowed")
            assert (line["asked"], line["rule"]) == ("new.vm:80", "to *.vm = sbx-{1}:80")
            line = await running.wait_for("connection_closed", route="in", asked="new.vm:80")
            assert line["upstream_bytes"] == str(len(host("new.vm")))
            for name in ("2.vm", "host.vm"):
                answer = await ask(sockets["in"], host(name))
                assert answer.startswith(b"HTTP/1.1 502 "), "no guest sbx-2 runs, and CID 2 is none"
                await running.wait_for(
                    "request_decided", asked=f"{name}:80", target=target_of(tmp_path, name)
                )
            assert (await ask(sockets["in"], host("vm"))).startswith(b"HTTP/1.1 403 ")

            # The address that a rule names is reached, and no other one of this machine.
            tunnel = await trio.open_tcp_stream("127.0.0.1", sockets["out"].getsockname()[1])
            async with tunnel:
                await tunnel.send_all(connect(f"127.0.0.1:{port}"))
                assert (await tunnel.receive_some()).startswith(b"HTTP/1.1 200 ")
                shown = command("connections", "--socket", tmp_path / "admin.sock")
                assert f"127.0.0.1:{port} -> tcp:127.0.0.1:{port}" in shown.stdout, shown
                shown = command("status", "--socket", tmp_path / "admin.sock")
                assert "by http-host: *.vm = sbx-{1}:80" in shown.stdout, shown
            for other in ("[::1]", "2130706433", "0x7f000001", "127.0.0.2", "[::ffff:127.0.0.2]"):
                answer = await ask(sockets["out"], connect(f"{other}:{port}"))
                assert answer.startswith(b"HTTP/1.1 403 "), other
            await running.wait_for("request_decided", route="out", verdict="denied")

            # A reload changes the rules for the next client.
            config.write_text(CONFIG.format(folder=tmp_path, allowed=""))
            running.send_signal(signal.SIGHUP)
            await running.wait_for("reloaded")
            answer = await ask(sockets["out"], connect(f"127.0.0.1:{port}"))
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert answer.endswith(b"no rule allows 127.0.0.1\n")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
async def test_ten_thousand_names_leave_nothing_in_memory(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(folder=tmp_path, allowed='"*.example.com:443"'))
    with ExitStack() as stack:
        sockets = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=100))
            for name in ("in", "out")
        }
        numbers = count()
        async with daemon("run", "-c", config, sockets=sockets) as running:
            await running.wait_for("ready")

            async def some(of: int) -> None:
                for number in islice(numbers, of):
                    if number % 2:
                        answer = await ask(sockets["in"], host(f"guest-{number}.vm"))
                        assert answer.startswith(b"HTTP/1.1 502 "), answer
                    else:
                        answer = await ask(sockets["out"], connect(f"name-{number}.org:443"))
                        assert answer.startswith(b"HTTP/1.1 403 "), answer

            async def all_of(number: int) -> int:
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(some, number // 20)
                return dirty_kibibytes(running.process.pid)

            before = await all_of(1_000)
            assert await all_of(10_000) - before < 512


def dirty_kibibytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return int(sizes["Private_Dirty"].split()[0])


def target_of(folder: Path, name: str) -> str:
    return f"vsock-mux:{folder}/{name.removesuffix('.vm')}.sock:80"
