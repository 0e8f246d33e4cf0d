"""The API that an operator asks and steers the daemon by; for a Unix socket alone.

Owns: what each of `operations` does, and how a question that cannot be meant is answered.
The models are `schema`'s, the daemon's state is read by `view`.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.admin.server import serve_http
from vsockproxy.errors import VsockproxyError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp

    from vsockproxy.admin import schema
    from vsockproxy.admin.daemon import Daemon
    from vsockproxy.admin.operations import Operation
    from vsockproxy.stats import RouteStats

_LONGEST_BODY: Final = 65536
_SEE: Final = "GET /v1/schema lists what can be asked"
_UNREAD: Final = "send one JSON object, as GET /v1/schema has it"


class RefusedError(Exception):
    """An answer other than 200: why, and what would help."""

    def __init__(self, status: int, error: str, remedy: str) -> None:
        self.status = status
        self.error = error
        self.remedy = remedy
        super().__init__(error)


@dataclass(frozen=True, slots=True)
class _Question:
    """One request: the parameters of its path, and its query or its body as a model."""

    parameters: dict[str, Any]
    asked: Any = None


async def serve_control(
    sockets: Sequence[socket.socket],
    daemon: Daemon,
    beside: Sequence[Route] = (),
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API, and further routes ``beside`` it, on sockets that listen already.

    As `serve_http`.
    """
    await serve_http(sockets, _application(daemon, beside), task_status=task_status)


def _application(daemon: Daemon, beside: Sequence[Route]) -> ASGIApp:
    from starlette.applications import Starlette  # noqa: PLC0415 - see the package's docstring
    from starlette.exceptions import HTTPException  # noqa: PLC0415 - see above
    from starlette.routing import Route  # noqa: PLC0415 - see above

    from vsockproxy.admin.operations import OPERATIONS  # noqa: PLC0415 - see above

    api = _Api(daemon)
    routes = [
        Route(
            operation.path,
            partial(_serve, operation, getattr(api, operation.name)),
            methods=[operation.method],
        )
        for operation in OPERATIONS
    ]
    return Starlette(
        routes=[*routes, *beside],
        exception_handlers={RefusedError: _refuse, HTTPException: _refuse_http},
    )


_Serves = Callable[[_Question], Awaitable["BaseModel | dict[str, Any]"]]


async def _serve(operation: Operation, serves: _Serves, request: Request) -> Response:
    from starlette.responses import JSONResponse, Response  # noqa: PLC0415 - see above

    asked: Any = None
    if operation.query is not None:
        asked = _validated(operation.query.model_validate, dict(request.query_params))
    else:
        # Also where none is wanted: a client that still sends must not find it closed.
        body = await _body(request)
        if operation.body is not None:
            asked = _validated(operation.body.model_validate_json, body)
    answer = await serves(_Question(request.path_params, asked))
    if isinstance(answer, dict):
        return JSONResponse(answer)
    return Response(answer.model_dump_json(), media_type="application/json")


async def _body(request: Request) -> bytes:
    body = b""
    async with aclosing(request.stream()) as pieces:
        async for piece in pieces:
            body += piece
            if len(body) > _LONGEST_BODY:
                raise RefusedError(413, f"the body has more than {_LONGEST_BODY} bytes", _UNREAD)
    return body


def _validated(validate: Callable[[Any], BaseModel], data: object) -> BaseModel:
    from pydantic import ValidationError  # noqa: PLC0415 - see the package's docstring

    try:
        return validate(data)
    except ValidationError as error:
        raise RefusedError(400, _sentence(error), _SEE) from error


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, detail['loc'])) or 'the body'}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_input=False)
    )


