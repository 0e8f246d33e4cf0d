"""The embedded guest of `vsockproxy demo`, which needs no VM.

Owns: the guest, which is a vsock-mux socket like a VMM's with a small HTTP service behind it,
the same with TLS for routes by server name, and the configuration of a route to it.  The daemon is
the ordinary one.
"""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Final

import h11
import trio

from vsockproxy.address.endpoint import (
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.admin.socket_path import NAME, is_live, make_private, of_user
from vsockproxy.config.by_name import ByName
from vsockproxy.config.document import Plain
from vsockproxy.config.duration import write_duration
from vsockproxy.config.guest import NAME_MARK, STAR, Mux, MuxGlob
from vsockproxy.config.load import forward_config
from vsockproxy.config.settings import Config, Route
from vsockproxy.dial import mux_line
from vsockproxy.listen.bind import listen
from vsockproxy.log.output import get_logger

GUEST_PORT: Final = 80
"""The guest's port of the HTTP service; connections to other ports are refused."""

TLS_PORT: Final = 443
"""The same with TLS, if a route is by server name and openssl can make a certificate."""

_MAKE_CERTIFICATE: Final = (
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    *("-nodes", "-days", "30", "-subj", "/CN=vm.localhost"),
    *("-addext", "subjectAltName=DNS:*.vm.localhost", "-keyout", "-", "-out", "-"),
)

_FIRST_NUMBER: Final = 1 << 30  # as Firecracker counts its host ports
_CHUNK: Final = 65536
_SCHEMES: Final[Mapping[str, str]] = {"sni": "-k https", "http-host": "http"}
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - shown, not bound

Service = Callable[[trio.SocketStream], Awaitable[None]]

_PAGE: Final = """\
Hello from the embedded guest.

Your request, {method} {target}, was answered by port {port} of the guest.  It arrived on
a TCP port of the host and passed through the VMM's vsock socket (CONNECT {port}, OK);
this answer took the same way back.

The bytes of both are counted in /metrics of the metrics listener.
"""


def demo_config(
    mux_path: str, port: int, metrics_port: int, wait_for_guest: float | None = None
) -> Config:
    """Return the demo's configuration; without ``wait_for_guest``, it is config/demo.toml's."""
    waits: dict[str, Plain] = {"wait_for_guest": wait_for_guest} if wait_for_guest else {}
    return forward_config(
        [(str(port), f"vsock-mux:{mux_path}:{GUEST_PORT}")],
        {
            # Unlike most VMMs, this guest honours a half-close.
            "defaults": {"half_close": "forward", **waits},
            "metrics": {"listen": f"127.0.0.1:{metrics_port}"},
        },
    )


@asynccontextmanager
async def embedded_guests(
    config: Config, boot_delay: float = 0.0, *, folder: Path | None = None
) -> AsyncIterator[None]:
    """Run a guest at every vsock-mux socket of the routes while the block runs.

    SIGUSR1 stops the guests and starts them again.  A restarted guest that is found by a pattern
    has another name, as a restarted VM has another CID.  Live connections get an EOF and no
    reset, which the end of a VMM's process would be: here that process is the daemon itself.

    Args:
      boot_delay: seconds after which the guests start.
      folder: for the guests' certificate; without it they have no TLS.

    Raises: exception groups with a `ListenError` if a socket cannot be created.
    """
    paths = set(_paths(config))
    services = await _services(config, folder)
    with trio.open_signal_receiver(signal.SIGUSR1) as switch:
        async with trio.open_nursery() as nursery:
            await nursery.start(_switch_guests, sorted(paths), services, switch, boot_delay)
            yield
            nursery.cancel_scope.cancel()


async def _services(config: Config, folder: Path | None) -> Mapping[int, Service]:
    """Return the services of a guest by port."""
    if folder is None or all(route.by != "sni" for route in config.routes):
        return {GUEST_PORT: serve_http}
    try:
        done = await trio.run_process(_MAKE_CERTIFICATE, capture_stdout=True, capture_stderr=True)
    except (OSError, subprocess.CalledProcessError):
        get_logger().warning(
            "guest_without_tls", error="openssl made no certificate; install it for HTTPS"
        )
        return {GUEST_PORT: serve_http}
    certificate = folder / "guest.pem"
    certificate.touch(0o600)
    certificate.write_bytes(done.stdout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return {GUEST_PORT: serve_http, TLS_PORT: partial(serve_https, context)}


def _paths(config: Config) -> Iterator[str]:
    """Yield the paths, and the patterns with a ``*``, of the vsock-mux sockets of the guests."""
    locators = {guest.name: guest.locator for guest in config.guests}
    for target in (target for route in config.routes for target in route.targets):
        if isinstance(target, MuxEndpoint):
            yield target.path
        elif isinstance(target, GuestEndpoint):
            locator = locators[target.guest]
            if isinstance(locator, MuxGlob):
                yield locator.pattern
    for guest in config.guests:
        if guest.is_pattern and isinstance(guest.locator, Mux):
            yield guest.locator.path.replace(NAME_MARK, "*")


async def _switch_guests(
    paths: list[str],
    services: Mapping[int, Service],
    switch: AsyncIterator[int],
    boot_delay: float,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    log = get_logger()
    if boot_delay:
        task_status.started()
        await trio.sleep(boot_delay)
    for started in count(1 if boot_delay else 0):
        async with trio.open_nursery() as guests:
            for path in paths:
                await guests.start(serve_guest, Path(path.replace("*", str(started))), services)
            if started:
                log.info("guest_started")
            else:
                task_status.started()
            await anext(switch)
            guests.cancel_scope.cancel()
        log.info("guest_stopped")
        await anext(switch)


async def serve_guest(
    path: Path,
    services: Mapping[int, Service] | None = None,
    *,
    task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve as a guest behind a VMM's socket at ``path``, until cancelled.

    Speaks Firecracker's side of the handshake: ``OK`` with a number from 2**30 up; the
    connection to a refused port is closed without an answer.  Removes the socket at the end.

    Raises: `ListenError` if the socket cannot be created.
    """
    [listening] = listen(UnixEndpoint(str(path)), 128, {})
    services = services or {GUEST_PORT: serve_http}
    serve = partial(_serve_client, services, count(_FIRST_NUMBER))
    try:
        # A duplicate: trio closes its listener before `close` compares the socket with the file.
        sock = trio.socket.from_stdlib_socket(listening.sock.dup())
        await trio.serve_listeners(serve, [trio.SocketListener(sock)], task_status=task_status)
    finally:
        listening.close()


async def _serve_client(
    services: Mapping[int, Service], numbers: Iterator[int], stream: trio.SocketStream
) -> None:
    async with stream:
        try:
            service = services.get(mux_line.parse_request(await _read_line(stream)))
            if service is not None:
                await stream.send_all(mux_line.ok_reply(next(numbers)))
                await service(stream)
        except (mux_line.MalformedLineError, trio.BrokenResourceError):
            return


async def _read_line(stream: trio.SocketStream) -> bytes:
    """Read the handshake's line, one byte at a time: the bytes after it belong to the service."""
    reader = mux_line.LineReader()
    while not reader.done:
        byte = await stream.receive_some(1)
        if not byte:
            raise mux_line.MalformedLineError(reader.line)
        reader.feed(byte)
    return reader.line


async def serve_http(stream: trio.SocketStream) -> None:
    """Answer HTTP/1.1 requests until the client ends; answer also after its half-close."""
    await _serve_requests(stream, GUEST_PORT)
    await stream.send_eof()


async def serve_https(context: ssl.SSLContext, stream: trio.SocketStream) -> None:
    """Answer as `serve_http` within TLS, and close the stream."""
    async with trio.SSLStream(stream, context, server_side=True, https_compatible=True) as tls:
        await _serve_requests(tls, TLS_PORT)


async def _serve_requests(stream: trio.abc.Stream, port: int) -> None:
    connection = h11.Connection(h11.SERVER)
    try:
        while (request := await _next_request(connection, stream)) is not None:
            await _answer(connection, stream, request, port)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                break
            connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        await _refuse(connection, stream, error)


async def _next_request(connection: h11.Connection, stream: trio.abc.Stream) -> h11.Request | None:
    """Return the next request after discarding its body; None at the client's end."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif not isinstance(event, h11.Data):
            return None


async def _answer(
    connection: h11.Connection, stream: trio.abc.Stream, request: h11.Request, port: int
) -> None:
    method, target = request.method.decode(), request.target.decode("latin-1")
    page = _PAGE.format(method=method, target=target, port=port).encode()
    await _send(connection, stream, 200, page, with_body=method != "HEAD")


async def _refuse(
    connection: h11.Connection, stream: trio.abc.Stream, error: h11.RemoteProtocolError
) -> None:
    if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
        await _send(connection, stream, error.error_status_hint, b"This is not HTTP.\n")


async def _send(
    connection: h11.Connection,
    stream: trio.abc.Stream,
    status: int,
    page: bytes,
    *,
    with_body: bool = True,
) -> None:
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(page))),
    ]
    reason = HTTPStatus(status).phrase
    parts: list[h11.Event] = [h11.Response(status_code=status, headers=headers, reason=reason)]
    if with_body:
        parts.append(h11.Data(data=page))
    parts.append(h11.EndOfMessage())
    await stream.send_all(b"".join(connection.send(part) or b"" for part in parts))


def with_admin(config: Config, environ: Mapping[str, str], folder: Path) -> Config:
    """Return the configuration with a control socket, unless it sets one.

    The socket is where the commands look for a user's daemon, or in ``folder`` if another
    daemon listens there.
    """
    if config.admin.socket != "auto":
        return config
    place = of_user(environ, os.getuid())
    try:
        make_private(place.parent)
    except OSError:
        place = folder / NAME
    if is_live(place):
        place = folder / NAME
    return replace(config, admin=replace(config.admin, socket=UnixEndpoint(str(place))))


def with_same_admin(config: Config, running: Config) -> Config:
    """Return the configuration with the control socket of `with_admin`, unless it sets one."""
    if config.admin.socket != "auto":
        return config
    return replace(config, admin=replace(config.admin, socket=running.admin.socket))


def greeting(config: Config, environ: Mapping[str, str], boot_delay: float = 0.0) -> str:
    """Return the text that the demo prints when it is ready."""
    lines = ["The embedded guest is ready. In another terminal, try:", ""]
    if boot_delay:
        after = write_duration(boot_delay)
        boots = f"The guest starts in {after}; wait_for_guest holds clients until then."
        lines.insert(0, boots)
    lines += [f"    curl {arguments}" for route in config.routes for arguments in _requests(route)]
    lines += [f"    curl {_url(listen)}/metrics" for listen in config.metrics[:1]]
    if config.admin.listen is not None:
        place = config.admin.listen.path
        usual = place == str(of_user(environ, os.getuid()))
        option = "" if usual else f" --socket {place}"
        commands = ("status", "connections", "doctor")
        lines += [f"    {_program()} {command}{option}" for command in commands]
    lines += [
        "",
        f"To stop the guest, and to start it again: kill -USR1 {os.getpid()}",
    ]
    return "\n".join([*lines, "Press Ctrl-C to end."])


def _requests(route: Route) -> Iterator[str]:
    """Yield the arguments of curl for a route, by each name that leads to the first guest."""
    target, listen = route.target, route.listen
    if not isinstance(target, ByName):
        yield f"{_url(listen)}/"
    elif isinstance(listen, TcpEndpoint) and target.by in _SCHEMES:
        for rule in target.to:
            yield f"{_SCHEMES[target.by]}://{rule.name.name.replace(STAR, '0')}:{listen.port}/"


def _program() -> str:
    """Return how this program is called in a shell, which need not be by its name."""
    called = Path(sys.argv[0])
    if shutil.which("vsockproxy"):
        return "vsockproxy"
    return str(called) if called.name == "vsockproxy" else f"{sys.executable} -m vsockproxy"


def _url(listen: ListenEndpoint) -> str:
    """Return the URL of a listener, or curl's arguments for a Unix socket."""
    if isinstance(listen, TcpEndpoint):
        host = listen.host or "127.0.0.1"
        host = _ANYWHERE.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{host}:{listen.port}"
    if isinstance(listen, UnixEndpoint):
        return f"--unix-socket {listen.path} http://localhost"
    return str(listen)
