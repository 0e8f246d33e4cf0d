"""Readiness: the answers of the daemon, and `vsockproxy health`, which requests them."""

import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio
from prometheus_client import CollectorRegistry

from tests.admin.conftest import url
from tests.admin.fake_daemon import FakeDaemon, no_page
from tests.daemon_process import command, daemon, environment
from tests.fake_services import dead_unix_socket, says, unix_listener, unused_tcp_port
from vsockproxy.admin.client import DaemonUnreachableError, find_socket
from vsockproxy.admin.health_client import UnhealthyError, ask, ask_url, find_address
from vsockproxy.admin.probes import metrics_server
from vsockproxy.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_other_daemon")

SOON: Final = 5.0
"""Time limit in seconds; only a failing test reaches it."""


@asynccontextmanager
async def serving(sock: socket.socket, not_ready: list[str] | None = None) -> AsyncIterator[None]:
    """Serve the metrics listener of a fake daemon with these reasons not to be ready."""
    server = metrics_server(CollectorRegistry(), FakeDaemon(not_ready=not_ready or []), no_page)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, [sock])
        yield
        nursery.cancel_scope.cancel()


def listen_text(sock: socket.socket) -> str:
    return f"127.0.0.1:{sock.getsockname()[1]}"


async def asked(asking: Callable[[], str]) -> str:
    """Return the result of a blocking call, made in a thread beside the server."""
    return await trio.to_thread.run_sync(asking)


# --- the answers --------------------------------------------------------------------------


async def test_ready_is_200_and_unready_503_with_every_reason(tcp: socket.socket) -> None:
    not_ready: list[str] = []
    async with serving(tcp, not_ready), httpx.AsyncClient() as client:
        ready = await client.get(url(tcp, "/readyz"))
    not_ready += ["draining", "route web: does not listen"]
    async with serving(tcp, not_ready), httpx.AsyncClient() as client:
        unready = await client.get(url(tcp, "/readyz"))
        healthy = await client.get(url(tcp, "/healthz"))
    assert (ready.status_code, ready.text) == (200, "ready\n")
    assert (unready.status_code, unready.text) == (503, "draining\nroute web: does not listen\n")
    assert (healthy.status_code, healthy.text) == (200, "ok\n")


async def test_a_server_without_problems_is_ready(tcp: socket.socket) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(metrics_server(CollectorRegistry(), FakeDaemon(), no_page).serve, [tcp])
        assert await asked(lambda: ask_url(url(tcp), SOON)) == "ready"
        nursery.cancel_scope.cancel()


async def test_the_index_lists_healthz_and_readyz(tcp: socket.socket) -> None:
    async with serving(tcp), httpx.AsyncClient() as client:
        index = await client.get(url(tcp, "/"))
    assert "/healthz" in index.text
    assert "/readyz" in index.text


# --- the request --------------------------------------------------------------------------


async def test_a_daemon_is_asked_over_tcp_by_address_or_url(tcp: socket.socket) -> None:
    async with serving(tcp):
        assert await asked(lambda: ask(listen_text(tcp), SOON)) == "ready"
        assert await asked(lambda: ask_url(url(tcp), SOON)) == "ready"
        assert await asked(lambda: ask_url(url(tcp, "/healthz"), SOON)) == "ok"


@pytest.mark.parametrize("host", ["", "0.0.0.0:", "tcp:"])
async def test_a_listener_on_every_address_is_asked_on_the_loopback(
    tcp: socket.socket, host: str
) -> None:
    async with serving(tcp):
        assert await asked(lambda: ask(f"{host}{tcp.getsockname()[1]}", SOON)) == "ready"


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_daemon_is_asked_over_a_unix_socket(tmp_path: Path, abstract: bool) -> None:
    path = f"@{tmp_path}/m" if abstract else f"{tmp_path}/m"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path.replace("@", "\0"))
        sock.listen()
        sock.setblocking(False)
        async with serving(sock):
            assert await asked(lambda: ask(f"unix:{path}", SOON)) == "ready"


async def test_all_reasons_of_an_unready_daemon_are_in_one_line(tcp: socket.socket) -> None:
    async with serving(tcp, ["draining", "route web: does not listen"]):
        with pytest.raises(UnhealthyError, match=r"^draining; route web: does not listen$"):
            await asked(lambda: ask(listen_text(tcp), SOON))


