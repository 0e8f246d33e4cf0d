"""Programs that users have, as clients that name their target.

Of C (curl, git, redis-cli, nc, openssl), C++ (apt), Go (promtool) and Python (pip).
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zipfile import ZipFile

import pytest
import trio
import trustme

from tests.fake_services import Service, says
from tests.kernel.boot import require
from tests.listen.running_route import Served, serving, unix_at
from tests.relay.naming import POLICY, naming
from tests.sockets import read_to_end
from vsockproxy.address.endpoint import CID_LOCAL, Dialable, TcpEndpoint, VsockEndpoint
from vsockproxy.config.request import By

APT_HELPER = "/usr/lib/apt/apt-helper"
PATIENCE = 60.0
"""Time limit of a program, in seconds: pip starts slowly in an emulated kernel."""


def answers(body: str, tls: ssl.SSLContext | None = None) -> Service:
    """Return a web server's service, whose only page is ``body``."""

    async def service(sock: trio.SocketStream) -> None:
        stream: trio.abc.Stream = sock
        if tls is not None:
            stream = trio.SSLStream(sock, tls, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = await stream.receive_some()
                if not piece:
                    return
                head += piece
            [host] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"host:")]
            assert not head.lower().count(b"proxy-"), head
            text = f"{body} {host.decode()}\n"
            response = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}"
            await stream.send_all(response.encode())

    return service


@asynccontextmanager
async def servers(
    authority: trustme.CA | None = None, *names: str
) -> AsyncIterator[Mapping[str, Dialable]]:
    """Run a web server for each name, with a certificate of ``authority`` if there is one."""
    targets: dict[str, Dialable] = {}
    async with trio.open_nursery() as nursery:
        for name in names:
            tls = None
            if authority is not None:
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                authority.issue_cert(name).configure_cert(tls)
            serve = partial(trio.serve_tcp, answers(name, tls), 0, host="127.0.0.1")
            [listener] = await nursery.start(serve)
            targets[name] = TcpEndpoint("127.0.0.1", listener.socket.getsockname()[1])
        yield targets
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


class Quiet(SimpleHTTPRequestHandler):
    """Serves the files of a folder and writes no log."""

    def log_message(self, *_: object) -> None: ...


@contextmanager
def web_server(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[Dialable]:
    """Serve a folder's files from a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield TcpEndpoint("127.0.0.1", server.server_port)
        finally:
            server.shutdown()
            thread.join()


EACH_WAY = pytest.mark.parametrize("way", ["tcp", pytest.param("vsock", marks=pytest.mark.vsock)])


@asynccontextmanager
async def proxy_for(way: str, targets: Mapping[str, Dialable]) -> AsyncIterator[tuple[Served, int]]:
    """Run a proxy; yield its route and the TCP port of its clients.

    With ``vsock`` it listens on AF_VSOCK, and the port is that of a guest's ``forward``.
    """
    if way == "tcp":
        async with naming("proxy", targets) as route:
            yield route, port_of(route)
        return
    behind = VsockEndpoint(CID_LOCAL, 1080)
    async with (
        naming("proxy", targets, listen_at=behind) as route,
        serving(POLICY, dial_to=behind) as guest,
    ):
        yield route, port_of(guest)


def port_of(route: Served) -> int:
    endpoint = route.listener.sockets[0].endpoint
    assert isinstance(endpoint, TcpEndpoint)
    return endpoint.port


async def run(
    *line: str | Path, data: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, without the proxies of this user's environment."""
    with trio.fail_after(PATIENCE):
        return await trio.run_process(
            [str(word) for word in line],
            stdin=data,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", **variables},
        )


async def curl(*options: str | Path) -> subprocess.CompletedProcess[bytes]:
    require(curl="curl")
    return await run("curl", "-sS", "--max-time", f"{PATIENCE:g}", *options)


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
async def test_curl_reaches_https_by_name_through_a_proxy(
    scheme: str, authority: trustme.CA, bundle: Path
) -> None:
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(authority, "web.vm"))
        route = await stack.enter_async_context(naming("proxy", targets))
        proxy = f"{scheme}://127.0.0.1:{port_of(route)}"
        done = await curl("--proxy", proxy, "--cacert", bundle, "https://web.vm/")
        assert done.stdout == b"web.vm Host: web.vm\n", done
        [line] = route.events("request_decided")
        assert (line["asked"], line["verdict"]) == ("web.vm:443", "allowed")


