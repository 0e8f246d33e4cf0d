"""The operations of the API: what can be asked where, and the document that says so.

Owns: `OPERATIONS`, of which `control` makes its paths, and the OpenAPI document that
docs/admin-api.json publishes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vsockproxy.admin import schema

VERSION: Final = "1"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; ``name`` is the method of `control` that serves it."""

    name: str
    method: Literal["GET", "POST", "DELETE"]
    path: str
    says: str
    answer: type[BaseModel] | None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None

    @property
    def parameters(self) -> list[str]:
        """The names in braces of the path."""
        return _PARAMETER.findall(self.path)

    @property
    def published_path(self) -> str:
        """The path without the kinds of its parameters, which are starlette's."""
        return _PARAMETER.sub(r"{\1}", self.path)


_PARAMETER: Final = re.compile(r"\{(\w+):\w+\}")


_ROUTE: Final = "/v1/routes/{name:path}"  # a name can be a path itself
_CONNECTION: Final = "/v1/connections/{id:int}"

OPERATIONS: Final = (
    Operation("status", "GET", "/v1/status", "The daemon as a whole.", schema.Status),
    Operation("routes", "GET", "/v1/routes", "Every route.", schema.Routes),
    Operation("route", "GET", _ROUTE, "One route.", schema.Route),
    Operation(
        "pause",
        "POST",
        f"{_ROUTE}/pause",
        "Accept no more for now: clients wait in the backlog, live connections go on.",
        schema.Route,
    ),
    Operation(
        "drain",
        "POST",
        f"{_ROUTE}/drain",
        "Close the listener: clients are refused, live connections go on until they end.",
        schema.Route,
    ),
    Operation(
        "resume",
        "POST",
        f"{_ROUTE}/resume",
        "Accept again; after a drain, listen anew.",
        schema.Route,
    ),
    Operation(
        "connections",
        "GET",
        "/v1/connections",
        "The live connections, page by page.",
        schema.Connections,
        query=schema.ConnectionQuery,
    ),
    Operation(
        "end_some",
        "POST",
        "/v1/connections/end",
        "End connections now, both ways.",
        schema.Ended,
        body=schema.EndQuestion,
    ),
    Operation("connection", "GET", _CONNECTION, "One live connection.", schema.Connection),
    Operation("end", "DELETE", _CONNECTION, "End a connection now, both ways.", schema.Ended),
    Operation(
        "reload",
        "POST",
        "/v1/reload",
        "Read the configuration again, as SIGHUP does.",
        schema.Reloaded,
    ),
    Operation("config", "GET", "/v1/config", "The configuration in force.", schema.Configuration),
    Operation(
        "events",
        "GET",
        "/v1/events",
        "The last failures and changes.",
        schema.Events,
        query=schema.EventsQuery,
    ),
    Operation("document", "GET", "/v1/schema", "This document.", None),
)


def openapi() -> dict[str, Any]:
    """The API as an OpenAPI 3.1 document."""
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
            "title": "vsockproxy's control API, on a Unix socket",
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
        "summary": operation.says,
        "parameters": [*_in_path(operation), *_in_query(operation)],
        "responses": {
            "200": {"description": operation.says, "content": _json(operation.answer)},
            "default": {"description": "Nothing was done.", "content": _json(schema.Failure)},
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
