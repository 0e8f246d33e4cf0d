"""Tests of the metrics endpoint: formats, paths, TLS, and slow or hostile clients."""

import os
import socket
import ssl
import subprocess
import sys
import threading
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
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from tests.admin.conftest import url
from tests.admin.fake_daemon import FakeDaemon, no_page
from tests.daemon_process import environment
from tests.sockets import connected, read_to_end
from tests.waiting import until
from vsockproxy.admin.probes import metrics_server
from vsockproxy.admin.registry import Registry
from vsockproxy.admin.tls import tls_context
from vsockproxy.config.process import TlsSettings
from vsockproxy.errors import ConfigError
from vsockproxy.http.server import MAX_CLIENTS, Tls, without_tls
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
    observed: FakeDaemon = FakeDaemon(),  # noqa: B008 - no test reads the records of this one
    tls: Tls = without_tls,
) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(
            metrics_server(registry, observed, no_page, tls=tls, lifetime=lifetime).serve, [sock]
        )
        yield
        nursery.cancel_scope.cancel()


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "metrics"))
        sock.listen()
        sock.setblocking(False)
        yield sock


async def test_metrics_have_the_format_of_the_accept_header(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        text = await client.get(url(tcp, "/metrics"))
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        openmetrics = await client.get(url(tcp, "/metrics"), headers=accept)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'answer{label="a"} 42.0\n' in text.text
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def test_the_index_lists_the_paths_and_an_unknown_path_refers_to_it(
    tcp: socket.socket,
) -> None:
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


async def test_the_callers_sockets_stay_open_after_the_end(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()):
        pass
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        assert (await client.get(url(tcp, "/metrics"))).status_code == 200


async def test_a_connection_is_closed_after_its_answer(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()):
        stream = await connected(tcp)
        await stream.send_all(REQUEST + REQUEST)
        answer = await read_to_end(stream)
        await stream.aclose()
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answer


async def nothing(stream: trio.SocketStream) -> None:
    """Send nothing."""


async def part_of_a_request(stream: trio.SocketStream) -> None:
    """Send a request without its last byte."""
    await stream.send_all(REQUEST[:-1])


async def request_without_reading(stream: trio.SocketStream) -> None:
    """Send a request and read only the first byte of its answer."""
    await stream.send_all(REQUEST)
    await stream.receive_some(1)  # the answer has begun


CLIENTS: Final = [nothing, part_of_a_request, request_without_reading]
Client = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_server_ends_without_waiting_for_a_client(
    request: pytest.FixtureRequest, family: str, client: Client
) -> None:
    sock: socket.socket = request.getfixturevalue(family)
    with trio.fail_after(10):
        async with serving(sock, registry_with(BIG)):
            stream = await connected(sock)
            await client(stream)
    await stream.aclose()


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_slow_client_is_closed_at_the_end_of_its_lifetime(
    tcp: socket.socket, client: Client
) -> None:
    with trio.fail_after(10):
        async with serving(tcp, registry_with(BIG), lifetime=0.2):
            stream = await connected(tcp)
            await client(stream)
            await wait_for_the_end(stream)
            await stream.aclose()


async def wait_for_the_end(stream: trio.SocketStream) -> None:
    try:
        await read_to_end(stream)
    except trio.BrokenResourceError:
        return


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 100, b"A" * 100_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64, AS_HTTP_2],
    ids=["zeros", "endless-line", "http2-garbage", "http2-upgrade-garbage"],
)
async def test_garbage_closes_only_its_own_connection(tcp: socket.socket, garbage: bytes) -> None:
    async with serving(tcp, registry_with(), lifetime=2), httpx.AsyncClient() as client:
        stream = await connected(tcp)
        await stream.send_all(garbage)
        await wait_for_the_end(stream)
        await stream.aclose()
        assert (await client.get(url(tcp, "/metrics"))).status_code == 200


async def test_an_upgrade_to_http2_is_ignored_and_the_request_answered(tcp: socket.socket) -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving(tcp, registry_with()):
            stream = await connected(tcp)
            await stream.send_all(AS_HTTP_2)
            answer = await read_to_end(stream)
            await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert logs == []


async def test_a_reset_in_the_middle_of_an_answer_does_not_stop_the_server(
    tcp: socket.socket,
) -> None:
    async with serving(tcp, registry_with(BIG)), httpx.AsyncClient() as client:
        stream = await connected(tcp)
        await request_without_reading(stream)
        raw = socket.socket(fileno=os.dup(stream.socket.fileno()))
        await stream.aclose()
        reset(raw)
        assert (await client.get(url(tcp, "/"))).status_code == 200


def test_the_http_module_imports_no_web_server_and_no_prometheus() -> None:
    heavy = {"h11", "vsockproxy.http", "prometheus_client"}
    code = f"import sys, vsockproxy.daemon.http_servers; print({heavy} & set(sys.modules))"
    process = [sys.executable, "-c", code]
    assert subprocess.check_output(process, env=environment(), text=True) == "set()\n"


async def test_healthz_with_a_hung_pump_thread_fails(
    tcp: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tcp, registry_with(), observed=FakeDaemon(hung=True)):
        stream = await connected(tcp)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await read_to_end(stream)
        await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b"a thread of the pump does not answer\n")


