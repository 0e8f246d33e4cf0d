"""One request and its response on one stream, by h11.

Owns: the bounds on a request's size and time, what a client gets for a malformed one, and an end
that does not destroy the response.  A connection carries one request, so that its bounds are the
client's: nothing is left to bound between two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11
import trio

from vsockproxy.http.encoding import encoded, pieces_of
from vsockproxy.http.loop_share import turn
from vsockproxy.http.message import HttpError, Request, Response, split_target
from vsockproxy.http.router import Router

MAX_HEAD: Final = 8192  # bytes of a request line and its headers; parsing them takes 1.5 ms
MAX_BODY: Final = 65536  # bytes
REQUEST_TIMEOUT: Final = 10.0  # seconds for a TLS handshake and a request

_READ: Final = 4096  # bytes; h11 does not bound the head of one read
_DROPPED: Final = 65536  # bytes read at once, and dropped
_LINGER: Final = 1.0  # seconds for the client to close first
_MAX_UNREAD: Final = 1 << 20  # bytes dropped meanwhile
_VERSIONS: Final = (b"1.0", b"1.1")


Answering = Callable[[], AbstractContextManager[None]]
"""Is entered when a request is complete, and left when its response is sent."""


def _as_read(request: Request) -> Request:
    return request


async def exchange(
    stream: trio.abc.Stream,
    router: Router,
    answering: Answering = nullcontext,
    about: Callable[[Request], Request] = _as_read,
) -> None:
    """Read a request and send its response; the stream stays the caller's.

    ``about`` adds to the request what the server knows of its client.

    Raises:
      trio.BrokenResourceError: the client has gone.
    """
    await _Exchange(stream, router, answering, about).run()


class _Exchange:
    def __init__(
        self,
        stream: trio.abc.Stream,
        router: Router,
        answering: Answering,
        about: Callable[[Request], Request],
    ) -> None:
        self._stream = stream
        self._router = router
        self._answering = answering
        self._about = about
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._is_head = False

    async def run(self) -> None:
        try:
            request = await self._request()
        except HttpError as error:
            await self._send(self._router.refuse(None, error))
        else:
            if request is None:
                return
            with self._answering():
                response = await self._router.answer(self._about(request))
                accept = request.headers.get("accept-encoding", "")
                await self._send(encoded(response, accept))
        await self._linger()

    # ---- the request ----

    async def _request(self) -> Request | None:
        """Return the request; None if the client closes without one."""
        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                return await self._complete_request()
        except trio.TooSlowError:
            sentence = f"no complete request within {REQUEST_TIMEOUT:g} s"
            raise HttpError(408, sentence) from None
        except h11.RemoteProtocolError as error:
            raise HttpError(error.error_status_hint, str(error)) from error
        except ValueError as error:  # h11 before 0.16: a length of thousands of digits
            raise HttpError(400, "a header is not valid") from error

    async def _complete_request(self) -> Request | None:
        head: h11.Request | None = None
        body = b""
        while True:
            async with turn():
                event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._receive()
            elif isinstance(event, h11.Request):
                self._is_head = event.method == b"HEAD"
                _check(event)
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
                if len(body) > MAX_BODY:
                    raise _too_long()
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, body)
            else:
                return None

    async def _receive(self) -> None:
        if self._http.they_are_waiting_for_100_continue:
            proceed = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self._stream.send_all(self._http.send(proceed) or b"")
        self._http.receive_data(bytes(await self._stream.receive_some(_READ)))

    # ---- the response ----

    async def _send(self, response: Response) -> None:
        pieces = pieces_of(response.body)
        async with aclosing(pieces):
            unsent = self._http.send(_head(response)) or b""
            if not self._is_head:
                async for piece in pieces:
                    async with turn():  # TLS encrypts in it
                        unsent += self._http.send(h11.Data(data=piece)) or b""
                    await self._stream.send_all(unsent)
                    unsent = b""
            unsent += self._http.send(h11.EndOfMessage()) or b""
            if unsent:
                await self._stream.send_all(unsent)

    async def _linger(self) -> None:
        """End the stream and let the client close first.

        A close over bytes that were not read, such as the rest of a body that is too long, is a
        reset, which can overtake the response.
        """
        if not isinstance(self._stream, trio.SocketStream):
            return
        with trio.move_on_after(_LINGER):
            await self._stream.send_eof()
            unread = _MAX_UNREAD
            while unread > 0 and (piece := await self._stream.receive_some(_DROPPED)):
                unread -= len(piece)


def _check(head: h11.Request) -> None:
    """Raise `HttpError` for a request that need not be read to its end."""
    if head.http_version not in _VERSIONS:  # the preface of HTTP/2 is a request of 2.0
        raise HttpError(505, "use HTTP/1.1")
    length = dict(head.headers).get(b"content-length", b"0")
    if int(length) > MAX_BODY:
        raise _too_long()


def _too_long() -> HttpError:
    return HttpError(413, f"the body is longer than {MAX_BODY} bytes")


def _request(head: h11.Request, body: bytes) -> Request:
    path, query = split_target(head.target.decode("ascii"))
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return Request(head.method.decode("ascii"), path, query, headers, body)


def _head(response: Response) -> h11.Response:
    headers = [
        ("content-type", response.media_type),
        ("date", formatdate(usegmt=True)),
        ("connection", "close"),
        *response.headers,
    ]
    if isinstance(response.body, bytes):
        headers.append(("content-length", str(len(response.body))))
    reason = HTTPStatus(response.status).phrase
    return h11.Response(status_code=response.status, headers=headers, reason=reason)
