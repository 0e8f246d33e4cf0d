"""The operator's API: what it says of a daemon, what it makes it do, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from tests.admin.fake_daemon import FakeDaemon
from tests.admin.running_daemon import PATIENCE, Steered, steered
from tests.daemon_process import REPOSITORY
from tests.fake_services import HOST_PORT, answers_nothing, echo, hold, mux_server, unix_listener
from tests.sockets import ends_by_reset, read_to_end
from vsockproxy.address.endpoint import MuxEndpoint, UnixEndpoint
from vsockproxy.admin.observe import read_only_routes
from vsockproxy.admin.operations import OPERATIONS, openapi
from vsockproxy.config.access import parse_rule
from vsockproxy.config.settings import AdminSettings, Config, Limits, Policy, PumpChoice
from vsockproxy.errors import ConfigError, Problem, dial_error

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
    assert said["not_ready"] == []
    assert said["live"] == 1
    assert said["fingerprint"] == daemon.daemon.config.fingerprint
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
        stats = daemon.stats("web")
        stats.dial_failures["refused"] += 1
        stats.keep_error(stats.route.target, dial_error(stats.route.target, errno.ECONNREFUSED))
        [route] = (await daemon.get("/v1/routes"))["routes"]
        alone = await daemon.get("/v1/routes/web")
    assert {**alone, "targets": []} == {**route, "targets": []}
    assert [target["state"] for target in alone["targets"]] == ["up"]
    assert route["state"] == "listening"
    assert (route["live"], route["accepted"], route["closed"]) == (0, 1, {"finished": 1})
    assert (route["upstream_bytes"], route["downstream_bytes"]) == (1, 1)
    assert route["dial_failures"] == {"refused": 1}
    assert route["last_error"]["reason"] == "refused"
    assert "nothing listens" in route["last_error"]["message"]


async def test_a_route_is_reached_only_where_its_target_answers(tmp_path: Path) -> None:
    target = MuxEndpoint(str(tmp_path / "guest"), 80)
    async with steered(tmp_path, "web", target=target) as daemon:
        absent = await daemon.ask("GET", "/readyz", target="web")
        [known] = (await daemon.get("/v1/routes/web"))["targets"]
        async with mux_server(tmp_path / "guest", {80: echo}):
            reached = await daemon.ask("GET", "/readyz", target="web")
        unknown = await daemon.ask("GET", "/readyz", target="nobody")
        plain = await daemon.ask("GET", "/readyz")
        alive = await daemon.ask("GET", "/healthz")
    assert absent.status_code == 503
    assert absent.text.startswith("route web: cannot dial vsock-mux:")
    assert known["state"] == "down"
    assert known["last_error"].startswith("cannot dial vsock-mux:")
    assert (reached.status_code, reached.text) == (200, "ready\n")
    assert (unknown.status_code, unknown.text) == (
        503,
        "route nobody: no route of this name listens\n",
    )
    assert (plain.status_code, alive.status_code) == (200, 200)


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


# ---- a connection as a library has it ----


async def test_a_connection_hands_out_duplicates_of_its_vsock_side_until_it_ends(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with steered(tmp_path, "web", choice=choice) as daemon:
        client, connection = await daemon.live("web")
        number = connection.file_descriptor
        assert number >= 0
        with connection.duplicate() as copy:
            assert copy.fileno() != number
            assert os.fstat(copy.fileno()).st_ino == os.fstat(number).st_ino
        connection.close()
        connection.close()
        await daemon.closed("web", "killed")
        assert connection.file_descriptor == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            connection.duplicate()
        assert await ends_by_reset(client) is False  # a Unix peer knows no reset
    assert str(connection).startswith("#1 unix -> tcp:127.0.0.1:")
    assert repr(connection).startswith("<Connection #1 ")
    assert connection == connection  # noqa: PLR0124 - what is tested
    assert len({connection, connection}) == 1


async def test_a_connection_is_ended_while_its_target_is_dialled(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "guest", {80: echo}, answers_nothing) as guest:
        target = MuxEndpoint(str(guest.path), 80)
        async with steered(tmp_path, "web", target=target) as daemon:
            client = await daemon.connect("web")
            with trio.fail_after(PATIENCE):
                while not (found := (await daemon.get("/v1/connections"))["connections"]):
                    await trio.lowlevel.checkpoint()
            assert found[0]["state"] == "dialling"
            assert found[0]["dial_seconds"] is None
            assert found[0]["destination_port"] == 80
            await daemon.ask("DELETE", f"/v1/connections/{found[0]['id']}")
            await daemon.closed("web", "killed")
            await client.aclose()


async def test_a_connection_is_ended_while_its_header_is_awaited(tmp_path: Path) -> None:
    policy = Policy(accept_proxy=True, proxy_trusted=(parse_rule(f"uid:{os.getuid()}"),))
    async with steered(tmp_path, "web", policy=policy) as daemon:
        client = await daemon.connect("web")
        with trio.fail_after(PATIENCE):
            while not daemon.stats("web").live:
                await trio.lowlevel.checkpoint()
        await daemon.post("/v1/connections/end", {"route": "web"})
        await daemon.closed("web", "killed")
        await client.aclose()


async def test_the_number_of_a_vmm_is_the_source_port(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "guest", {80: echo}) as guest:
        target = MuxEndpoint(str(guest.path), 80)
        async with steered(tmp_path, "web", target=target) as daemon:
            client, connection = await daemon.live("web")
            shown = await daemon.get(f"/v1/connections/{connection.number}")
            await client.aclose()
    assert (shown["source_port"], shown["destination_port"]) == (HOST_PORT, 80)


# ---- pause, drain, resume ----


async def test_a_paused_routes_clients_wait_until_it_is_resumed(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        before, _ = await daemon.live("web")
        assert (await daemon.post("/v1/routes/web/pause"))["state"] == "paused"
        waiting = await daemon.connect("web")
        await waiting.send_all(b"x")
        await before.send_all(b"y")
        assert await before.receive_some() == b"y"
        await daemon.reload(limits=Limits(7))
        assert (await daemon.get("/v1/routes/web"))["state"] == "paused"
        assert daemon.stats("web").connections == 1
        assert (await daemon.post("/v1/routes/web/resume"))["state"] == "listening"
        assert await waiting.receive_some() == b"x"
        for client in (before, waiting):
            await client.aclose()


async def test_a_drained_route_refuses_clients_and_keeps_its_connections(tmp_path: Path) -> None:
    policy = Policy(drain_timeout=0)
    async with steered(tmp_path, "web", "other", policy=policy) as daemon:
        before, _ = await daemon.live("web")
        assert (await daemon.post("/v1/routes/web/drain"))["state"] == "draining"
        with pytest.raises(OSError, match=r"No such file|refused"):
            await daemon.connect("web")
        await daemon.reload(limits=Limits(7))
        assert (await daemon.get("/v1/routes/web"))["state"] == "draining"
        await before.send_all(b"y")
        assert await before.receive_some() == b"y"
        await before.aclose()
        await daemon.closed("web", "finished")
        assert (await daemon.get("/v1/routes/web"))["state"] == "drained"
        assert (await daemon.post("/v1/routes/web/resume"))["state"] == "listening"
        again, _ = await daemon.live("web")
        await again.aclose()
        assert daemon.stats("web").connections == 2


async def test_a_drained_route_whose_listener_is_taken_stays_drained(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes/web/drain")
        with unix_listener(Path(daemon.path("web"))):
            answer = await daemon.ask("POST", "/v1/routes/web/resume")
        assert answer.status_code == 409
        assert "another process listens" in answer.json()["error"]
        assert (await daemon.get("/v1/routes/web"))["state"] == "drained"
        assert (await daemon.post("/v1/routes/web/resume"))["state"] == "listening"


async def test_a_drained_route_that_leaves_the_file_is_forgotten(tmp_path: Path) -> None:
    async with steered(tmp_path, "web", "other") as daemon:
        await daemon.post("/v1/routes/web/drain")
        routes = daemon.daemon.config.routes
        await daemon.reload(routes=routes[1:])
        assert [one["name"] for one in (await daemon.get("/v1/routes"))["routes"]] == ["other"]
        await daemon.reload(routes=routes)
        assert (await daemon.get("/v1/routes/web"))["state"] == "listening"


async def test_a_limit_that_keeps_clients_waiting_is_named(tmp_path: Path) -> None:
    async with steered(tmp_path, "web", policy=Policy(max_connections=1)) as daemon:
        client, _ = await daemon.live("web")
        shown = await daemon.get("/v1/routes/web")
        await client.aclose()
    assert (shown["state"], shown["queued_by"]) == ("queued", "max_connections")


async def test_the_daemons_end_does_not_wait_for_a_drained_route(tmp_path: Path) -> None:
    async with steered(tmp_path, "web", policy=Policy(drain_timeout=0)) as daemon:
        client, _ = await daemon.live("web")
        await daemon.post("/v1/routes/web/drain")
        daemon.daemon.stop()
        await daemon.closed("web", "drained")
        await client.aclose()


# ---- reload, configuration, events ----


async def test_a_reload_says_what_is_wrong_as_the_log_does(tmp_path: Path) -> None:
    problems = [Problem("listen", "is missing", 3), Problem("", "unknown key", 9)]

    def load() -> Config:
        if problems:
            raise ConfigError("file.toml", tuple(problems))
        return daemon.daemon.config

    async with steered(tmp_path, "web", load=load) as daemon:
        answer = await daemon.ask("POST", "/v1/reload")
        problems.clear()
        taken = await daemon.post("/v1/reload")
    assert answer.status_code == 409
    assert answer.json()["error"] == "file.toml:3: listen: is missing\nfile.toml:9: unknown key"
    assert taken == {"fingerprint": daemon.daemon.config.fingerprint, "source": "command line"}


async def test_a_daemon_without_a_file_has_nothing_to_reload(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        answer = await daemon.ask("POST", "/v1/reload")
    assert answer.status_code == 409
    assert "without a configuration" in answer.json()["error"]


async def test_a_reload_moves_the_socket_and_its_mode(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        moved = UnixEndpoint(str(tmp_path / "moved.sock"))
        await daemon.reload(admin=AdminSettings(UnixEndpoint(str(daemon.socket)), 0o660))
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
        await daemon.reload(admin=AdminSettings(moved))
        assert not daemon.socket.exists()
        transport = httpx.AsyncHTTPTransport(uds=moved.path)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://daemon/v1/status")).status_code == 200
        await daemon.reload(admin=AdminSettings(None))
        assert not await trio.Path(moved.path).exists()


async def test_the_configuration_in_force_is_shown_with_every_policy(tmp_path: Path) -> None:
    policy = Policy(allow=(parse_rule("uid:0"), parse_rule("gid:7")), idle_timeout=7.5)
    async with steered(tmp_path, "web", policy=policy) as daemon:
        shown = await daemon.get("/v1/config")
    [route] = shown["routes"]
    assert route["listen"] == f"unix:{tmp_path}/web.sock"
    assert set(route["policy"]) == {field.name for field in fields(Policy)}
    assert route["policy"]["idle_timeout"] == 7.5
    assert route["policy"]["allow"] == ["uid:0", "gid:7"]
    assert shown["admin"]["socket"] == f"unix:{daemon.socket}"


async def test_failures_and_changes_are_remembered_and_connections_are_not(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        await client.aclose()
        await daemon.closed("web", "finished")
        await daemon.post("/v1/routes/web/pause")
        told = (await daemon.get("/v1/events"))["events"]
        later = (await daemon.get("/v1/events", after=told[-1]["id"]))["events"]
    assert [event["event"] for event in told][-1] == "route_paused"
    assert told[-1]["route"] == "web"
    assert "connection_closed" not in {event["event"] for event in told}
    assert [event["id"] for event in told] == list(range(1, len(told) + 1))
    assert later == []


# ---- hostile clients ----


async def test_the_newest_of_a_thousand_idle_clients_is_served(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        idle = [await trio.open_unix_socket(str(daemon.socket)) for _ in range(1000)]
        assert (await daemon.get("/v1/status"))["live"] == 1
        await client.send_all(b"y")
        assert await client.receive_some() == b"y"
        for stream in (client, *idle):
            await stream.aclose()


async def test_an_order_is_answered_once_its_body_has_come_though_none_is_wanted(
    tmp_path: Path,
) -> None:
    async with steered(tmp_path, "web") as daemon:
        stream = await trio.open_unix_socket(str(daemon.socket))
        head = b"POST /v1/routes/web/pause HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
        await stream.send_all(head)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.send_all(b"{}")
        answer = b"".join([bytes(piece) async for piece in stream])
        await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 200")


async def test_an_oversized_body_is_refused(tmp_path: Path) -> None:
    async with steered(tmp_path, "web") as daemon:
        answer = await daemon.ask("POST", "/v1/connections/end", {"route": "x" * 100_000})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b'{"route": 7}', b"[" * 60_000])
async def test_a_malformed_body_is_refused(tmp_path: Path, body: bytes) -> None:
    async with steered(tmp_path, "web") as daemon:
        answer = await daemon.send("/v1/connections/end", body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "remedy"}


@pytest.mark.parametrize("number", [2, 100, 500])
async def test_one_of_many_pipelined_requests_is_answered(
    tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with steered(tmp_path, "web") as daemon:
        stream = await trio.open_unix_socket(str(daemon.socket))
        await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * number)
        answer = b""
        with suppress(trio.BrokenResourceError):
            async for piece in stream:
                answer += bytes(piece)
        await stream.aclose()
        assert (await daemon.get("/v1/status"))["ready"]
    assert answer.count(b"HTTP/1.1 ") <= 1  # or 431, for what came behind
    assert not caplog.records


def test_nothing_that_changes_state_is_on_the_metrics_listener() -> None:
    routes = read_only_routes(CollectorRegistry(), FakeDaemon())
    assert {method for route in routes for method in route.methods or ()} == {"GET", "HEAD"}


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