async def test_curl_makes_two_plain_requests_on_two_connections() -> None:
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(None, "web.vm", "db.vm"))
        route = await stack.enter_async_context(naming("http-connect", targets))
        proxy = f"http://127.0.0.1:{port_of(route)}"
        done = await curl("--proxy", proxy, "http://web.vm/", "http://db.vm:8080/a?b")
        assert done.stdout == b"web.vm Host: web.vm\ndb.vm Host: db.vm:8080\n", done
        assert len(route.events("request_decided")) == 2


@pytest.mark.parametrize(("scheme", "said"), [("socks5h", b"(2)"), ("http", b"403")])
async def test_curl_says_that_a_name_is_denied(scheme: str, said: bytes) -> None:
    async with naming("proxy") as route:
        proxy = f"{scheme}://127.0.0.1:{port_of(route)}"
        done = await curl("--proxy", proxy, "https://evil.example.com/")
        assert done.returncode != 0
        assert said in done.stderr, done


async def test_curl_prints_the_reason_of_a_denial() -> None:
    async with naming("proxy") as route:
        proxy = f"http://127.0.0.1:{port_of(route)}"
        done = await curl("--proxy", proxy, "http://evil.example.com/")
        assert b"evil.example.com:80 is denied: no rule allows evil.example.com" in done.stdout


async def test_curl_reaches_two_servers_by_their_tls_names_on_one_port(
    authority: trustme.CA, bundle: Path
) -> None:
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(authority, "web.vm", "db.vm"))
        route = await stack.enter_async_context(naming("sni", targets))
        for name in targets:
            there = f"{name}:443:127.0.0.1:{port_of(route)}"
            done = await curl("--cacert", bundle, "--connect-to", there, f"https://{name}/")
            assert done.stdout == f"{name} Host: {name}\n".encode(), done


@pytest.mark.parametrize(
    ("name", "said"), [("evil.vm", b"unrecognized name"), ("127.0.0.1", b"alert")]
)
async def test_curl_prints_the_alert_of_a_refused_server_name(name: str, said: bytes) -> None:
    async with naming("sni") as route:
        there = f"::127.0.0.1:{port_of(route)}"
        done = await curl("--insecure", "--connect-to", there, f"https://{name}/")
        assert done.returncode != 0
        assert said in done.stderr, done


async def test_curl_reaches_two_servers_by_host_on_one_port() -> None:
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(None, "web.vm", "db.vm"))
        route = await stack.enter_async_context(naming("http-host", targets))
        for name in targets:
            there = f"{name}:80:127.0.0.1:{port_of(route)}"
            done = await curl("--connect-to", there, f"http://{name}/")
            assert done.stdout == f"{name} Host: {name}\n".encode(), done


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_openssl_reaches_a_server_by_its_name(
    version: str, authority: trustme.CA, bundle: Path
) -> None:
    require(openssl="openssl")
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(authority, "web.vm"))
        route = await stack.enter_async_context(naming("sni", targets))
        done = await run(
            *("openssl", "s_client", "-quiet", "-verify_return_error", version),
            *("-CAfile", bundle, "-servername", "web.vm", "-verify_hostname", "web.vm"),
            *("-connect", f"127.0.0.1:{port_of(route)}"),
            data=b"GET / HTTP/1.1\r\nHost: web.vm\r\n\r\n",
        )
        assert b"web.vm Host: web.vm" in done.stdout, done


@EACH_WAY
async def test_apt_downloads_two_files_through_the_proxy(way: str, tmp_path: Path) -> None:
    require(**{APT_HELPER: "apt"})
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(None, "deb.vm"))
        _, port = await stack.enter_async_context(proxy_for(way, targets))
        for scheme in ("http", "socks5h"):
            file = tmp_path / scheme
            done = await run(
                *(APT_HELPER, "-o", f"Acquire::http::Proxy={scheme}://127.0.0.1:{port}"),
                *("-o", "APT::Sandbox::User=root", "download-file", "http://deb.vm/a", file),
            )
            assert file.read_text() == "deb.vm Host: deb.vm\n", done


