"""The control API, served only on the control socket: its clients can change the daemon.

Owns: the HTTP of the API, and what each of `openapi.OPERATIONS` does.  The JSON is `schema`'s, the
daemon's state is read by `view`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final, NoReturn

from pydantic import BaseModel, ValidationError

from vsockproxy.admin import schema, view
from vsockproxy.admin.daemon_interface import Daemon
from vsockproxy.admin.filters import (
    find_connection,
    find_route,
    live_connections,
    page,
    select,
)
from vsockproxy.admin.json_body import json_bytes, json_pieces
from vsockproxy.admin.openapi import OPERATIONS, Operation, openapi
from vsockproxy.admin.permission import Requester, audit, denial, is_allowed, requester_of
from vsockproxy.admin.probes import up_to_date
from vsockproxy.admin.rates import Rates, connection_bytes
from vsockproxy.config.added import Kind
from vsockproxy.config.changes import Changes
from vsockproxy.config.permission import Level
from vsockproxy.config.tables import sentence_of
from vsockproxy.connection import Connection
from vsockproxy.errors import (
    AddressError,
    ConfigError,
    MissingError,
    OrderError,
    SocketError,
    VsockproxyError,
)
from vsockproxy.http.loop_share import body_of, every
from vsockproxy.http.message import JSON, HttpError, Request, Response
from vsockproxy.http.router import Answer, Route, Router
from vsockproxy.http.server import HttpServer
from vsockproxy.log.output import Throttle, get_logger, set_level
from vsockproxy.readable import escape
from vsockproxy.stats import RouteStats

_SEE_SCHEMA: Final = "GET /v1/schema lists the operations and their parameters"
_REMEDIES: Final = {
    413: "send one JSON object, as in GET /v1/schema",
    500: "report it with the log's line http_request_failed",
}
FORBIDDEN: Final = 403
_LONGEST_AUDIT: Final = 1000  # characters of a request in the log


class ApiError(HttpError):
    """An answer with a status other than 200: what failed, and what to do."""

    def __init__(self, status: int, error: str, remedy: str) -> None:
        super().__init__(status, error)
        self.remedy = remedy


def control_server(daemon: Daemon, further: Sequence[Route] = ()) -> HttpServer:
    """Return the server of the API and of ``further`` paths."""
    log = Throttle(get_logger())
    api = _Api(daemon)
    routes = [
        Route(
            operation.path,
            partial(_answer, daemon, operation, getattr(api, operation.name)),
            operation.method,
        )
        for operation in OPERATIONS
    ]
    readable = [replace(one, answer=partial(_answer_read, daemon, one.answer)) for one in further]
    router = Router([*routes, *readable], _refusal, log)
    return HttpServer("admin", router, log, identify=requester_of)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of an operation.

    Attributes:
      path: the parameters of its path.
      query, body: the operation's model of either; None if it has none.
    """

    path: Mapping[str, Any]
    query: Any = None
    body: Any = None


_Perform = Callable[[_Call], Awaitable["BaseModel | dict[str, Any]"]]


async def _answer(
    daemon: Daemon, operation: Operation, perform: _Perform, request: Request
) -> Response:
    if operation.level == "read":
        _check(daemon, request, "read")
        return await _performed(daemon, operation, perform, request)
    result = "failed"
    try:
        _check(daemon, request, operation.level)
        response = await _performed(daemon, operation, perform, request)
        result = "done"
    except HttpError as error:
        sentence = error.sentence.replace("\n", "; ")
        result = f"{'denied' if error.status == FORBIDDEN else 'failed'}: {sentence}"
        raise
    finally:  # a client that has gone, or a defect, also leaves its line
        what = _what(request)
        audit(get_logger(), request.peer or Requester(), operation.name, what, result)
    return response


async def _answer_read(daemon: Daemon, answer: Answer, request: Request) -> Response:
    _check(daemon, request, "read")
    return await answer(request)


def _check(daemon: Daemon, request: Request, level: Level) -> None:
    peer = (request.peer or Requester()).peer
    if not is_allowed(daemon.config.admin, peer, level):
        raise ApiError(FORBIDDEN, *denial(peer, level))


def _what(request: Request) -> str:
    """Return what an action is about, for its audit line: from the path, the query and the body."""
    path = [str(value) for value in request.parameters.values()]
    query = [f"{name}={value}" for name, values in request.query.items() for value in values]
    body = request.body.decode(errors="replace") if request.body else ""
    return " ".join([*path, *query, *filter(None, [body])])[:_LONGEST_AUDIT]