async def test_readyz_with_targets_dials_them_and_reports_each_failure(tcp: socket.socket) -> None:
    observed = FakeDaemon(unreachable=["db"])
    async with serving(tcp, registry_with(), observed=observed), httpx.AsyncClient() as client:
        well = await client.get(url(tcp, "/readyz?target=web"))
        broken = await client.get(url(tcp, "/readyz?target=web&target=db"))
    assert (well.status_code, well.text) == (200, "ready\n")
    assert (broken.status_code, broken.text) == (503, "route db: nothing listens there\n")


async def test_readyz_with_a_repeated_target_dials_it_once(tcp: socket.socket) -> None:
    observed = FakeDaemon()
    async with serving(tcp, registry_with(), observed=observed), httpx.AsyncClient() as client:
        await client.get(url(tcp, "/readyz?target=web&target=db&target=web"))
    assert observed.dialled == ["web", "db"]


async def ask_for_a_target(sock: socket.socket) -> None:
    """Request a dial of a target, and close the connection without reading the answer."""
    async with await connected(sock) as stream:
        await stream.send_all(b"GET /readyz?target=web HTTP/1.1\r\nHost: x\r\n\r\n")


async def test_dials_for_clients_that_left_are_limited_to_the_number_of_clients(
    tcp: socket.socket,
) -> None:
    observed = FakeDaemon(hung=True)
    with trio.fail_after(10):
        async with serving(tcp, registry_with(), observed=observed):
            for number in range(1, MAX_CLIENTS + 9):
                await ask_for_a_target(tcp)
                while len(observed.dialled) < number:
                    await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
            assert observed.dialling == MAX_CLIENTS


async def test_a_dial_is_cancelled_at_the_end_of_its_clients_lifetime(tcp: socket.socket) -> None:
    observed = FakeDaemon(hung=True)
    with trio.fail_after(10):
        async with serving(tcp, registry_with(), lifetime=0.2, observed=observed):
            await ask_for_a_target(tcp)
            await until(lambda: observed.dialled and not observed.dialling)


async def test_a_scrape_with_names_returns_only_these_metrics(tcp: socket.socket) -> None:
    async with serving(tcp, registry_with()), httpx.AsyncClient() as client:
        none = await client.get(url(tcp, "/metrics?name[]=other"))
        one = await client.get(url(tcp, "/metrics?name[]=answer"))
    assert "answer" not in none.text
    assert "answer" in one.text


# --- TLS ----------------------------------------------------------------------------------


class Authority:
    """A certificate authority, with files for its certificate and a server's certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ca = trustme.CA()
        self.file = folder / f"{name}-ca.pem"
        self.ca.cert_pem.write_to_path(self.file)
        self.server = folder / f"{name}-server.pem"
        self.ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)

    def client(self, *, certified: bool) -> ssl.SSLContext:
        """Return a client's TLS context; ``certified`` adds a client certificate."""
        context = ssl.create_default_context(cafile=self.file)
        if certified:
            self.ca.issue_cert("scraper.test").configure_cert(context)
        return context


async def scraped(sock: socket.socket, context: ssl.SSLContext) -> str:
    async with httpx.AsyncClient(verify=context) as client:
        return (await client.get(url(sock, "/metrics").replace("http:", "https:"))).text


async def test_tls_uses_the_certificate_of_the_latest_reload(
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


async def test_with_client_ca_a_client_without_its_certificate_is_rejected(
    tcp: socket.socket, tmp_path: Path
) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    settings = TlsSettings(str(ours.server), client_ca=str(ours.file))
    foreign = ours.client(certified=False)
    other.ca.issue_cert("scraper.test").configure_cert(foreign)
    context = tls_context(settings, "x.toml")
    async with serving(tcp, registry_with(), tls=lambda: context):
        assert "answer" in await scraped(tcp, ours.client(certified=True))
        for client in (ours.client(certified=False), foreign):
            with pytest.raises(httpx.TransportError):
                await scraped(tcp, client)


@pytest.mark.parametrize("client", [nothing, part_of_a_request])
async def test_a_client_without_a_tls_handshake_is_closed_at_the_end_of_its_lifetime(
    tcp: socket.socket, tmp_path: Path, client: Client
) -> None:
    context = tls_context(TlsSettings(str(Authority(tmp_path, "ours").server)), "x.toml")
    with trio.fail_after(10):
        async with serving(tcp, registry_with(), lifetime=0.2, tls=lambda: context):
            stream = await connected(tcp)
            await client(stream)
            await wait_for_the_end(stream)
            await stream.aclose()


def test_an_unusable_certificate_is_reported_with_its_key_and_file(tmp_path: Path) -> None:
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


async def test_a_scrape_reads_the_process_beside_the_event_loop(
    tcp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = []
    collect = ProcessCollector.collect

    def observed(collector: ProcessCollector) -> object:
        readers.append(threading.current_thread())
        return collect(collector)

    monkeypatch.setattr(ProcessCollector, "collect", observed)
    async with serving(tcp, Registry(FakeDaemon())), httpx.AsyncClient() as client:
        readers.clear()
        answer = await client.get(url(tcp, "/metrics"))
    assert "process_open_fds" in answer.text
    assert len(readers) == 1
    assert readers[0] is not threading.main_thread()
