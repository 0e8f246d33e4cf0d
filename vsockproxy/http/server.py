"""HTTP on listening sockets, for few clients that may be slow, silent or hostile.

Owns: accepting, the number of clients, and the time of each.  No failure ends a server: one that
cannot accept waits and tries again.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

import trio

from vsockproxy.http.exchange import exchange
from vsockproxy.http.message import Request
from vsockproxy.http.router import Router
from vsockproxy.reasons import accept_remedy

LIFETIME: Final = 20.0
"""Seconds for a connection: handshake, request and answer; Prometheus gives up after 10."""

MAX_CLIENTS: Final = 32
"""Clients of one server at a time; one more closes the oldest."""

_FIRST_PAUSE: Final = 0.01  # seconds after a failed accept; doubled up to the longest
_LONGEST_PAUSE: Final = 1.0

Tls = Callable[[], ssl.SSLContext | None]
"""Return the certificates for the next client; None serves it without TLS."""


Identify = Callable[[socket.socket], object]
"""Return a client's identity, for `Request.peer`; the socket stays the server's."""


def unidentified(_client: socket.socket) -> None:
    """Return nothing about a client."""


def without_tls() -> None:
    """Return no certificates."""


def is_local(listener: socket.socket) -> bool:
    """Return whether only clients of this machine reach a listener: a Unix or loopback address."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return listener.family == socket.AF_UNIX  # systemd can pass a vsock listener
    address = ip_address(listener.getsockname()[0].partition("%")[0])
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class HttpServer:
    """The clients of one server, at any number of listening sockets."""

    def __init__(
        self,
        name: str,
        router: Router,
        log: Any,
        *,
        tls: Tls = without_tls,
        identify: Identify = unidentified,
        lifetime: float = LIFETIME,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """``name`` is for the log, which has the ``warning`` of `output.Throttle`.

        Args:
          lifetime: seconds after which a client's connection is closed.
        """
        self._name = name
        self._router = router
        self._log = log
        self._tls = tls
        self._identify = identify
        self._lifetime = lifetime
        self._max_clients = max_clients
        self._open: dict[trio.CancelScope, None] = {}  # the oldest first
        self._answers = 0
        self._answered = trio.lowlevel.ParkingLot()

    async def serve(
        self,
        sockets: Sequence[socket.socket],
        clients: trio.Nursery | None = None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve clients at non-blocking listening sockets until cancelled; they stay the caller's.

        Clients run in ``clients``, where they may outlive this call; by default they are closed
        with it, and no answer is waited for.
        """
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(self._accept, sock, clients or nursery)
            task_status.started()
            await trio.sleep_forever()

    async def finish(self) -> None:
        """Return once no client has a request without its answer."""
        while self._answers:
            await self._answered.park()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        self._answers += 1
        try:
            yield
        finally:
            self._answers -= 1
            self._answered.unpark_all()

    async def _accept(self, sock: socket.socket, clients: trio.Nursery) -> None:
        pause = _FIRST_PAUSE
        about = partial(replace, is_local=is_local(sock))
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                client, _ = sock.accept()
            except BlockingIOError:  # another process took it, or the client has gone
                continue
            except OSError as error:
                self._log_failed_accept(error)
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE
            self._close_oldest()
            clients.start_soon(self._serve, client, about, name="http client")

    async def _serve(self, client: socket.socket, about: Callable[..., Request]) -> None:
        """Serve one client, and close it: at its end, after its lifetime or when cancelled."""
        stream = self._encrypted(trio.SocketStream(trio.socket.from_stdlib_socket(client)))
        with trio.move_on_after(self._lifetime) as scope:
            self._open[scope] = None
            try:
                async with stream:
                    known = partial(about, peer=self._identify(client))
                    await exchange(stream, self._router, self._answering, known)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has gone
            except Exception as error:  # noqa: BLE001 - one client must not end the daemon
                self._router.log_failure(error)
            finally:
                self._open.pop(scope, None)

    def _encrypted(self, stream: trio.SocketStream) -> trio.abc.Stream:
        """Return the stream under TLS, whose handshake is made by the first read; or as it is."""
        context = self._tls()
        if context is None:
            return stream
        return trio.SSLStream(stream, context, server_side=True, https_compatible=True)

    def _close_oldest(self) -> None:
        """Make room for one client: if many idle, the newest is the one with a request."""
        while len(self._open) >= self._max_clients:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()

    def _log_failed_accept(self, error: OSError) -> None:
        reason = errno.errorcode.get(error.errno or 0, "unknown")
        self._log.warning(
            "http_server_failed",
            lambda: {"server": self._name},
            reason=reason,
            error=error.strerror or str(error),
            remedy=accept_remedy(error.errno),
        )