async def _performed(
    daemon: Daemon, operation: Operation, perform: _Perform, request: Request
) -> Response:
    await up_to_date(daemon)
    query = body = None
    if operation.query is not None:
        last = {name: values[-1] for name, values in request.query.items()}
        query = _validated(operation.query.model_validate, last)
    if operation.body is not None:
        body = _validated(operation.body.model_validate_json, request.body)
    answer = await perform(_Call(request.parameters, query, body))
    pieces = iter([json_bytes(answer)]) if isinstance(answer, dict) else json_pieces(answer)
    return Response(await body_of(pieces), media_type=JSON)


def _validated(validate: Callable[[Any], BaseModel], data: object) -> BaseModel:
    try:
        return validate(data)
    except ValidationError as error:
        raise ApiError(400, _sentence(error), _SEE_SCHEMA) from error


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, detail['loc'])) or 'the body'}: {sentence_of(detail)}"
        for detail in error.errors(include_url=False)
    )


def _refusal(request: Request | None, error: HttpError) -> Response:
    sentence, remedy = error.sentence, _REMEDIES.get(error.status, _SEE_SCHEMA)
    if isinstance(error, ApiError):
        remedy = error.remedy
    elif request is not None:
        sentence = f"{request.method} {request.path}: {sentence}"
    content = json.dumps({"error": sentence, "remedy": remedy}).encode()
    return Response(content, error.status, JSON, error.headers)


