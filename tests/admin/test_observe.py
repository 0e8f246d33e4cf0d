"""The HTTP side: what a scraper gets, and that no client can hold or break it."""

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
import structlog
import trio
import trio.testing
import trustme
from prometheus_client import CollectorRegistry, Gauge

from tests.admin.fake_daemon import FakeDaemon
from tests.daemon_process import environment
from vsockproxy.admin.observe import serve_metrics
from vsockproxy.admin.server import MAX_CLIENTS, Tls, without_tls
from vsockproxy.admin.tls import tls_context
from vsockproxy.config.settings import TlsSettings
from vsockproxy.errors import ConfigError
from vsockproxy.pump.reset import reset

REQUEST: Final = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
BIG: Final = "x" * 20_000_000  # more than any socket's buffers hold
AS_HTTP_2: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\n\r\n"
)


def registry_with(label: str = "a") -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "Of all questions.", ["label"], registry=registry).labels(label).set(42)
    return registry


@asynccontextmanager
async def serving(
    sock: socket.socket,
    registry: CollectorRegistry,
    lifetime: float = 60,
    observed: FakeDaemon = FakeDaemon(),  # noqa: B008 - nobody looks at what this one notes
    tls: Tls = without_tls,
) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_metrics(
                [sock], registry, observed, tls=tls, lifetime=lifetime, task_status=task_status
            )
        )
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        yield sock


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "metrics"))
        sock.listen()
        sock.setblocking(False)
        yield sock


def url(sock: socket.socket, path: str) -> str:
    return f"http://127.0.0.1:{sock.getsockname()[1]}{path}"


async def connected(sock: socket.socket) -> trio.SocketStream:
    client = trio.socket.socket(sock.family)
    await client.connect(sock.getsockname())
    return trio.SocketStream(client)


