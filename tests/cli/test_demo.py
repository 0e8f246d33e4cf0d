"""The embedded guest: Firecracker's side of the handshake, and HTTP behind it."""

import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import h11
import httpx
import pytest
import trio
import trio.testing

from tests.daemon_process import REPOSITORY, command, daemon
from tests.sockets import read_to_end
from vsockproxy.address.endpoint import MuxEndpoint
from vsockproxy.cli import demo
from vsockproxy.config.load import forward_config, load_config
from vsockproxy.dial import mux_line
from vsockproxy.dial.dial import dial
from vsockproxy.errors import ListenError

GET: Final = b"GET /a?b HTTP/1.1\r\nHost: guest\r\n\r\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guest.vsock"


@pytest.fixture
async def guest(path: Path) -> AsyncIterator[Path]:
    async with trio.open_nursery() as nursery:
        await nursery.start(demo.serve_guest, path)
        yield path
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(path: Path, port: int) -> AsyncIterator[trio.SocketStream]:
    sock = await dial(MuxEndpoint(str(path), port), 5)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(sock)) as stream:
        yield stream


async def test_port_80_answers_with_the_request(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        await stream.send_all(GET)
        await stream.send_eof()
        head, _, page = (await read_to_end(stream)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"GET /a?b" in page
    assert b"port 80" in page
    assert b"/metrics" in page
    assert f"Content-Length: {len(page)}".encode() in head


async def test_a_client_that_has_half_closed_gets_its_answer(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        await stream.send_all(GET + GET)
        await stream.send_eof()
        answer = await read_to_end(stream)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_an_open_connection_accepts_another_request(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        for _ in range(2):
            await stream.send_all(GET)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
async def test_every_method_is_answered(guest: Path, method: str) -> None:
    async with connected(guest, 80) as stream:
        client = h11.Connection(h11.CLIENT)
        headers = [("Host", "x"), ("Content-Length", "3" if method != "HEAD" else "0")]
        parts: list[h11.Event] = [h11.Request(method=method, target="/", headers=headers)]
        if method != "HEAD":
            parts.append(h11.Data(data=b"abc"))
        parts.append(h11.EndOfMessage())
        await stream.send_all(b"".join(client.send(part) or b"" for part in parts))
        await stream.send_eof()
        answer = await read_to_end(stream)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n") == (method == "HEAD")


async def test_a_malformed_request_is_answered_with_400(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        await stream.send_all(b"hello\r\n\r\n")
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 400 Bad Request")


async def raw_exchange(path: Path, *pieces: bytes) -> bytes:
    """Return the answer of the guest's socket to these bytes and an EOF."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.001)
        await stream.send_eof()
        return await read_to_end(stream)


async def test_each_ok_has_another_number_from_2_to_the_30_up(guest: Path) -> None:
    first = await raw_exchange(guest, b"CONNECT 80\n")
    second = await raw_exchange(guest, b"CONNECT 80\n")
    assert (mux_line.parse_reply(first), mux_line.parse_reply(second)) == (2**30, 2**30 + 1)


async def test_bytes_after_the_command_reach_the_service(guest: Path) -> None:
    reply = await raw_exchange(guest, b"CONN", b"ECT 80\n" + GET)
    assert reply.startswith(b"OK 1073741824\nHTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "line", [b"CONNECT 81\n", b"CONNECT x\n", b"HELLO\n", b"", b"CONNECT 80", b"A" * 1000]
)
async def test_a_refused_or_malformed_command_is_closed_without_an_answer(
    guest: Path, line: bytes
) -> None:
    try:
        assert await raw_exchange(guest, line) == b""
    except trio.BrokenResourceError:
        assert len(line) == 1000  # closed with bytes unread
    assert (await raw_exchange(guest, b"CONNECT 80\n")).startswith(b"OK ")


async def test_the_socket_is_removed_with_the_guest(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(demo.serve_guest, path)
        assert await trio.Path(path).is_socket()
        nursery.cancel_scope.cancel()
    assert not await trio.Path(path).exists()


async def test_an_existing_file_at_the_path_is_an_error_and_stays(path: Path) -> None:
    await trio.Path(path).write_text("mine")
    with pytest.RaisesGroup(ListenError, flatten_subgroups=True):
        async with demo.embedded_guests(demo.demo_config(str(path), 8080, 9490)):
            pass
    assert await trio.Path(path).read_text() == "mine"


def test_the_file_in_config_is_the_demos_configuration() -> None:
    written = load_config(REPOSITORY / "config" / "demo.toml")
    [route] = written.routes
    assert isinstance(route.target, MuxEndpoint)
    built = demo.demo_config(route.target.path, 8080, 9490)
    assert replace(written, source=built.source, guests=()) == built


@pytest.mark.parametrize(
    ("listen", "line"),
    [
        ("8080", "curl http://127.0.0.1:8080/"),
        ("0.0.0.0:81", "curl http://127.0.0.1:81/"),
        ("[::]:81", "curl http://[::1]:81/"),
        ("[fe80::1]:81", "curl http://[fe80::1]:81/"),
        ("box.lan:81", "curl http://box.lan:81/"),
        ("unix:/run/web", "curl --unix-socket /run/web http://localhost/"),
    ],
)
def test_the_greeting_has_a_command_for_each_listener(listen: str, line: str) -> None:
    config = forward_config(
        [(listen, "vsock-mux:/guest:80")], {"metrics": {"listen": "127.0.0.1:9490"}}
    )
    assert f"    {line}\n" in demo.greeting(config, {})
    assert "    curl http://127.0.0.1:9490/metrics\n" in demo.greeting(config, {})


def test_the_greeting_asks_for_the_first_guest_by_each_name_of_a_route() -> None:
    text = demo.greeting(load_config(REPOSITORY / "config" / "demo-by-name.toml"), {})
    assert "    curl -k https://0.vm.localhost:8443/\n" in text
    assert "    curl http://0.vm.localhost:8080/\n" in text


# --- the command --------------------------------------------------------------------------


async def test_the_demo_answers_counts_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    """The listeners are Unix sockets, which need no free port."""
    web, metrics, guest = (tmp_path / name for name in ("web", "metrics", "guest"))
    file = tmp_path / "demo.toml"
    file.write_text(
        f'[forward]\n"unix:{web}" = "vsock-mux:{guest}:80"\n'
        f'[defaults]\nhalf_close = "forward"\n[metrics]\nlisten = "unix:{metrics}"\n'
    )
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/nonexistent"}
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Press Ctrl-C to end.")
        assert f"    {sys.executable} -m vsockproxy status\n" in running.output
        status = await trio.to_thread.run_sync(partial(command, "status", environ=runtime))
        assert f"unix:{web}" in status.stdout
        page = await get(web, "/")
        await running.wait_for("connection_closed", reason="finished")
        text = await get(metrics, "/metrics")
        running.send_signal(signal.SIGINT)
        assert await running.wait() == 0
    assert "port 80" in page
    counted = f'vsockproxy_bytes_total{{direction="downstream",route="unix:{web}"}} '
    assert float(text.split(counted)[1].split()[0]) > len(page)
    assert f"curl --unix-socket {web} http://localhost/" in running.output
    left = sorted(path.name for path in await trio.Path(tmp_path).iterdir())
    assert left == ["demo.toml", "vsockproxy"]
    assert list(await trio.Path(tmp_path, "vsockproxy").iterdir()) == []


async def test_doctor_reports_a_stopped_guest_until_it_starts_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(f'forward."unix:{tmp_path}/web" = "vsock-mux:{tmp_path}/guest:80"')
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path), "VSOCKPROXY_CONFIG": str(file)}
    doctor = partial(command, "doctor", environ=runtime)
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Press Ctrl-C to end.")
        assert f"kill -USR1 {running.process.pid}\n" in running.output
        well = await trio.to_thread.run_sync(doctor)
        running.send_signal(signal.SIGUSR1)
        await running.wait_for("guest_stopped")
        broken = await trio.to_thread.run_sync(doctor)
        running.send_signal(signal.SIGUSR1)
        await running.wait_for("guest_started")
        mended = await trio.to_thread.run_sync(doctor)
        assert await running.stop() == 0
    assert (well.returncode, broken.returncode, mended.returncode) == (0, 1, 0), mended.stdout
    assert "no problems" in mended.stdout
    output = " ".join(broken.stdout.split())
    assert "the VMM's socket does not exist -> start the VM, or correct the path" in output
    assert "1 problem" in output


async def test_a_reload_of_the_demo_adds_a_route_of_its_file_to_the_same_guest(
    tmp_path: Path,
) -> None:
    file = tmp_path / "demo.toml"
    route = f'"unix:{tmp_path}/%s" = "vsock-mux:{tmp_path}/guest:80"\n'
    file.write_text("[forward]\n" + route % "web")
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Press Ctrl-C to end.")
        file.write_text("[forward]\n" + route % "web" + route % "other")
        reloaded = await trio.to_thread.run_sync(partial(command, "reload", environ=runtime))
        assert "port 80" in await get(tmp_path / "other", "/")
        running.send_signal(signal.SIGHUP)
        await running.wait_for("reloaded")
        assert await running.stop() == 0
    assert (reloaded.returncode, reloaded.stdout.count("\n")) == (0, 2)
    assert f"added: unix:{tmp_path}/other" in reloaded.stdout


def sockets_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("vm-*.vsock"))


async def test_a_guest_restarted_at_another_path_is_reached_without_a_reload(
    tmp_path: Path,
) -> None:
    file = tmp_path / "demo.toml"
    text = (REPOSITORY / "config" / "demo-restart.toml").read_text()
    text = text.replace("/tmp/vsockproxy-demo", f"{tmp_path}/vm")
    file.write_text(text.replace("8080 =", f'"unix:{tmp_path}/web" ='))
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Press Ctrl-C to end.")
        assert "port 80" in await get(tmp_path / "web", "/")
        first = sockets_in(tmp_path)
        for event in ("guest_stopped", "guest_started"):
            running.send_signal(signal.SIGUSR1)
            await running.wait_for(event)
        assert "port 80" in await get(tmp_path / "web", "/")
        second = sockets_in(tmp_path)
        assert (len(first), len(second)) == (1, 1)
        assert first != second
        assert await running.stop() == 0


async def get_by_tls(path: Path, name: str) -> str:
    """Return the page of a guest that is known by its server name; require its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is self-signed
    plain = await trio.open_unix_socket(path)
    async with trio.SSLStream(plain, context, server_hostname=name, https_compatible=True) as tls:
        await tls.send_all(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        return (await read_to_end(tls)).decode()


async def test_a_guest_that_is_born_after_the_daemon_is_reached_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    text = (REPOSITORY / "config" / "demo-by-name.toml").read_text()
    text = text.replace("/tmp/vsockproxy-demo", f"{tmp_path}/vm")
    text = text.replace("listen = 8443", f'listen = "unix:{tmp_path}/in-tls"')
    text = text.replace("listen = 8080", f'listen = "unix:{tmp_path}/in"')
    text = text.replace("listen = 1080", f'listen = "unix:{tmp_path}/out"')
    file.write_text(text.partition("[metrics]")[0])
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Press Ctrl-C to end.")
        assert "port 80" in await get(tmp_path / "in", "/", "0.vm.localhost")
        assert "it is not up" in await get(tmp_path / "in", "/", "1.vm.localhost")
        for event in ("guest_stopped", "guest_started"):
            running.send_signal(signal.SIGUSR1)
            await running.wait_for(event)
        assert "port 80" in await get(tmp_path / "in", "/", "1.vm.localhost")
        assert "port 443" in await get_by_tls(tmp_path / "in-tls", "1.vm.localhost")
        async with await trio.open_unix_socket(f"{tmp_path}/out") as client:
            await client.send_all(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n")
            denied = await read_to_end(client)
        assert b"example.com:80 is denied: target_allow has no rule" in denied
        assert await running.stop() == 0


async def test_a_client_is_held_until_a_delayed_guest_starts(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(
        f'forward."unix:{tmp_path}/web" = "vsock-mux:{tmp_path}/guest:80"\n'
        'defaults.half_close = "forward"\ndefaults.wait_for_guest = "10s"'
    )
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    arguments = ("demo", "--boot-delay", "700ms", "--config", file)
    async with daemon(*arguments, environ=runtime) as running:
        await running.wait_for_output("Press Ctrl-C to end.")
        assert "The guest starts in 0.7s; " in running.output
        assert "port 80" in await get(tmp_path / "web", "/")
        await running.wait_for("target_down", reason="not_found")
        await running.wait_for("guest_started")
        await running.wait_for("target_up", was="down")
        line = await running.wait_for("connection_closed", reason="finished")
        assert 0 < float(line["held_seconds"]) < 5
        assert await running.stop() == 0


def test_the_demo_sets_wait_for_guest() -> None:
    [route] = demo.demo_config("/guest", 8080, 9490, 35.0).routes
    assert route.policy.wait_for_guest == 35.0


def test_a_boot_delay_that_is_not_a_duration_is_an_error() -> None:
    done = command("demo", "--boot-delay", "soon")
    assert done.returncode == 2
    assert "--boot-delay: 'soon' is " in done.stderr


async def get(path: Path, target: str, host: str = "localhost") -> str:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.get(f"http://{host}{target}")).text


async def test_a_second_demo_has_another_control_socket_and_prints_its_path(tmp_path: Path) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    for name in ("first", "other"):
        route = f'forward."unix:{tmp_path}/{name}" = "vsock-mux:{tmp_path}/{name}-guest:80"'
        (tmp_path / f"{name}.toml").write_text(route)
    async with daemon("demo", "--config", tmp_path / "first.toml", environ=runtime) as first:
        await first.wait_for_output("Press Ctrl-C to end.")
        async with daemon("demo", "--config", tmp_path / "other.toml", environ=runtime) as other:
            await other.wait_for_output("Press Ctrl-C to end.")
            [place] = re.findall(r"vsockproxy status --socket (\S+)\n", other.output)
            asked = partial(command, "status", "--socket", place)
            status = await trio.to_thread.run_sync(asked)
            assert f"unix:{tmp_path}/other" in status.stdout
            await other.stop()
        await first.stop()


def test_the_error_of_a_port_in_use_names_the_options_for_other_ports(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("demo", "--port", str(port), environ={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert f"route {port}: cannot listen" in done.stderr
    assert "vsockproxy demo --port N --metrics-port M" in done.stderr
    assert done.stdout == ""
