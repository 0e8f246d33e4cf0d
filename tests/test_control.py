"""The operator's API: what it says of a daemon, what it makes it do, what it refuses."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.daemon import REPOSITORY
from tests.fakes import hold
from tests.sockets import ends_by_reset, read_to_end
from tests.steered import PATIENCE, Steered, steered
from vsockproxy.admin.operations import OPERATIONS, openapi
from vsockproxy.route import PumpChoice

DOCUMENT = REPOSITORY / "docs" / "admin-api.json"


@pytest.fixture(params=["native", "portable"])
def choice(request: pytest.FixtureRequest) -> PumpChoice:
    value: PumpChoice = request.param
    return value


# ---- asking ----


async def test_the_status_says_what_runs(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        said = await daemon.get("/v1/status")
        await client.aclose()
    assert said["ready"] is True
    assert said["lacking"] == []
    assert said["connections"] == 1
    assert said["fingerprint"] == daemon.supervisor.config.fingerprint
    assert said["reloads"] == {"success": 0, "failure": 0}
    assert 0 < said["uptime_seconds"] < PATIENCE


async def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert not daemon.socket.exists()


async def test_a_route_shows_its_state_counters_and_last_error(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        await client.send_eof()
        await read_to_end(client)
        await client.aclose()
        await daemon.closed("web", "finished")
        daemon.stats("web").dial_failed("refused", "nothing listens there")
        [route] = (await daemon.get("/v1/routes"))["routes"]
        assert route == await daemon.get("/v1/routes/web")
    assert route["state"] == "listening"
    assert (route["live"], route["connections"], route["closed"]) == (0, 1, {"finished": 1})
    assert (route["upstream_bytes"], route["downstream_bytes"]) == (1, 1)
    assert route["dial_failures"] == {"refused": 1}
    assert route["last_error"]["reason"] == "refused"
    assert route["last_error"]["message"] == "nothing listens there"


async def test_a_connection_shows_its_bytes_rates_ages_and_halves(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with steered(tmp_path, "web", choice=choice) as daemon:
        client, connection = await daemon.live("web")
        shown = await daemon.get(f"/v1/connections/{connection.number}")
        [listed] = (await daemon.get("/v1/connections"))["connections"]
        await client.aclose()
    assert listed["id"] == shown["id"] == connection.number
    assert shown["route"] == "web"
    assert shown["client"] == "unix"
    assert shown["state"] == "open"
    assert shown["halves"] == {"upstream": "open", "downstream": "open"}
    assert (shown["upstream_bytes"], shown["downstream_bytes"]) == (1, 1)
    assert shown["upstream_rate"] >= 0
    assert 0 < shown["dial_seconds"] < shown["age_seconds"] < PATIENCE
    assert 0 <= shown["idle_seconds"] <= shown["age_seconds"]


async def test_rates_are_of_the_time_between_two_looks(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        await daemon.get("/v1/connections")
        await client.send_all(b"x" * 100_000)
        received = 0
        while received < 100_000:
            received += len(await client.receive_some())
        [moving] = (await daemon.get("/v1/connections"))["connections"]
        await client.aclose()
    assert 100_000 / PATIENCE < moving["upstream_rate"] < 400_000
    assert 100_000 / PATIENCE < moving["downstream_rate"] < 400_000


async def test_a_half_that_has_ended_is_shown(tmp_path: Path, choice: PumpChoice) -> None:
    async with steered(tmp_path, "web", service=hold, choice=choice) as daemon:
        client = await daemon.connect("web")
        await client.send_eof()
        with trio.fail_after(PATIENCE):
            while True:
                shown = (await daemon.get("/v1/connections"))["connections"]
                if shown and shown[0]["state"] == "half-closed":
                    break
        await client.aclose()
    assert shown[0]["halves"] == {"upstream": "ended", "downstream": "open"}


async def test_connections_come_page_by_page_in_the_order_asked_for(tmp_path: Path) -> None:
    async with steered(tmp_path, "a", "b") as daemon:
        clients = [await daemon.live(name) for name in ("a", "b", "a", "b", "a")]
        numbers = [connection.number for _, connection in clients]
        for sort, order, expected in (
            ("id", None, numbers),
            ("id", "desc", numbers[::-1]),
            ("age", None, numbers),
            ("route", None, numbers[::2] + numbers[1::2]),
        ):
            query = {"sort": sort, "limit": 2} | ({"order": order} if order else {})
            assert await all_pages(daemon, query) == expected, (sort, order)
        only = await daemon.get("/v1/connections", route="b")
        for client, _ in clients:
            await client.aclose()
    assert [one["id"] for one in only["connections"]] == numbers[1::2]
    assert only["total"] == 2


async def all_pages(daemon: Steered, query: dict[str, Any]) -> list[int]:
    """The ids of every page, each of which says how many there are."""
    found: list[int] = []
    after: dict[str, str] = {}
    while True:
        page = await daemon.get("/v1/connections", **query, **after)
        found += [one["id"] for one in page["connections"]]
        assert page["total"] == 5
        assert len(page["connections"]) <= query["limit"]
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


# ---- steering ----


async def test_one_connection_is_ended_and_counted_as_killed(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with steered(tmp_path, "web", choice=choice) as daemon:
        client, connection = await daemon.live("web")
        other, _ = await daemon.live("web")
        answer = await daemon.ask("DELETE", f"/v1/connections/{connection.number}")
        assert answer.json() == {"ended": [connection.number]}
        await daemon.closed("web", "killed")
        await ends_by_reset(client)
        await other.send_all(b"y")
        assert await other.receive_some() == b"y"
        again = await daemon.ask("DELETE", f"/v1/connections/{connection.number}")
        await other.aclose()
    assert again.status_code == 404
    assert again.json()["error"] == f"there is no live connection {connection.number}"


async def test_all_connections_of_a_route_are_ended(tmp_path: Path) -> None:
    async with steered(tmp_path, "a", "b") as daemon:
        first, one = await daemon.live("a")
        second, two = await daemon.live("a")
        third, _ = await daemon.live("b")
        said = await daemon.post("/v1/connections/end", {"route": "a"})
        await daemon.closed("a", "killed", 2)
        assert len(daemon.stats("b").live) == 1
        for client in (first, second, third):
            await client.aclose()
    assert said == {"ended": [one.number, two.number]}


@pytest.mark.parametrize("body", [{}, {"all": False}, {"all": True, "route": "a"}])
async def test_nothing_is_ended_without_saying_what(tmp_path: Path, body: object) -> None:
    async with steered(tmp_path, "a") as daemon:
        client, _ = await daemon.live("a")
        answer = await daemon.ask("POST", "/v1/connections/end", body)
        assert len(daemon.stats("a").live) == 1
        await client.aclose()
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "remedy"}


async def test_every_connection_is_ended_when_that_is_said(tmp_path: Path) -> None:
    async with steered(tmp_path, "a", "b") as daemon:
        clients = [await daemon.live(name) for name in ("a", "b")]
        said = await daemon.post("/v1/connections/end", {"all": True})
        await daemon.closed("b", "killed")
        for client, _ in clients:
            await client.aclose()
    assert len(said["ended"]) == 2


# ---- what is refused ----


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/routes/nobody", 404),
        ("POST", "/v1/routes/nobody/pause", 404),
        ("GET", "/v1/connections/12345", 404),
        ("GET", "/v1/connections?sort=luck", 400),
        ("GET", "/v1/connections?limit=0", 400),
        ("GET", "/v1/connections?colour=red", 400),
        ("GET", "/v1/connections?after=%5B%22x%22,1%5D", 400),
        ("GET", "/v1/connections?after=%5B%5B%5B", 400),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v2/status", 404),
    ],
)
async def test_what_cannot_be_meant_gets_an_error_and_a_remedy(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with steered(tmp_path, "web") as daemon:
        answer = await daemon.ask(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "remedy"}
    assert all(answer.json().values())


# ---- the document ----


def test_the_published_document_is_that_of_the_code() -> None:
    assert json.loads(DOCUMENT.read_text()) == openapi()


def test_every_operation_is_in_the_document() -> None:
    described = {
        (method.upper(), path) for path, methods in openapi()["paths"].items() for method in methods
    }
    assert described == {(one.method, one.published_path) for one in OPERATIONS}


async def test_the_document_is_served(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        assert await daemon.get("/v1/schema") == openapi()
