"""The head of a client's first HTTP request, by h11, and answers that end the connection."""

from __future__ import annotations

from abc import abstractmethod
from http import HTTPStatus
from typing import Final

import h11

from vsockproxy.request.reader import MOST, Reader, Refusal, RequestError, Step

_VERSIONS: Final = (b"1.0", b"1.1")
_STATUSES: Final = {
    "denied": 403,
    "forbidden": 403,
    "unauthenticated": 407,
    "timeout": 504,
    "no_answer": 504,
}
_QUOTED: Final = 128
"""The most characters of h11's sentence, which may have a whole line of the client's."""

_CHALLENGE: Final = 'Proxy-Authenticate: Basic realm="vsockproxy"\r\n'


class HttpReader(Reader):
    """Read one head; what it asks for is a subclass's."""

    def __init__(self) -> None:
        super().__init__()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST - 1)
        self._data = b""
        self._method = b""

    def feed(self, data: bytes) -> Step:
        """Take what the client has sent; a request that is not valid has its answer in `output`."""
        self._data += data
        status = 400
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
            if not isinstance(event, h11.Request):
                return None
            self._method = event.method
            if event.http_version not in _VERSIONS:  # the preface of HTTP/2 is a request of 2.0
                status = 505
                raise RequestError("HTTP/2 without TLS is not served: use HTTP/1.1")
            return self._read(event)
        except h11.RemoteProtocolError as error:
            sentence = str(error)[:_QUOTED]
            self.output += self._answer(error.error_status_hint, sentence)
            raise RequestError(sentence) from error
        except ValueError as error:  # h11 before 0.16: a length of thousands of digits
            self.output += self._answer(status, "a header is not valid")
            raise RequestError("a header is not valid") from error
        except RequestError as error:
            self.output += self._answer(status, str(error))
            raise

    @abstractmethod
    def _read(self, head: h11.Request) -> Step:
        """Return what a head asks for.  Raises `RequestError`."""

    def refused(self, refusal: Refusal) -> bytes:
        """Return the status for a reason, with the sentence as the body."""
        return self._answer(_STATUSES.get(refusal.reason, 502), refusal.sentence)

    def _answer(self, status: int, sentence: str) -> bytes:
        body = f"vsockproxy: {sentence}\n".encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
            f"{_CHALLENGE if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED else ''}"
            "Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if self._method == b"HEAD" else body)

    @property
    def _rest(self) -> bytes:
        """Return the bytes behind the head."""
        return bytes(self._http.trailing_data[0])


def header(head: h11.Request, name: bytes) -> str:
    """Return the values of a header, joined by commas; empty without it."""
    return ",".join(value.decode("latin-1") for key, value in head.headers if key == name)