def _refuse(_request: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse  # noqa: PLC0415 - see above

    assert isinstance(error, RefusedError)
    return JSONResponse({"error": error.error, "remedy": error.remedy}, error.status)


def _refuse_http(request: Request, error: Exception) -> Response:
    """What starlette refuses: a path, or a method, that there is not."""
    status: int = getattr(error, "status_code", 500)
    words = f"{request.method} {request.url.path}: {getattr(error, 'detail', error)}"
    return _refuse(request, RefusedError(status, words, _SEE))


class _Api:
    """The operations, each by its name in `operations.OPERATIONS`."""

    def __init__(self, daemon: Daemon) -> None:
        from vsockproxy.admin import schema, view  # noqa: PLC0415 - see the package's docstring
        from vsockproxy.admin.rates import Rates  # noqa: PLC0415 - see above

        self._daemon = daemon
        self._schema = schema
        self._view = view
        self._rates = Rates()

    # ---- asking ----

    async def status(self, _question: _Question) -> schema.Status:
        return self._view.status(self._daemon)

    async def routes(self, _question: _Question) -> schema.Routes:
        daemon = self._daemon
        return self._schema.Routes(
            routes=[self._view.route(daemon, stats) for stats in daemon.supervisor.stats()]
        )

    async def route(self, question: _Question) -> schema.Route:
        return self._view.route(self._daemon, self._stats(question))

    async def connections(self, question: _Question) -> schema.Connections:
        asked: schema.ConnectionQuery = question.asked
        await self._rates.look(self._view.selected(self._daemon))
        meant = list(self._view.selected(self._daemon, asked.route, asked.client))
        try:
            shown, following = self._view.page(meant, asked, self._rates)
        except VsockproxyError as error:
            raise RefusedError(400, str(error), "ask for the first page, without after") from error
        return self._schema.Connections(
            total=len(meant),
            connections=[self._view.connection(live, self._rates) for live in shown],
            next=following,
        )

    async def connection(self, question: _Question) -> schema.Connection:
        self._find(question)
        await self._rates.look(self._view.selected(self._daemon))
        return self._view.connection(self._find(question), self._rates)

    async def config(self, _question: _Question) -> schema.Configuration:
        return self._view.configuration(self._daemon)

    async def events(self, question: _Question) -> schema.Events:
        asked: schema.EventsQuery = question.asked
        found = self._daemon.events.after(asked.after)
        return self._schema.Events(
            events=[self._schema.Event(**event._asdict()) for event in found]
        )

    async def document(self, _question: _Question) -> dict[str, Any]:
        from vsockproxy.admin.operations import openapi  # noqa: PLC0415 - at its use

        return openapi()

    # ---- steering ----

    async def end(self, question: _Question) -> schema.Ended:
        live = self._find(question)
        live.end("killed")
        return self._schema.Ended(ended=[live.number])

    async def end_some(self, question: _Question) -> schema.Ended:
        asked: schema.EndQuestion = question.asked
        filtered = asked.route is not None or asked.client is not None
        if filtered == asked.all:
            raise RefusedError(
                400,
                "which connections is not said" if not filtered else "all of them, or some?",
                'send {"route": NAME}, {"client": ADDRESS}, both, or {"all": true} alone',
            )
        if asked.route is not None:
            self._named(asked.route)
        meant = list(self._view.selected(self._daemon, asked.route, asked.client))
        for live in meant:
            live.end("killed")
        return self._schema.Ended(ended=sorted(live.number for live in meant))

    async def pause(self, question: _Question) -> schema.Route:
        stats = self._configured(question)
        self._daemon.pause(stats.route.name)
        return self._view.route(self._daemon, stats)

    async def drain(self, question: _Question) -> schema.Route:
        stats = self._configured(question)
        await self._daemon.drain(stats.route.name)
        return self._view.route(self._daemon, stats)

    async def resume(self, question: _Question) -> schema.Route:
        stats = self._configured(question)
        try:
            await self._daemon.resume(stats.route.name)
        except VsockproxyError as error:
            remedy = "the route stays drained: free its listener, and resume it then"
            raise RefusedError(409, str(error), remedy) from error
        return self._view.route(self._daemon, stats)

    async def reload(self, _question: _Question) -> schema.Reloaded:
        problems = await self._daemon.reload()
        if problems:
            remedy = "nothing has changed: put it right, and reload again"
            raise RefusedError(409, "\n".join(problems), remedy)
        config = self._daemon.config
        return self._schema.Reloaded(fingerprint=config.fingerprint, source=config.source)

    # ---- finding ----

    def _stats(self, question: _Question) -> RouteStats:
        return self._named(question.parameters["name"])

    def _named(self, name: str) -> RouteStats:
        for stats in self._daemon.supervisor.stats():
            if stats.route.name == name:
                return stats
        raise RefusedError(
            404, f"there is no route {name!r}", "vsockproxy status (GET /v1/routes) lists them"
        )

    def _configured(self, question: _Question) -> RouteStats:
        """A route that the configuration still has; one that is gone only drains."""
        stats = self._stats(question)
        if any(stats.route.name == route.name for route in self._daemon.config.routes):
            return stats
        raise RefusedError(
            409,
            f"the route {stats.route.name!r} is gone from the configuration, and drains",
            "put it back, and reload",
        )

    def _find(self, question: _Question) -> Any:
        number = question.parameters["id"]
        for stats in self._daemon.supervisor.stats():
            for live in stats.live:
                if live.number == number:
                    return live
        raise RefusedError(
            404, f"there is no live connection {number}", "GET /v1/connections lists them"
        )
