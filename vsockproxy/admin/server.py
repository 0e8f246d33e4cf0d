"""HTTP on sockets that listen already, for few clients of whom none is trusted to be quick.

Owns: the lifetime of a client's connection and how many there may be.  Knows no path: what
is answered is an ASGI application's.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.log.output import Throttle, get_logger

if TYPE_CHECKING:
    import ssl

    from hypercorn.config import Config
    from starlette.types import ASGIApp

LIFETIME: Final = 20.0
"""Seconds for one connection: its request, and taking the answer; scrapes give up after 10."""

MOST: Final = 32
"""Clients of one server at once; one more, and the oldest is sent away."""

Tls = Callable[[], "ssl.SSLContext | None"]
"""The certificates for the next client; None serves without."""


def without_tls() -> None:
    """No certificates."""


_Serve = Callable[[trio.abc.Stream], Awaitable[None]]


async def serve_http(
    sockets: Sequence[socket.socket],
    application: ASGIApp,
    *,
    tls: Tls = without_tls,
    lifetime: float = LIFETIME,
    most: int = MOST,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application on sockets that listen already; runs until cancelled.

    The sockets stay the caller's.  ``task_status`` is started when requests are answered.
    Raises OSError where there are no descriptors for duplicates of them.
    """
    clients = _Clients(most, lifetime, tls)
    handler = partial(clients.serve, _http_server(application))
    # trio closes the listeners it serves, so each is a duplicate.
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

    def __init__(self, most: int, lifetime: float, tls: Tls) -> None:
        self._most = most
        self._tls = tls
        self._lifetime = lifetime
        self._open: dict[trio.SocketStream, trio.CancelScope] = {}
        self._failures = Throttle(get_logger())

    async def serve(self, serve: _Serve, stream: trio.SocketStream) -> None:
        """Serve one client, who is cut off when cancelled, and after ``lifetime`` seconds.

        hypercorn sends shielded from cancellation, and without a bound: a client that does
        not take its answer would hold up the daemon's end.  A closed socket it does
        understand.
        """
        self._make_room()
        try:
            async with trio.open_nursery() as nursery:
                self._open[stream] = nursery.cancel_scope
                nursery.start_soon(_close_in_the_end, stream, self._lifetime, nursery.cancel_scope)
                try:
                    await serve(self._wrapped(stream))
                except* Exception as errors:  # noqa: BLE001 - a malformed h2c upgrade gets here
                    self._log_failure(errors)
                nursery.cancel_scope.cancel()
        finally:
            self._open.pop(stream, None)

    def _log_failure(self, error: BaseException) -> None:
        """Log what hypercorn let escape: a request that it cannot read must not end the daemon."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reason = type(error).__name__
        self._failures.warning("http_request_failed", dict, reason=reason, error=repr(error))

    def _wrapped(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """The stream, or the TLS over it of which hypercorn makes the handshake."""
        context = self._tls()
        if context is None:
            return stream
        return trio.SSLStream(stream, context, server_side=True, https_compatible=True)

    def _make_room(self) -> None:
        """The newest comes in: among many that are idle, a scraper is the one who asks."""
        while len(self._open) >= self._most:
            oldest = next(iter(self._open))
            _cut_off(oldest, self._open.pop(oldest))


async def _close_in_the_end(
    stream: trio.SocketStream, lifetime: float, serving: trio.CancelScope
) -> None:
    try:
        await trio.sleep(lifetime)
    finally:
        _cut_off(stream, serving)


def _cut_off(stream: trio.SocketStream, serving: trio.CancelScope) -> None:
    """End a client, and then what is done for it: nobody waits for the answer any more."""
    stream.socket.close()
    serving.cancel()


def _http_server(application: ASGIApp) -> _Serve:
    """What speaks HTTP on one accepted stream.

    Below `hypercorn.trio.serve`, which owns its connections and lets nobody end them.
    """
    # Imported here: see the package's docstring.
    from hypercorn.app_wrappers import ASGIWrapper  # noqa: PLC0415 - see above
    from hypercorn.trio.tcp_server import TCPServer  # noqa: PLC0415 - see above
    from hypercorn.trio.worker_context import WorkerContext  # noqa: PLC0415 - see above
    from hypercorn.typing import ConnectionState  # noqa: PLC0415 - see above

    async def answer(*asgi: Any) -> None:  # hypercorn and starlette each have types for ASGI
        # Answering while hypercorn closes: who sends more than it asks for is not waited for.
        with suppress(trio.BusyResourceError):
            await application(*asgi)

    wrapped = ASGIWrapper(answer)

    async def serve(stream: Any) -> None:  # a plain stream, where hypercorn says TLS
        state = ConnectionState({})
        await TCPServer(wrapped, config, context, state, stream).run()

    config = _config()
    context = WorkerContext(max_requests=None)
    return serve


def _config() -> Config:
    import hypercorn.config  # noqa: PLC0415 - see the package's docstring

    config = hypercorn.config.Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_max_requests = 0  # one request a connection, so that LIFETIME bounds it
    return config
