"""HTTP on listening sockets, for few clients that may be slow or silent.

Owns: the lifetime of a client's connection and the number of clients.  Knows no path: an ASGI
application answers.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from starlette.types import ASGIApp

from vsockproxy.log.output import Throttle, get_logger

LIFETIME: Final = 20.0
"""Seconds for a connection: handshake, request and answer; Prometheus gives up after 10."""

MAX_CLIENTS: Final = 32
"""Clients of one server at a time; one more closes the oldest."""

Tls = Callable[[], ssl.SSLContext | None]
"""Return the certificates for the next client; None serves it without TLS."""


def without_tls() -> None:
    """Return no certificates."""


_ServeStream = Callable[[trio.abc.Stream], Awaitable[None]]


async def serve_http(
    sockets: Sequence[socket.socket],
    application: ASGIApp,
    *,
    tls: Tls = without_tls,
    lifetime: float = LIFETIME,
    max_clients: int = MAX_CLIENTS,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application on listening sockets until cancelled.

    Cancellation closes the clients and does not wait for their answers.  The sockets stay the
    caller's.

    Args:
      lifetime: seconds after which a client's connection is closed.
      task_status: started once requests are answered.

    Raises:
      OSError: if there are no descriptors for duplicates of the sockets.
    """
    clients = _Clients(max_clients, lifetime, tls)
    handler = partial(clients.serve, _http_server(application))
    # trio closes the listeners that it serves, so each is a duplicate.
    listeners: list[trio.SocketListener] = []
    try:
        for sock in sockets:
            listeners.append(trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup())))
    except OSError:
        for listener in listeners:
            listener.socket.close()
        raise
    await trio.serve_listeners(handler, listeners, task_status=task_status)


class _Clients:
    """The clients of one server, the oldest first."""

    def __init__(self, max_clients: int, lifetime: float, tls: Tls) -> None:
        self._max_clients = max_clients
        self._tls = tls
        self._lifetime = lifetime
        self._open: dict[trio.SocketStream, trio.CancelScope] = {}
        self._failures = Throttle(get_logger())

    async def serve(self, serve_stream: _ServeStream, stream: trio.SocketStream) -> None:
        """Serve one client; close it when cancelled, and after ``lifetime`` seconds.

        hypercorn sends shielded from cancellation and without a timeout: a client that does
        not read its answer would delay the daemon's end.  Closing the socket ends the send.
        """
        self._close_oldest()
        try:
            async with trio.open_nursery() as nursery:
                self._open[stream] = nursery.cancel_scope
                nursery.start_soon(_close_after, self._lifetime, stream, nursery.cancel_scope)
                try:
                    await serve_stream(self._encrypted(stream))
                except* Exception as errors:  # noqa: BLE001 - a malformed h2c upgrade raises here
                    self._log_failure(errors)
                nursery.cancel_scope.cancel()
        finally:
            self._open.pop(stream, None)

    def _log_failure(self, error: BaseException) -> None:
        """Log an exception of hypercorn: a malformed request must not end the daemon."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reason = type(error).__name__
        self._failures.warning("http_request_failed", dict, reason=reason, error=repr(error))

    def _encrypted(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """Return the stream under TLS, whose handshake hypercorn makes; or as it is."""
        context = self._tls()
        if context is None:
            return stream
        return trio.SSLStream(stream, context, server_side=True, https_compatible=True)

    def _close_oldest(self) -> None:
        """Make room for one client: if many idle, the newest is the one with a request."""
        while len(self._open) >= self._max_clients:
            oldest = next(iter(self._open))
            _close(oldest, self._open.pop(oldest))


async def _close_after(
    lifetime: float, stream: trio.SocketStream, serving: trio.CancelScope
) -> None:
    try:
        await trio.sleep(lifetime)
    finally:
        _close(stream, serving)


def _close(stream: trio.SocketStream, serving: trio.CancelScope) -> None:
    """Close a client, and cancel the work on its answer."""
    stream.socket.close()
    serving.cancel()


def _http_server(application: ASGIApp) -> _ServeStream:
    """Return a function that speaks HTTP on one accepted stream.

    It is built below `hypercorn.trio.serve`, which owns its connections and cannot close them.
    """

    async def answer(*asgi: Any) -> None:  # hypercorn and starlette each have types for ASGI
        # hypercorn may be closing while we answer: the client sent more than one request.
        with suppress(trio.BusyResourceError):
            await application(*asgi)

    wrapped = ASGIWrapper(answer)

    async def serve_stream(stream: Any) -> None:  # hypercorn's type is trio.SSLStream
        state = ConnectionState({})
        await TCPServer(wrapped, config, context, state, stream).run()

    config = _config()
    context = WorkerContext(max_requests=None)
    return serve_stream


def _config() -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_max_requests = 0  # one request per connection, so that LIFETIME bounds it
    return config