@pytest.mark.parametrize(
    ("scheme", "way"),
    [
        ("socks5h", "tcp"),
        ("http", "tcp"),
        pytest.param("socks5h", "vsock", marks=pytest.mark.vsock),
    ],
)
async def test_git_clones_over_https_through_the_proxy(
    scheme: str, way: str, authority: trustme.CA, bundle: Path, tmp_path: Path
) -> None:
    require(git="git")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "page").write_text("a page\n")
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (
        ("init", "-q"),
        ("add", "page"),
        (*author, "commit", "-q", "-m", "a page"),
        ("update-server-info",),  # for a plain web server
    ):
        await run("git", "-C", tmp_path / "web", *words)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("git.vm").configure_cert(tls)
    with web_server(tmp_path / "web", tls) as target:
        async with proxy_for(way, {"git.vm": target}) as (route, port):
            proxy = f"http.proxy={scheme}://127.0.0.1:{port}"
            done = await run(
                *("git", "-c", proxy, "-c", f"http.sslCAInfo={bundle}"),
                *("clone", "-q", "https://git.vm/.git", tmp_path / "clone"),
                GIT_CONFIG_NOSYSTEM="1",
            )
            assert (tmp_path / "clone" / "page").read_text() == "a page\n", done
            asked = {line["asked"] for line in route.events("request_decided")}
            assert asked == {"git.vm:443"}


@pytest.mark.parametrize("scheme", ["socks5", "http"])
async def test_a_client_of_go_reaches_a_name_through_the_proxy(scheme: str) -> None:
    """Promtool has the proxies of Go's standard library; it resolves no name for socks5."""
    require(promtool="prometheus")
    body = b'{"status": "success", "data": {"resultType": "scalar", "result": [1, "42"]}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(head % len(body) + body)
        await read_to_end(stream)

    async with naming("proxy", service=answer) as route:
        proxy = f"{scheme}://127.0.0.1:{port_of(route)}"
        done = await run("promtool", "query", "instant", "http://web.vm", "up", HTTP_PROXY=proxy)
        assert done.stdout.startswith(b"scalar: 42"), done
        [line] = route.events("request_decided")
        assert line["asked"] == "web.vm:80"


@EACH_WAY
async def test_pip_downloads_a_package_through_the_proxy(way: str, tmp_path: Path) -> None:
    folder = tmp_path / "web" / "simple" / "tiny"
    folder.mkdir(parents=True)
    file = "tiny-1-py3-none-any.whl"
    with ZipFile(folder / file, "w") as wheel:
        wheel.writestr(
            "tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n"
        )
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    with web_server(tmp_path / "web") as target:
        async with proxy_for(way, {"pypi.vm": target}) as (_, port):
            done = await run(
                *(sys.executable, "-m", "pip", "--isolated", "download", "--no-deps", "--no-cache"),
                *("--proxy", f"http://127.0.0.1:{port}", "--dest", tmp_path),
                *("--index-url", "http://pypi.vm/simple/", "--trusted-host", "pypi.vm", "tiny"),
                TMPDIR=str(tmp_path),
            )
            assert (tmp_path / file).exists(), done


@pytest.mark.parametrize(("protocol", "by"), [("5", "socks5"), ("connect", "http-connect")])
async def test_nc_is_a_proxy_command_to_a_name(protocol: str, by: By) -> None:
    """Ssh starts it so, for git over ssh."""
    require(nc="netcat-openbsd")
    async with naming(by, service=says(b"SSH-2.0-x\r\n")) as route:
        proxy = f"127.0.0.1:{port_of(route)}"
        done = await run("nc", "-X", protocol, "-x", proxy, "web.vm", "22")
        assert done.stdout == b"SSH-2.0-x\r\n", done


async def test_redis_cli_reaches_a_database_by_its_tls_name(
    authority: trustme.CA, bundle: Path
) -> None:
    """The database is a fake that answers every command with a string."""
    require(**{"redis-cli": "redis-tools"})
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("db.vm").configure_cert(tls)

    async def answer(sock: trio.SocketStream) -> None:
        stream = trio.SSLStream(sock, tls, server_side=True, https_compatible=True)
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                await stream.send_all(b"$2\r\n42\r\n")

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        database = TcpEndpoint("127.0.0.1", listener.socket.getsockname()[1])
        async with naming("sni", {"db.vm": database}) as route:
            done = await run(
                *("redis-cli", "-p", str(port_of(route)), "--tls", "--sni", "db.vm"),
                *("--cacert", bundle, "GET", "answer"),
            )
            assert done.stdout == b"42\n", done
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", ["socks5h", "unix"])
async def test_curl_reaches_a_name_through_a_unix_socket(scheme: str, tmp_path: Path) -> None:
    listen = unix_at(tmp_path)
    way = ["--proxy", f"{scheme}://localhost{listen.path}"]
    by: By = "proxy"
    if scheme == "unix":
        way, by = ["--unix-socket", listen.path], "http-host"
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(servers(None, "web.vm"))
        await stack.enter_async_context(naming(by, targets, listen_at=listen))
        done = await curl(*way, "http://web.vm/")
        assert done.stdout == b"web.vm Host: web.vm\n", done
