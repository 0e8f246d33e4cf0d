"""The operations of the control API, and its OpenAPI document.

Owns: `OPERATIONS`, from which `control` makes its paths, and the document that
docs/admin-api.json publishes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vsockproxy.admin import schema
from vsockproxy.config.permission import Level

VERSION: Final = "1"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
      name: the method of `control._Api` that performs it.
      path: as `router.Route` has it, with the types of its parameters.
      changes: adds, replaces or removes routes or guests.
    """

    name: str
    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    summary: str
    answer: type[BaseModel] | None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    changes: bool = False

    @property
    def level(self) -> Level:
        """Return the permission that it needs."""
        if self.changes:
            return "change"
        return "read" if self.method == "GET" else "steer"

    @property
    def parameters(self) -> list[str]:
        """Return the names of the path's parameters."""
        return _PARAMETER.findall(self.path)

    @property
    def published_path(self) -> str:
        """Return the path as OpenAPI writes it, without the types of its parameters."""
        return _PARAMETER.sub(r"{\1}", self.path)


_PARAMETER: Final = re.compile(r"\{(\w+):\w+\}")


_ROUTE: Final = "/v1/routes/{name:path}"  # a name can have slashes
_CONNECTION: Final = "/v1/connections/{id:int}"

OPERATIONS: Final = (
    Operation("status", "GET", "/v1/status", "Get the daemon's state.", schema.Status),
    Operation("routes", "GET", "/v1/routes", "List the routes.", schema.Routes),
    Operation("route", "GET", _ROUTE, "Get a route's state and counters.", schema.Route),
    Operation(
        "pause",
        "POST",
        f"{_ROUTE}/pause",
        "Stop accepting: clients are queued in the backlog, live connections go on.",
        schema.Route,
    ),
    Operation(
        "drain",
        "POST",
        f"{_ROUTE}/drain",
        "Close the listener: clients are refused, live connections go on.",
        schema.Route,
    ),
    Operation(
        "resume",
        "POST",
        f"{_ROUTE}/resume",
        "Accept again on a paused or drained route.",
        schema.Route,
    ),
    Operation(
        "connections",
        "GET",
        "/v1/connections",
        "List the live connections, page by page.",
        schema.Connections,
        query=schema.ConnectionQuery,
    ),
    Operation(
        "end_some",
        "POST",
        "/v1/connections/end",
        "End the selected connections.",
        schema.Ended,
        body=schema.EndRequest,
    ),
    Operation("connection", "GET", _CONNECTION, "Get a live connection.", schema.Connection),
    Operation("end", "DELETE", _CONNECTION, "End a connection.", schema.Ended),
    Operation(
        "reload",
        "POST",
        "/v1/reload",
        "Reload the configuration, as SIGHUP does.",
        schema.Reloaded,
        query=schema.ReloadQuery,
    ),
    Operation(
        "log_level",
        "POST",
        "/v1/log-level",
        "Log from another level on, until the daemon ends.",
        schema.LogLevelSet,
        body=schema.LogLevelRequest,
    ),
    *(
        operation
        for kind, path in (("route", _ROUTE), ("guest", "/v1/guests/{name:path}"))
        for operation in (
            Operation(
                f"add_{kind}",
                "POST",
                f"/v1/{kind}s",
                f"Add a {kind}, until the daemon ends or, with persist, in a file.",
                schema.Changed,
                query=schema.ChangeQuery,
                body=schema.Entry,
                changes=True,
            ),
            Operation(
                f"replace_{kind}",
                "PUT",
                path,
                f"Replace a {kind} that was added.",
                schema.Changed,
                body=schema.Entry,
                changes=True,
            ),
            Operation(
                f"remove_{kind}",
                "DELETE",
                path,
                f"Remove a {kind} that was added, and the file that persist has written.",
                schema.Changed,
                changes=True,
            ),
        )
    ),
    Operation("config", "GET", "/v1/config", "Get the configuration.", schema.Configuration),
    Operation(
        "events",
        "GET",
        "/v1/events",
        "List the last failures and changes.",
        schema.Events,
        query=schema.EventsQuery,
    ),
    Operation("document", "GET", "/v1/schema", "Get this document.", None),
)


@cache
def openapi() -> dict[str, Any]:
    """Return the API as an OpenAPI 3.1 document."""
    models: set[type[BaseModel]] = {schema.Failure}
    for operation in OPERATIONS:
        models.update(filter(None, (operation.answer, operation.body)))
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "serialization") for model in ordered],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.published_path, {})[operation.method.lower()] = _described(
            operation
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vsockproxy control API, on a Unix socket",
            "version": VERSION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [*_in_path(operation), *_in_query(operation)],
        "responses": {
            "200": {"description": operation.summary, "content": _json(operation.answer)},
            "403": {
                "description": f"The client may not {operation.level}: see [admin] may.",
                "content": _json(schema.Failure),
            },
            "default": {
                "description": "The request failed; nothing has changed.",
                "content": _json(schema.Failure),
            },
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body)}
    return described


def _json(model: type[BaseModel] | None) -> dict[str, Any]:
    shape = {} if model is None else {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"application/json": {"schema": shape}}


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "integer" if name == "id" else "string"},
        }
        for name in operation.parameters
    ]


def _in_query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    properties: dict[str, dict[str, Any]] = operation.query.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": shape}
        for name, shape in properties.items()
    ]