class _Api:
    """The operations: each is the method of its name in `openapi.OPERATIONS`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._rates = Rates(connection_bytes)

    # ---- reading ----

    async def status(self, _call: _Call) -> schema.Status:
        return view.status(self._daemon)

    async def routes(self, _call: _Call) -> schema.Routes:
        daemon = self._daemon
        return schema.Routes(
            routes=(view.route(daemon, stats) for stats in daemon.supervisor.stats())
        )

    async def route(self, call: _Call) -> schema.Route:
        return view.route(self._daemon, self._route(call.path["name"]))

    async def connections(self, call: _Call) -> schema.Connections:
        query: schema.ConnectionQuery = call.query
        await self._rates.look(live_connections(self._daemon))
        selected = await self._selected(query.route, query.client)
        try:
            shown, following = await page(selected, query, self._rates)
        except VsockproxyError as error:
            raise ApiError(400, str(error), "get the first page: leave after out") from error
        return schema.Connections(
            total=len(selected),
            connections=(view.connection(live, self._rates) for live in shown),
            next=following,
        )

    async def connection(self, call: _Call) -> schema.Connection:
        number: int = call.path["id"]
        self._connection(number)
        await self._rates.look(live_connections(self._daemon))
        return view.connection(self._connection(number), self._rates)

    async def config(self, _call: _Call) -> schema.Configuration:
        return view.configuration(self._daemon)

    async def events(self, call: _Call) -> schema.Events:
        query: schema.EventsQuery = call.query
        return schema.Events(events=view.events(self._daemon, query.after))

    async def document(self, _call: _Call) -> dict[str, Any]:
        return openapi()

    # ---- changing ----

    async def end(self, call: _Call) -> schema.Ended:
        return await _end_all([self._connection(call.path["id"])])

    async def end_some(self, call: _Call) -> schema.Ended:
        request: schema.EndRequest = call.body
        has_filter = request.route is not None or request.client is not None
        if has_filter == request.all:
            raise ApiError(
                400,
                "all excludes route and client" if has_filter else "no connection is selected",
                'send {"route": NAME}, {"client": ADDRESS}, both, or {"all": true} alone',
            )
        return await _end_all(await self._selected(request.route, request.client))

    async def pause(self, call: _Call) -> schema.Route:
        return await self._order(call, self._daemon.pause)

    async def drain(self, call: _Call) -> schema.Route:
        return await self._order(call, self._daemon.drain)

    async def resume(self, call: _Call) -> schema.Route:
        return await self._order(call, self._daemon.resume)

    async def _order(self, call: _Call, order: Callable[[str], Awaitable[None]]) -> schema.Route:
        stats = self._route(call.path["name"])
        try:
            await order(stats.route.name)
        except OrderError as error:
            raise ApiError(409, str(error), error.remedy) from error
        except SocketError as error:
            remedy = f"the route stays drained; {error.remedy}"
            raise ApiError(409, error.summary, remedy) from error
        return view.route(self._daemon, stats)

    async def reload(self, call: _Call) -> schema.Reloaded:
        query: schema.ReloadQuery = call.query
        daemon = self._daemon
        try:
            changes = await (daemon.preview_reload() if query.dry_run else daemon.reload())
        except OrderError as error:
            raise ApiError(409, str(error), error.remedy) from error
        names = {name: list(listed) for name, listed in asdict(changes).items()}
        return schema.Reloaded(
            fingerprint=daemon.reloads.fingerprint, source=escape(daemon.config.source), **names
        )

    async def log_level(self, call: _Call) -> schema.LogLevelSet:
        request: schema.LogLevelRequest = call.body
        level = set_level(request.level)
        get_logger().info("log_level_changed", to=level)
        return schema.LogLevelSet(level=level)

    # ---- what is added at run time ----

    async def add_route(self, call: _Call) -> schema.Changed:
        return await self._add("route", call)

    async def replace_route(self, call: _Call) -> schema.Changed:
        return await self._replace("route", call)

    async def remove_route(self, call: _Call) -> schema.Changed:
        return await _changed(self._daemon.changing_entries.remove("route", call.path["name"]))

    async def add_guest(self, call: _Call) -> schema.Changed:
        return await self._add("guest", call)

    async def replace_guest(self, call: _Call) -> schema.Changed:
        return await self._replace("guest", call)

    async def remove_guest(self, call: _Call) -> schema.Changed:
        return await _changed(self._daemon.changing_entries.remove("guest", call.path["name"]))

    async def _add(self, kind: Kind, call: _Call) -> schema.Changed:
        table = dict(call.body.root)
        name = table.pop("name", None)
        if not isinstance(name, str):
            raise ApiError(400, f"the body has no name of a {kind}", 'send {"name": NAME, ...}')
        query: schema.ChangeQuery = call.query
        change = self._daemon.changing_entries.add(kind, name, table, persist=query.persist)
        return await _changed(change)

    async def _replace(self, kind: Kind, call: _Call) -> schema.Changed:
        name, table = call.path["name"], dict(call.body.root)
        if table.pop("name", name) != name:
            remedy = f"leave name out; to rename a {kind}, add the new one and remove the old one"
            raise ApiError(400, f"the body has another name than {name!r}", remedy)
        return await _changed(self._daemon.changing_entries.replace(kind, name, table))

    # ---- lookup ----

    async def _selected(self, route: str | None, client: str | None) -> list[Connection]:
        """Return the connections that match both filters; one that can match none is an error."""
        if route is not None:
            self._route(route)
        try:
            return await select(self._daemon, route, client)
        except AddressError as error:
            remedy = "write an address as connections shows it, an IP network, or CIDs as in 3-9"
            raise ApiError(400, str(error), remedy) from error

    def _route(self, name: str) -> RouteStats:
        return find_route(self._daemon, name) or _not_found(
            f"there is no route {name!r}", "vsockproxy status (GET /v1/routes) lists the routes"
        )

    def _connection(self, number: int) -> Connection:
        return find_connection(self._daemon, number) or _not_found(
            f"there is no live connection {number}", "GET /v1/connections lists the connections"
        )


async def _changed(change: Awaitable[Changes]) -> schema.Changed:
    """Return what a change has changed, or raise why it could not be made."""
    try:
        changes = asdict(await change)
    except MissingError as error:
        raise ApiError(404, str(error), error.remedy) from error
    except OrderError as error:
        raise ApiError(409, str(error), error.remedy) from error
    except ConfigError as error:
        raise ApiError(400, str(error), "nothing has changed: correct it, and repeat") from error
    except SocketError as error:
        remedy = f"nothing has changed; {error.remedy}"
        raise ApiError(409, error.summary, remedy) from error
    return schema.Changed(**{name: list(changes[name]) for name in schema.Changed.model_fields})


async def _end_all(connections: list[Connection]) -> schema.Ended:
    return schema.Ended(ended=sorted(await every(map(_end, connections))))


def _end(live: Connection) -> int:
    live.end("killed")
    return live.number


def _not_found(error: str, remedy: str) -> NoReturn:
    raise ApiError(404, error, remedy)
