"""The embedded guest: Firecracker's side of the handshake, and HTTP behind it."""

import re
import signal
import socket
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
from vsockproxy.address.endpoint import MuxEndpoint
from vsockproxy.cli import demo
from vsockproxy.config.load import forward_config, load_config
from vsockproxy.dial import mux
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


async def everything(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_port_80_answers_a_request_with_what_was_asked(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        await stream.send_all(GET)
        await stream.send_eof()
        head, _, page = (await everything(stream)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"GET /a?b" in page
    assert b"port 80" in page
    assert b"/metrics" in page
    assert f"Content-Length: {len(page)}".encode() in head


async def test_a_client_that_has_half_closed_still_gets_its_answer(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        await stream.send_all(GET + GET)
        await stream.send_eof()
        answer = await everything(stream)
    assert answer.count(b"HTTP/1.1 200 OK") == 2


async def test_an_open_connection_takes_another_request(guest: Path) -> None:
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
        answer = await everything(stream)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n") == (method == "HEAD")


async def test_nonsense_is_answered_with_400(guest: Path) -> None:
    async with connected(guest, 80) as stream:
        await stream.send_all(b"hello\r\n\r\n")
        assert (await everything(stream)).startswith(b"HTTP/1.1 400 Bad Request")


async def raw_exchange(path: Path, *pieces: bytes) -> bytes:
    """What the guest's socket says to these bytes, and then to an end."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        for piece in pieces:
            await stream.send_all(piece)
            await trio.testing.wait_all_tasks_blocked(0.001)
        await stream.send_eof()
        return await everything(stream)


async def test_ok_has_a_number_from_2_to_the_30_up_and_each_its_own(guest: Path) -> None:
    first = await raw_exchange(guest, b"CONNECT 80\n")
    second = await raw_exchange(guest, b"CONNECT 80\n")
    assert (mux.parse_reply(first), mux.parse_reply(second)) == (2**30, 2**30 + 1)


async def test_what_follows_the_command_belongs_to_the_service(guest: Path) -> None:
    reply = await raw_exchange(guest, b"CONN", b"ECT 80\n" + GET)
    assert reply.startswith(b"OK 1073741824\nHTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "line", [b"CONNECT 81\n", b"CONNECT x\n", b"HELLO\n", b"", b"CONNECT 80", b"A" * 1000]
)
async def test_whatever_is_refused_is_closed_without_a_word(guest: Path, line: bytes) -> None:
    try:
        assert await raw_exchange(guest, line) == b""
    except trio.BrokenResourceError:
        assert len(line) == 1000  # closed with bytes unread
    assert (await raw_exchange(guest, b"CONNECT 80\n")).startswith(b"OK ")


async def test_the_sockets_file_goes_with_the_guest(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(demo.serve_guest, path)
        assert await trio.Path(path).is_socket()
        nursery.cancel_scope.cancel()
    assert not await trio.Path(path).exists()


async def test_a_file_that_is_in_the_way_stays_and_is_an_error(path: Path) -> None:
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
def test_the_greeting_says_what_to_type(listen: str, line: str) -> None:
    config = forward_config(
        [(listen, "vsock-mux:/guest:80")], {"metrics": {"listen": "127.0.0.1:9490"}}
    )
    assert f"    {line}\n" in demo.greeting(config, {})
    assert "    curl http://127.0.0.1:9490/metrics\n" in demo.greeting(config, {})


# --- the command --------------------------------------------------------------------------


async def test_the_demo_answers_counts_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    """On Unix sockets, so that it needs no free port."""
    web, metrics, guest = (tmp_path / name for name in ("web", "metrics", "guest"))
    file = tmp_path / "demo.toml"
    file.write_text(
        f'[forward]\n"unix:{web}" = "vsock-mux:{guest}:80"\n'
        f'[defaults]\nhalf_close = "forward"\n[metrics]\nlisten = "unix:{metrics}"\n'
    )
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Ctrl-C ends it.")
        assert "    vsockproxy status\n" in running.output
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


async def test_a_guest_that_is_broken_is_what_doctor_tells_until_it_is_mended(
    tmp_path: Path,
) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(f'forward."unix:{tmp_path}/web" = "vsock-mux:{tmp_path}/guest:80"')
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path), "VSOCKPROXY_CONFIG": str(file)}
    doctor = partial(command, "doctor", environ=runtime)
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Ctrl-C ends it.")
        assert f"kill -USR1 {running.process.pid}\n" in running.output
        well = await trio.to_thread.run_sync(doctor)
        running.send_signal(signal.SIGUSR1)
        await running.wait_for("guest_stopped")
        broken = await trio.to_thread.run_sync(doctor)
        running.send_signal(signal.SIGUSR1)
        await running.wait_for("guest_started")
        mended = await trio.to_thread.run_sync(doctor)
        assert await running.stop() == 0
    assert (well.returncode, broken.returncode, mended.returncode) == (0, 1, 0)
    assert "nothing is wrong" in mended.stdout
    told = " ".join(broken.stdout.split())
    assert "the VMM's socket does not exist -> start the VM, or correct the path" in told
    assert "1 problem" in told


def sockets_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("vm-*.vsock"))


async def test_a_guest_that_starts_again_elsewhere_is_reached_without_a_reload(
    tmp_path: Path,
) -> None:
    file = tmp_path / "demo.toml"
    text = (REPOSITORY / "config" / "demo-restart.toml").read_text()
    text = text.replace("/tmp/vsockproxy-demo", f"{tmp_path}/vm")
    file.write_text(text.replace("8080 =", f'"unix:{tmp_path}/web" ='))
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    async with daemon("demo", "--config", file, environ=runtime) as running:
        await running.wait_for_output("Ctrl-C ends it.")
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


async def test_a_request_waits_for_a_guest_that_boots_late(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(
        f'forward."unix:{tmp_path}/web" = "vsock-mux:{tmp_path}/guest:80"\n'
        'defaults.half_close = "forward"\ndefaults.wait_for_guest = "10s"'
    )
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    arguments = ("demo", "--boot-delay", "700ms", "--config", file)
    async with daemon(*arguments, environ=runtime) as running:
        await running.wait_for_output("Ctrl-C ends it.")
        assert "The guest boots for 0.7 s" in running.output
        assert "port 80" in await get(tmp_path / "web", "/")
        await running.wait_for("target_down", reason="not_found")
        await running.wait_for("guest_started")
        await running.wait_for("target_up", was="down")
        line = await running.wait_for("connection_closed", reason="finished")
        assert 0 < float(line["held_seconds"]) < 5
        assert await running.stop() == 0


def test_a_late_guests_demo_has_clients_wait_longer_than_it_boots() -> None:
    [route] = demo.demo_config("/guest", 8080, 9490, 35.0).routes
    assert route.policy.wait_for_guest == 35.0


def test_a_delay_that_is_none_is_said() -> None:
    done = command("demo", "--boot-delay", "soon")
    assert done.returncode == 2
    assert "'soon' is not a duration" in done.stderr


async def get(path: Path, target: str) -> str:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.get(f"http://localhost{target}")).text


async def test_a_second_demo_has_its_socket_elsewhere_and_says_where(tmp_path: Path) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    for name in ("first", "other"):
        route = f'forward."unix:{tmp_path}/{name}" = "vsock-mux:{tmp_path}/{name}-guest:80"'
        (tmp_path / f"{name}.toml").write_text(route)
    async with daemon("demo", "--config", tmp_path / "first.toml", environ=runtime) as first:
        await first.wait_for_output("Ctrl-C ends it.")
        async with daemon("demo", "--config", tmp_path / "other.toml", environ=runtime) as other:
            await other.wait_for_output("Ctrl-C ends it.")
            [place] = re.findall(r"vsockproxy status --socket (\S+)\n", other.output)
            asked = partial(command, "status", "--socket", place)
            status = await trio.to_thread.run_sync(asked)
            assert f"unix:{tmp_path}/other" in status.stdout
            await other.stop()
        await first.stop()


def test_a_port_that_is_taken_is_said_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("demo", "--port", str(port), environ={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert f"route {port}: cannot listen" in done.stderr
    assert "vsockproxy demo --port N --metrics-port M" in done.stderr
    assert done.stdout == ""
