"""Tests of the control API's queries: status, routes, connections, configuration, events."""

from __future__ import annotations

import errno
import stat
from contextlib import AsyncExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import trio
import trio.testing

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.fake_services import HOST_PORT, echo, hold, mux_server, unix_listener
from tests.sockets import read_to_end
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.config.access import parse_rule
from vsockproxy.config.guest import Cid, Guest, Libvirt
from vsockproxy.config.settings import Config, Policy, PumpChoice
from vsockproxy.connection import Stage
from vsockproxy.errors import dial_error


async def test_status_has_readiness_connections_fingerprint_and_uptime(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        answer = await daemon.get("/v1/status")
        await client.aclose()
    assert answer["ready"] is True
    assert answer["not_ready"] == []
    assert answer["live"] == 1
    assert answer["fingerprint"] == daemon.daemon.config.fingerprint
    assert answer["reloads"] == {"success": 0, "failure": 0}
    assert 0 < answer["uptime_seconds"] < PATIENCE


async def test_the_control_socket_has_mode_0600_and_is_removed_at_the_end(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert not daemon.socket.exists()


async def test_a_route_has_its_state_counters_and_last_error(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
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
    error = dial_error(stats.route.target, errno.ECONNREFUSED)
    assert "nothing listens" in route["last_error"]["message"]
    assert route["last_error"]["message"] == error.summary
    assert route["last_error"]["remedy"] == error.remedy


async def test_readyz_of_a_route_succeeds_only_if_its_target_answers(tmp_path: Path) -> None:
    target = MuxEndpoint(str(tmp_path / "guest"), 80)
    async with controlled_daemon(tmp_path, "web", target=target) as daemon:
        absent = await daemon.ask("GET", "/readyz", target="web")
        [known] = (await daemon.get("/v1/routes/web"))["targets"]
        async with mux_server(tmp_path / "guest", {80: echo}):
            reached = await daemon.ask("GET", "/readyz", target="web")
        unknown = await daemon.ask("GET", "/readyz", target="missing")
        plain = await daemon.ask("GET", "/readyz")
        alive = await daemon.ask("GET", "/healthz")
    assert absent.status_code == 503
    assert absent.text.startswith("route web: cannot dial vsock-mux:")
    assert known["state"] == "down"
    assert known["last_error"].startswith("cannot dial vsock-mux:")
    assert (reached.status_code, reached.text) == (200, "ready\n")
    assert (unknown.status_code, unknown.text) == (
        503,
        "route missing: there is no such route\n",
    )
    assert (plain.status_code, alive.status_code) == (200, 200)


async def test_a_connection_has_its_bytes_rates_ages_and_halves(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with controlled_daemon(tmp_path, "web", choice=choice) as daemon:
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


async def test_rates_cover_the_time_since_the_previous_request(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
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


async def test_a_connection_with_one_fin_is_half_closed(tmp_path: Path, choice: PumpChoice) -> None:
    async with controlled_daemon(tmp_path, "web", service=hold, choice=choice) as daemon:
        client = await daemon.connect("web")
        await client.send_eof()
        with trio.fail_after(PATIENCE):
            while True:
                shown = (await daemon.get("/v1/connections"))["connections"]
                if shown and shown[0]["state"] == "half-closed":
                    break
        await client.aclose()
    assert shown[0]["halves"] == {"upstream": "ended", "downstream": "open"}


async def test_pages_of_connections_follow_the_requested_order(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "a", "b") as daemon:
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


async def all_pages(daemon: ControlledDaemon, query: dict[str, Any]) -> list[int]:
    """Return the ids on all pages, and check the total and the length of each page."""
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


async def test_the_source_port_of_a_mux_connection_is_the_number_that_the_vmm_assigned(
    tmp_path: Path,
) -> None:
    async with mux_server(tmp_path / "guest", {80: echo}) as guest:
        target = MuxEndpoint(str(guest.path), 80)
        async with controlled_daemon(tmp_path, "web", target=target) as daemon:
            client, connection = await daemon.live("web")
            shown = await daemon.get(f"/v1/connections/{connection.number}")
            await client.aclose()
    assert (shown["source_port"], shown["destination_port"]) == (HOST_PORT, 80)


async def test_a_route_with_queued_clients_names_the_limit(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", policy=Policy(max_connections=1)) as daemon:
        client, _ = await daemon.live("web")
        shown = await daemon.get("/v1/routes/web")
        await client.aclose()
    assert (shown["state"], shown["queued_by"]) == ("queued", "max_connections")


async def test_the_running_configuration_has_every_setting_of_each_route(tmp_path: Path) -> None:
    policy = Policy(allow=(parse_rule("uid:0"), parse_rule("gid:7")), idle_timeout=7.5)
    async with controlled_daemon(tmp_path, "web", policy=policy) as daemon:
        shown = await daemon.get("/v1/config")
    [route] = shown["routes"]
    assert route["listen"] == f"unix:{tmp_path}/web.sock"
    assert set(route["policy"]) == {field.name for field in fields(Policy)}
    assert route["policy"]["idle_timeout"] == 7.5
    assert route["policy"]["allow"] == ["uid:0", "gid:7"]
    assert shown["admin"]["socket"] == f"unix:{daemon.socket}"


async def test_the_running_configuration_has_every_target_and_guest(tmp_path: Path) -> None:
    guests = (Guest("db", Cid(3, to_host=True)), Guest("web", Libvirt("vm1"), to_host=True))
    async with controlled_daemon(tmp_path, "web") as daemon:
        [route] = daemon.daemon.config.routes
        spare = TcpEndpoint("127.0.0.1", 9)
        await daemon.reload(routes=(replace(route, others=(spare,)),), guests=guests)
        shown = await daemon.get("/v1/config")
    [settings] = shown["routes"]
    assert settings["targets"] == [str(route.target), "tcp:127.0.0.1:9"]
    assert settings["target"] == str(route.target)
    assert shown["guests"] == [
        {
            "name": "db",
            "locator": "cid = 3, to_host = true",
            "to_host": True,
            "is_added": False,
        },
        {"name": "web", "locator": 'libvirt = "vm1"', "to_host": True, "is_added": False},
    ]
    assert {field.name for field in fields(Config) if field.compare} <= set(shown)
    assert shown["metrics"] is None


async def test_the_running_configuration_has_the_address_of_the_metrics_or_a_list(
    tmp_path: Path,
) -> None:
    one, two = (UnixEndpoint(f"{tmp_path}/{name}") for name in ("one", "two"))
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.reload(metrics=(one,))
        assert (await daemon.get("/v1/config"))["metrics"] == str(one)
        await daemon.reload(metrics=(one, two))
        assert (await daemon.get("/v1/config"))["metrics"] == [str(one), str(two)]


async def test_events_include_state_changes_and_exclude_closed_connections(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        await client.aclose()
        await daemon.closed("web", "finished")
        await daemon.post("/v1/routes/web/pause")
        events = (await daemon.get("/v1/events"))["events"]
        later = (await daemon.get("/v1/events", after=events[-1]["id"]))["events"]
    assert [event["event"] for event in events][-1] == "route_paused"
    assert events[-1]["route"] == "web"
    assert "connection_closed" not in {event["event"] for event in events}
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert later == []


@pytest.mark.parametrize("state", get_args(Stage))
async def test_a_connection_before_its_first_byte_has_a_state_that_says_what_it_waits_for(
    tmp_path: Path, state: str
) -> None:
    policy = Policy(dial_on_data=state == "silent", wait_for_guest=60 if state == "held" else None)
    target = MuxEndpoint(str(tmp_path / "guest"), 80)
    async with AsyncExitStack() as stack:
        if state == "dialling":
            stack.enter_context(unix_listener(tmp_path / "guest"))  # it never answers CONNECT
        daemon = await stack.enter_async_context(
            controlled_daemon(tmp_path, "web", target=target, policy=policy)
        )
        client = await daemon.connect("web")
        direct = state == "dialling"  # the pump dials
        await until(lambda: [one for one in daemon.stats("web").live if direct or one.dialling])
        if state == "held":
            await until(lambda: daemon.stats("web").held)
        [live] = (await daemon.get("/v1/connections"))["connections"]
        await client.aclose()
        await until(lambda: not daemon.stats("web").live)
    assert live["state"] == state
