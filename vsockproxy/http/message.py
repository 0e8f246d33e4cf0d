"""A request and its response, as values, and `HttpError`: a response that a function raises."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

TEXT: Final = "text/plain; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"
JSON: Final = "application/json"

_MAX_PARAMETERS: Final = 200  # of a query; splitting one takes time


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read to its end.

    Attributes:
      path: without percent-encoding.
      query: the values of each parameter, in the order sent.
      headers: by names in lower case; several of one name are joined by commas.
      parameters: those in the path, as the route that matched names them.
      peer: the client, as the server's `server.Identify` tells it.
      is_local: whether only this machine's clients reach its listener.
    """

    method: str
    path: str
    query: Mapping[str, list[str]] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    peer: Any = None
    is_local: bool = False


Body = bytes | AsyncGenerator[bytes, None]
"""All bytes, or pieces that are made while they are sent; the server closes the generator."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; the server adds the headers of the connection."""

    body: Body = b""
    status: int = 200
    media_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


class HttpError(Exception):
    """A status other than 200, and a sentence that says why."""

    def __init__(
        self, status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self.status = status
        self.sentence = sentence
        self.headers = headers
        super().__init__(sentence)


def text(content: str, status: int = 200) -> Response:
    """Return a plain text."""
    return Response(content.encode(errors="replace"), status)


def split_target(target: str) -> tuple[str, dict[str, list[str]]]:
    """Return the path and the query of a request's target (RFC 9112, section 3.2).

    Raises:
      HttpError: the target is malformed, or has too many parameters.
    """
    try:
        if target.startswith("/"):  # urlsplit takes //x for a host
            path, _, query = target.partition("?")
        else:
            parts = urlsplit(target)
            path, query = parts.path or "/", parts.query
        parameters = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise HttpError(400, f"malformed target: {error}") from error
    return unquote(path), parameters