async def test_a_missing_page_is_unhealthy(tcp: socket.socket) -> None:
    async with serving(tcp):
        with pytest.raises(UnhealthyError, match="not found: /frobnicate"):
            await asked(lambda: ask_url(url(tcp, "/frobnicate"), SOON))


def test_without_a_listener_the_error_names_the_address(tmp_path: Path) -> None:
    port = unused_tcp_port()
    with pytest.raises(
        UnhealthyError, match=f"cannot ask the daemon at 127.0.0.1:{port}: Connection"
    ):
        ask(f"127.0.0.1:{port}", SOON)
    dead_unix_socket(tmp_path / "dead")
    for name in ("dead", "absent"):
        with pytest.raises(
            UnhealthyError, match=f"cannot ask the daemon at unix:{tmp_path}/{name}: "
        ):
            ask(f"unix:{tmp_path}/{name}", SOON)


def test_a_daemon_that_hangs_is_unhealthy_after_the_timeout(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "m"), pytest.raises(UnhealthyError, match="the daemon hangs"):
        ask(f"unix:{tmp_path}/m", 0.05)


async def test_an_answer_that_is_not_http_is_unhealthy(tcp: socket.socket) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await says(b"SSH-2.0-OpenSSH_9.6\r\n")(stream)
            await stream.receive_some()  # a close over an unread request would be a reset

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(tcp.dup()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        with pytest.raises(UnhealthyError, match="is not HTTP"):
            await asked(lambda: ask(listen_text(tcp), SOON))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("text", ["https://x/", "x:80", "http://", "http://x:port/", "unix:/a"])
def test_a_text_that_is_not_an_http_url_is_an_error(text: str) -> None:
    with pytest.raises(UnhealthyError, match=r"is not (a|an HTTP) URL"):
        ask_url(text, SOON)


@pytest.mark.parametrize("text", ["fd:metrics", "vsock::9490", "vsock-mux:/v:1"])
def test_a_listener_without_an_address_cannot_be_asked(text: str) -> None:
    with pytest.raises(
        UnhealthyError, match=r"cannot ask the daemon: .* is not a TCP or Unix address; use --url"
    ):
        ask(text, SOON)


# --- the address --------------------------------------------------------------------------


def test_the_listener_is_read_from_the_file_or_the_environment(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "c.toml", tmp_path / "c.yaml"
    toml.write_text("metrics.listen = 9490")
    yaml.write_text("metrics: {listen: ['fd:metrics', 'unix:/m', '[::]:9490']}")
    environ = {"VSOCKPROXY_METRICS_LISTEN": " 9491 "}
    assert find_address(toml, {}) == "9490"
    assert find_address(yaml, {}) == "unix:/m"
    assert find_address(None, {}, [tmp_path / "missing.toml", yaml, toml]) == "unix:/m"
    assert find_address(None, environ, []) == "9491"
    several = {"VSOCKPROXY_METRICS_LISTEN": "fd:metrics, [::]:9492"}
    assert find_address(None, several, []) == "[::]:9492"
    assert find_address(None, {"VSOCKPROXY_METRICS_LISTEN": "fd:metrics"}, []) == "fd:metrics"
    for named, places in ((toml, []), (None, [toml])):
        with pytest.raises(ConfigError, match="settings too"):
            find_address(named, environ, places)


@pytest.mark.parametrize("text", ['forward.80 = "3:80"', "[metrics]", 'metrics = "x"'])
def test_a_configuration_without_metrics_is_an_error_with_a_remedy(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    no_daemon = {"XDG_RUNTIME_DIR": str(tmp_path)}
    for named in (file, None):
        with pytest.raises(UnhealthyError, match=r"set \[metrics\] listen"):
            find_address(named, no_daemon, [])


# --- the command --------------------------------------------------------------------------


async def test_the_command_asks_the_daemon_that_the_environment_describes(tmp_path: Path) -> None:
    environ = {
        "VSOCKPROXY_FORWARD": f"unix:{tmp_path}/front=unix:{tmp_path}/back",
        "VSOCKPROXY_METRICS_LISTEN": f"unix:{tmp_path}/metrics",
    }
    async with daemon("run", environ=environ) as running:
        await running.wait_for("ready")
        done = await trio.to_thread.run_sync(partial(command, "health", environ=environ))
        assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")
        assert await running.stop() == 0
    done = command("health", environ=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"vsockproxy: cannot ask the daemon at unix:{tmp_path}/metrics: ")


async def test_the_command_takes_an_address_or_a_url(tcp: socket.socket) -> None:
    async with serving(tcp):
        for option, value in (("--metrics", listen_text(tcp)), ("--url", url(tcp))):
            done = await trio.to_thread.run_sync(partial(command, "health", option, value))
            assert (done.returncode, done.stdout) == (0, "ready\n")


def test_every_failure_is_status_1_and_one_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("metrics = ")
    for arguments in (
        (),
        ("--metrics", "x"),
        ("--url", "x"),
        ("-c", wrong),
        ("-c", tmp_path / "absent.toml"),
    ):
        done = command("health", *arguments)
        assert done.returncode == 1, done
        assert done.stderr.startswith("vsockproxy: ")
        assert len(done.stderr.splitlines()) == 1


HEAVY: Final = {"trio", "pydantic", "structlog", "prometheus_client", "h11", "ruamel"}


def test_the_health_module_imports_no_heavy_library() -> None:
    code = "import sys, vsockproxy.admin.health_client; print(*sys.modules)"
    done = subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True)
    assert "http.client" in done.split()
    assert not HEAVY & set(done.split())


def test_the_health_command_imports_no_heavy_library() -> None:
    done = command("health", "--metrics", "1", environ={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "http.client" in imported
    assert not imported & HEAVY


def test_the_health_command_without_options_imports_no_command_line() -> None:
    done = command("health", environ={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "http.client" in imported
    assert not imported & (HEAVY | {"click", "vsockproxy.cli", "vsockproxy.config.process"})
    assert "vsockproxy: cannot ask the daemon" in done.stderr


def test_the_control_socket_is_asked_if_the_metrics_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    admin = '[admin]\nsocket = "/run/admin.sock"\n'
    tls = '[metrics]\nlisten = "9490"\ncertificate = "/x.pem"\n'
    for text in (admin, tls + admin):
        file.write_text(text)
        assert find_address(file, {}) == "unix:/run/admin.sock"
    assert find_address(None, {"VSOCKPROXY_ADMIN_SOCKET": "/run/a"}, []) == "unix:/run/a"
    file.write_text(tls)
    with pytest.raises(UnhealthyError, match=r"over TLS; set \[admin\] socket"):
        find_address(file, {"XDG_RUNTIME_DIR": str(tmp_path)})


PLAIN: Final = 'forward.80 = "3:80"\n'


@pytest.mark.parametrize("text", ["", PLAIN, f'{PLAIN}admin.socket = "off"'])
def test_without_metrics_the_daemon_that_status_finds_is_asked(tmp_path: Path, text: str) -> None:
    folder, file = tmp_path / "vsockproxy", tmp_path / "config.toml"
    folder.mkdir(mode=0o700)
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    places = [file] if text else []
    file.write_text(text)
    with unix_listener(folder / "admin.sock"):
        assert find_address(None, environ, places) == f"unix:{folder}/admin.sock"
        assert find_socket(None, None, environ, places) == folder / "admin.sock"


def test_the_variable_for_the_control_socket_precedes_the_metrics(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("metrics.listen = 9490")
    assert find_address(file, {"VSOCKPROXY_ADMIN": "/run/b"}) == "unix:/run/b"


def test_several_daemons_are_an_error_that_names_them(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path), "RUNTIME_DIRECTORY": f"{tmp_path}/service"}
    sockets = [tmp_path / name / "admin.sock" for name in ("vsockproxy", "service")]
    for path in sockets:
        path.parent.mkdir(mode=0o700)
    with unix_listener(sockets[0]), unix_listener(sockets[1]):
        for find in (find_address, partial(find_socket, None)):
            with pytest.raises(DaemonUnreachableError) as caught:
                find(None, environ, [])
            names = ", ".join(map(str, sockets))
            remedy = "choose one with --socket or $VSOCKPROXY_ADMIN"
            assert str(caught.value) == f"several daemons run: {names}; {remedy}"
