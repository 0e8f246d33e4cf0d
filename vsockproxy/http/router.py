"""Which function answers a request: routes by method and path, and an answer for every failure.

Owns: 404, 405 and 500.  An exception of a function never leaves `Router.answer`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from vsockproxy.errors import first_of
from vsockproxy.http.message import HttpError, Request, Response

Answer = Callable[[Request], Awaitable[Response]]
"""Answers a request; may raise `HttpError`."""

Refuse = Callable[[Request | None, HttpError], Response]
"""Returns an error as a response; the request is None where none could be read."""

_PARAMETER: Final = re.compile(r"\{(\w+):(path|int)\}")
_PATTERNS: Final = {"path": ".+", "int": "[0-9]{1,18}"}


@dataclass(frozen=True, slots=True)
class Route:
    """A path and the function that answers it.

    Attributes:
      path: ``{name:path}`` in it is a parameter with any characters, ``{id:int}`` a number.
      method: one with GET answers HEAD too.
    """

    path: str
    answer: Answer
    method: str = "GET"

    @property
    def methods(self) -> frozenset[str]:
        """Return the methods that it answers."""
        return frozenset({"GET", "HEAD"} if self.method == "GET" else {self.method})


class Router:
    """Answer requests by the first route that fits."""

    def __init__(self, routes: Sequence[Route], refuse: Refuse, log: Any) -> None:
        """``log`` has the ``warning`` of `output.Throttle`."""
        self._routes = [(_compiled(route.path), route) for route in routes]
        self.refuse = refuse
        self._log = log

    async def answer(self, request: Request) -> Response:
        """Return the response to a request, whatever happens to its function."""
        try:
            route, parameters = self._find(request)
            return await route.answer(replace(request, parameters=parameters))
        except HttpError as error:
            return self.refuse(request, error)
        except Exception as error:  # noqa: BLE001 - a defect in an answer must not end the daemon
            self.log_failure(error, request)
            return self.refuse(request, HttpError(500, "internal error: see the daemon's log"))

    def log_failure(self, error: BaseException, request: Request | None = None) -> None:
        """Log an exception that is no error of the client; equal ones are throttled."""
        error = first_of(error)
        names = {} if request is None else {"request": f"{request.method} {request.path}"}
        self._log.warning(
            "http_request_failed",
            lambda: names,
            reason=type(error).__name__,
            error=repr(error),
            exc_info=error,
        )

    def _find(self, request: Request) -> tuple[Route, dict[str, Any]]:
        found = list(self._matching(request.path))
        if not found:  # a slash at the end is forgiven
            found = list(self._matching(request.path.rstrip("/")))
        for route, parameters in found:
            if request.method in route.methods:
                return route, parameters
        if not found:
            raise HttpError(404, "not found")
        allowed = sorted({method for route, _ in found for method in route.methods})
        raise HttpError(405, "method not allowed", (("allow", ", ".join(allowed)),))

    def _matching(self, path: str) -> Iterator[tuple[Route, dict[str, Any]]]:
        for pattern, route in self._routes:
            if match := pattern.fullmatch(path):
                yield route, _parameters(route.path, match)


def _compiled(path: str) -> re.Pattern[str]:
    """Return a path as a pattern."""
    pieces: list[str] = []
    end = 0
    for parameter in _PARAMETER.finditer(path):
        name, kind = parameter.groups()
        pieces += [re.escape(path[end : parameter.start()]), f"(?P<{name}>{_PATTERNS[kind]})"]
        end = parameter.end()
    return re.compile("".join([*pieces, re.escape(path[end:])]), re.DOTALL)


def _parameters(path: str, match: re.Match[str]) -> dict[str, Any]:
    kinds = dict(_PARAMETER.findall(path))
    return {
        name: int(value) if kinds[name] == "int" else value
        for name, value in match.groupdict().items()
    }