async def everything(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_metrics_are_served_in_the_format_that_is_asked_for(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        text = await client.get(url(tcp, "/metrics"))
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = await client.get(url(tcp, "/metrics"), headers=accept)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'answer{label="a"} 42.0\n' in text.text
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_the_index_and_a_wrong_path_say_where_to_look(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        index = await client.get(url(tcp, "/"))
        wrong = await client.get(url(tcp, "/metric"))
        posted = await client.post(url(tcp, "/metrics"))
    assert (index.status_code, wrong.status_code, posted.status_code) == (200, 404, 405)
    assert "/metrics" in index.text
    assert wrong.text == "not found: /metric; GET / lists the paths\n"


async def test_metrics_are_served_on_a_unix_socket(unix: socket.socket) -> None:
    transport = httpx.AsyncHTTPTransport(uds=unix.getsockname())
    async with serving(unix, registry_with()), httpx.AsyncClient(transport=transport) as client:
        answer = await client.get("http://localhost/metrics")
    assert "answer" in answer.text


async def test_the_sockets_stay_the_callers(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()):
        pass
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        assert (await client.get(url(tcp, "/metrics"))).status_code == 200


async def test_a_connection_is_closed_after_its_answer(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()):
        stream = await connected(tcp)
        await stream.send_all(REQUEST + REQUEST)
        answer = await everything(stream)
        await stream.aclose()
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answer


async def nothing(stream: trio.SocketStream) -> None:
    """A client that connects and stays silent."""


async def part_of_a_request(stream: trio.SocketStream) -> None:
    await stream.send_all(REQUEST[:-1])


async def request_without_reading(stream: trio.SocketStream) -> None:
    await stream.send_all(REQUEST)
    await stream.receive_some(1)  # the answer is under way


CLIENTS: Final = [nothing, part_of_a_request, request_without_reading]
Client = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_end_waits_for_no_client(
    request: pytest.FixtureRequest, family: str, client: Client
) -> None:
    sock: socket.socket = request.getfixturevalue(family)
    with trio.fail_after(10):
        async with serving(sock, registry_with(BIG)):
            stream = await connected(sock)
            await client(stream)
    await stream.aclose()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_that_is_too_slow_is_cut_off(tcp: socket.socket, client: Client) -> None:
    with trio.fail_after(10):
        async with serving(tcp, registry_with(BIG), lifetime=0.2):
            stream = await connected(tcp)
            await client(stream)
            await wait_for_the_peers_end(stream)
            await stream.aclose()


async def wait_for_the_peers_end(stream: trio.SocketStream) -> None:
    try:
        await everything(stream)
    except trio.BrokenResourceError:
        return


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 100, b"A" * 100_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, AS_HTTP_2],
    ids=["zeros", "endless-line", "http2-garbage", "http2-upgrade-garbage"],
)
async def test_nonsense_ends_its_own_connection_and_nothing_else(
    tcp: socket.socket, garbage: bytes
) -> None:
    async with serving(tcp, registry_with(), lifetime=2), httpx.AsyncClient() as client:
        stream = await connected(tcp)
        await stream.send_all(garbage)
        await wait_for_the_peers_end(stream)
        await stream.aclose()
        assert (await client.get(url(tcp, "/metrics"))).status_code == 200


async def test_what_the_http_library_cannot_read_is_one_line_of_the_log(
    tcp: socket.socket,
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(tcp, registry_with()):
            stream = await connected(tcp)
            await stream.send_all(AS_HTTP_2)
            await wait_for_the_peers_end(stream)
            await stream.aclose()
    assert [entry["event"] for entry in logs] == ["http_request_failed"]


async def test_a_client_that_resets_in_mid_answer_harms_nobody(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with(BIG)), httpx.AsyncClient() as client:
        stream = await connected(tcp)
        await request_without_reading(stream)
        raw = socket.socket(fileno=os.dup(stream.socket.fileno()))
        await stream.aclose()
        reset(raw)
        assert (await client.get(url(tcp, "/"))).status_code == 200


def test_a_daemon_without_a_server_imports_neither_hypercorn_nor_starlette() -> None:
    code = "import sys, vsockproxy.daemon.http;print({'hypercorn', 'starlette'} & set(sys.modules))"
    process = [sys.executable, "-c", code]
    assert subprocess.check_output(process, env=environment(), text=True) == "set()\n"


async def test_a_thread_that_hangs_is_not_healthy(
    tcp: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tcp, registry_with(), observed=FakeDaemon(hung=True)):
        stream = await connected(tcp)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await everything(stream)
        await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b"a thread of the pump does not answer\n")


async def test_the_targets_that_are_asked_for_are_dialled(tcp: socket.socket) -> None:
    observed = FakeDaemon(unreachable=["db"])
    async with serving(tcp, registry_with(), observed=observed), httpx.AsyncClient() as client:
        well = await client.get(url(tcp, "/readyz?target=web"))
        broken = await client.get(url(tcp, "/readyz?target=web&target=db"))
    assert (well.status_code, well.text) == (200, "ready\n")
    assert (broken.status_code, broken.text) == (503, "route db: nothing listens there\n")


async def test_a_target_is_dialled_once_for_a_request(tcp: socket.socket) -> None:
    observed = FakeDaemon()
    async with serving(tcp, registry_with(), observed=observed), httpx.AsyncClient() as client:
        await client.get(url(tcp, "/readyz?target=web&target=db&target=web"))
    assert observed.dialled == ["web", "db"]


async def ask_for_a_target(sock: socket.socket) -> None:
    """A client that is gone at once."""
    async with await connected(sock) as stream:
        await stream.send_all(b"GET /readyz?target=web HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_dials_are_no_more_than_clients_may_be(tcp: socket.socket) -> None:
    observed = FakeDaemon(hung=True)
    with trio.fail_after(10):
        async with serving(tcp, registry_with(), observed=observed):
            for number in range(1, MAX_CLIENTS + 9):
                await ask_for_a_target(tcp)
                while len(observed.dialled) < number:
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert observed.dialling == MAX_CLIENTS


async def test_a_dial_ends_with_the_lifetime_of_its_client(tcp: socket.socket) -> None:
    observed = FakeDaemon(hung=True)
    with trio.fail_after(10):
        async with serving(tcp, registry_with(), lifetime=0.2, observed=observed):
            await ask_for_a_target(tcp)
            while not observed.dialled or observed.dialling:
                await trio.lowlevel.checkpoint()


async def test_only_the_metrics_that_are_asked_for_are_served(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        none = await client.get(url(tcp, "/metrics?name[]=other"))
        one = await client.get(url(tcp, "/metrics?name[]=answer"))
    assert "answer" not in none.text
    assert "answer" in one.text


# --- TLS ----------------------------------------------------------------------------------


class Authority:
    """A certificate authority, with the files of a server's and of a client's certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ca = trustme.CA()
        self.file = folder / f"{name}-ca.pem"
        self.ca.cert_pem.write_to_path(self.file)
        self.server = folder / f"{name}-server.pem"
        self.ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)

    def client(self, *, certified: bool) -> ssl.SSLContext:
        """What a client of such a server has; ``certified`` is with a certificate of its own."""
        context = ssl.create_default_context(cafile=self.file)
        if certified:
            self.ca.issue_cert("scraper.test").configure_cert(context)
        return context


async def scraped(sock: socket.socket, context: ssl.SSLContext) -> str:
    async with httpx.AsyncClient(verify=context) as client:
        return (await client.get(url(sock, "/metrics").replace("http:", "https:"))).text


async def test_metrics_are_served_over_tls_with_the_certificates_of_the_moment(
    tcp: socket.socket, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    contexts = [tls_context(TlsSettings(str(old.server)), "x.toml")]
    async with serving(tcp, registry_with(), tls=lambda: contexts[-1]):
        assert "answer" in await scraped(tcp, old.client(certified=False))
        contexts.append(tls_context(TlsSettings(str(new.server)), "x.toml"))
        assert "answer" in await scraped(tcp, new.client(certified=False))
        with pytest.raises(httpx.ConnectError):
            await scraped(tcp, old.client(certified=False))


async def test_a_client_without_the_certificate_that_is_wanted_gets_nothing(
    tcp: socket.socket, tmp_path: Path
) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    settings = TlsSettings(str(ours.server), client_ca=str(ours.file))
    stranger = ours.client(certified=False)
    other.ca.issue_cert("scraper.test").configure_cert(stranger)
    context = tls_context(settings, "x.toml")
    async with serving(tcp, registry_with(), tls=lambda: context):
        assert "answer" in await scraped(tcp, ours.client(certified=True))
        for client in (ours.client(certified=False), stranger):
            with pytest.raises(httpx.TransportError):
                await scraped(tcp, client)


@pytest.mark.parametrize("client", [nothing, part_of_a_request])
async def test_a_client_that_never_shakes_hands_is_cut_off(
    tcp: socket.socket, tmp_path: Path, client: Client
) -> None:
    context = tls_context(TlsSettings(str(Authority(tmp_path, "ours").server)), "x.toml")
    with trio.fail_after(10):
        async with serving(tcp, registry_with(), lifetime=0.2, tls=lambda: context):
            stream = await connected(tcp)
            await client(stream)
            await wait_for_the_peers_end(stream)
            await stream.aclose()


def test_certificates_that_do_not_fit_are_said_with_their_key_and_files(tmp_path: Path) -> None:
    one, other = Authority(tmp_path, "one"), Authority(tmp_path, "other")
    garbage = tmp_path / "garbage"
    garbage.write_text("x")
    for settings, words in (
        (TlsSettings("/none.pem"), "metrics.certificate: /none.pem: No such file"),
        (TlsSettings(str(garbage)), f"metrics.certificate: {garbage}: not PEM files"),
        (TlsSettings(str(one.server), str(other.server)), "key values mismatch"),
        (TlsSettings(str(one.server), client_ca=str(garbage)), f"metrics.client_ca: {garbage}"),
    ):
        with pytest.raises(ConfigError) as caught:
            tls_context(settings, "x.toml")
        assert words in str(caught.value)
