"""Tests of the choice of a route by method and path."""

from __future__ import annotations

import pytest

from tests.http.serving import refuse
from vsockproxy.http.message import Request, Response, text
from vsockproxy.http.router import Route, Router


def named(name: str, path: str, method: str = "GET") -> Route:
    async def answer(request: Request) -> Response:
        return text(f"{name} {dict(request.parameters)}")

    return Route(path, answer, method)


ROUTER = Router(
    [
        named("list", "/r"),
        named("one", "/r/{name:path}"),
        named("pause", "/r/{name:path}/pause", "POST"),
        named("get", "/c/{id:int}"),
        named("end", "/c/{id:int}", "DELETE"),
        named("dot", "/a.b"),
    ],
    refuse,
    None,
)


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/r", "list {}"),
        ("GET", "/r/", "list {}"),
        ("HEAD", "/r", "list {}"),
        ("GET", "/r/web", "one {'name': 'web'}"),
        ("GET", "/r/a/b\nc", "one {'name': 'a/b\\nc'}"),
        ("POST", "/r/a/pause/pause", "pause {'name': 'a/pause'}"),
        ("GET", "/c/7", "get {'id': 7}"),
        ("DELETE", "/c/7", "end {'id': 7}"),
    ],
)
async def test_the_route_of_method_and_path_answers(method: str, path: str, answer: str) -> None:
    response = await ROUTER.answer(Request(method, path))
    assert response.body == answer.encode()


@pytest.mark.parametrize(
    "path", ["/", "/x", "/c/x", "/c/" + "9" * 5000, "/aXb", "/r/web/pauses/.."]
)
async def test_another_path_is_not_found(path: str) -> None:
    response = await ROUTER.answer(Request("DELETE", path))
    assert response.status == (405 if path.startswith("/r/") else 404)


async def test_another_method_is_answered_with_those_of_all_routes_of_the_path() -> None:
    response = await ROUTER.answer(Request("PATCH", "/c/7"))
    assert response.status == 405
    assert response.headers == (("allow", "DELETE, GET, HEAD"),)
