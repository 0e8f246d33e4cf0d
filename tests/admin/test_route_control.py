"""Tests of pause, drain and resume of a route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.fake_services import unix_listener
from tests.waiting import until
from vsockproxy.address.endpoint import MuxEndpoint, UnixEndpoint
from vsockproxy.admin.openapi import OPERATIONS
from vsockproxy.config.process import Limits
from vsockproxy.config.settings import Policy
from vsockproxy.listen.listener import RouteListener
from vsockproxy.stats import ROUTE_STATES, RouteState

VERBS = [
    one.name for one in OPERATIONS if one.path.startswith("/v1/routes/{") and one.level == "steer"
]
STATES = {"pause": "paused", "drain": "drained", "resume": "listening"}


@pytest.mark.parametrize("before", [[], ["pause"], ["drain"], ["pause", "drain"]])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_repeated_order_to_a_route_is_answered_alike_and_changes_nothing(
    tmp_path: Path, before: list[str], verb: str
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        for order in before:
            await daemon.post(f"/v1/routes/web/{order}")
        once = await daemon.ask("POST", f"/v1/routes/web/{verb}")
        events = daemon.daemon.events.after(0)
        twice = await daemon.ask("POST", f"/v1/routes/web/{verb}")
        state = (await daemon.get("/v1/routes/web"))["state"]
    assert settled(once.json()) == settled(twice.json())
    assert daemon.daemon.events.after(0) == events
    assert once.status_code == twice.status_code
    assert once.status_code != 200 or state == STATES[verb]


def settled(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer without what time changes."""
    return {key: value for key, value in answer.items() if key != "targets"}


async def test_a_drained_route_is_not_paused_and_the_answer_says_what_to_do(
    tmp_path: Path,
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes/web/drain")
        answer = await daemon.ask("POST", "/v1/routes/web/pause")
        assert (await daemon.get("/v1/routes/web"))["state"] == "drained"
    assert answer.status_code == 409
    assert answer.json() == {
        "error": "the route 'web' is drained: it has no listener to queue clients",
        "remedy": "resume it, then pause it",
    }


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("drain_delay", [0, 60])
async def test_an_order_to_a_daemon_that_stops_fails(
    tmp_path: Path, verb: str, drain_delay: float
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        client, _ = await daemon.live("web")
        await daemon.reload(limits=Limits(drain_delay=drain_delay))
        daemon.daemon.stop()
        answer = await daemon.ask("POST", f"/v1/routes/web/{verb}")
        await client.aclose()
    assert answer.status_code == 409
    assert "the daemon is stopping" in answer.json()["error"]


@pytest.mark.parametrize("verb", VERBS)
async def test_an_order_to_a_route_that_was_removed_fails(tmp_path: Path, verb: str) -> None:
    async with controlled_daemon(tmp_path, "web", "other") as daemon:
        client, _ = await daemon.live("web")
        await daemon.reload(routes=daemon.daemon.config.routes[1:])
        answer = await daemon.ask("POST", f"/v1/routes/web/{verb}")
        await client.aclose()
    assert answer.status_code == 409
    assert "not in the configuration any more" in answer.json()["error"]


@pytest.mark.parametrize("verb", VERBS)
async def test_an_order_to_a_route_that_a_defect_has_ended_fails(
    tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await break_route(daemon, monkeypatch)
        answer = await daemon.ask("POST", f"/v1/routes/web/{verb}")
    assert answer.status_code == 409
    assert answer.json()["error"] == "the route 'web' is off: a defect ended it"


async def test_resume_leaves_another_route_closed_that_a_defect_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await break_route(daemon, monkeypatch)
        broken = daemon.daemon.config.routes[0].listen
        assert broken not in daemon.daemon._sockets
        monkeypatch.setattr(daemon.daemon.supervisor, "resume", lambda _: None)
        monkeypatch.setattr(daemon.daemon.supervisor, "drained_endpoint", lambda _: {})
        await daemon.daemon.resume("another")
        assert broken not in daemon.daemon._sockets


Clients = list[trio.SocketStream]


# ---- what the daemon says of a route that accepts no clients ----


async def listening(daemon: ControlledDaemon, _: pytest.MonkeyPatch) -> None:
    """Change nothing."""


async def queued(daemon: ControlledDaemon, _: pytest.MonkeyPatch) -> Clients:
    """Reach the route's limit."""
    return [(await daemon.live("web"))[0]]


async def paused(daemon: ControlledDaemon, _: pytest.MonkeyPatch) -> None:
    """Pause the route."""
    await daemon.post("/v1/routes/web/pause")


async def draining(daemon: ControlledDaemon, _: pytest.MonkeyPatch) -> Clients:
    """Drain the route while it has a connection."""
    client, _connection = await daemon.live("web")
    await daemon.post("/v1/routes/web/drain")
    return [client]


async def drained(daemon: ControlledDaemon, _: pytest.MonkeyPatch) -> None:
    """Drain the route."""
    await daemon.post("/v1/routes/web/drain")


async def retrying(daemon: ControlledDaemon, _: pytest.MonkeyPatch) -> None:
    """Have the route listen in a folder that does not exist."""
    [route] = daemon.daemon.config.routes
    away = MuxEndpoint(str(daemon.socket.parent / "missing" / "vsock"), 80)
    await daemon.reload(routes=(replace(route, listen=away),))


async def break_route(daemon: ControlledDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the route by a defect."""

    async def fail(_: RouteListener) -> bool:
        raise RuntimeError("a defect")

    [route] = daemon.daemon.config.routes
    with monkeypatch.context() as patch:
        patch.setattr(RouteListener, "serve", fail)
        moved = UnixEndpoint(f"{daemon.path('web')}-2")
        await daemon.reload(routes=(replace(route, listen=moved),))
        await until(daemon.daemon.not_ready)


WAYS: dict[
    RouteState, Callable[[ControlledDaemon, pytest.MonkeyPatch], Awaitable[Clients | None]]
] = {
    "listening": listening,
    "queued": queued,
    "paused": paused,
    "retrying": retrying,
    "draining": draining,
    "drained": drained,
    "off": break_route,
}
ACCEPTING = {"listening", "queued"}


@pytest.mark.parametrize("state", ROUTE_STATES)
async def test_health_paths_status_and_metrics_agree_on_a_route(
    tmp_path: Path, state: RouteState, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controlled_daemon(tmp_path, "web", policy=Policy(max_connections=1)) as daemon:
        clients = await WAYS[state](daemon, monkeypatch)
        route = await daemon.get("/v1/routes/web")
        status = await daemon.get("/v1/status")
        ready = await daemon.ask("GET", "/readyz")
        by_route = await daemon.ask("GET", "/readyz", route="web")
        by_target = await daemon.ask("GET", "/readyz", target="web")
        metrics = (await daemon.ask("GET", "/metrics")).text
        for client in clients or ():
            await client.aclose()
    assert route["state"] == state
    assert (route["closed_by"] is None) == (state in ACCEPTING)
    assert f'vsockproxy_route_state{{route="web",state="{state}"}} 1.0' in metrics
    assert metrics.count('vsockproxy_route_state{route="web"') == len(ROUTE_STATES)
    line = f"route web: {route['closed_by']}"
    is_ready = state != "off"
    assert status["ready"] == is_ready
    assert ready.status_code == (200 if is_ready else 503)
    named = [] if state in ACCEPTING else [line]
    assert ready.text.splitlines() == (["ready", *named] if is_ready else named)
    for answer in (by_route, by_target):
        assert answer.status_code == (200 if state in ACCEPTING else 503)
        assert (line in answer.text) == (state not in ACCEPTING)


@pytest.mark.parametrize("parameter", ["route", "target"])
async def test_readyz_of_an_unknown_route_is_not_ready(tmp_path: Path, parameter: str) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask("GET", "/readyz", **{parameter: "missing"})
    assert (answer.status_code, answer.text) == (503, "route missing: there is no such route\n")


async def test_readyz_with_an_unknown_parameter_is_an_error(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask("GET", "/readyz", targets="web")
    assert answer.status_code == 400
    assert "unknown parameter 'targets': expected route or target" in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/connections/end", {"all": True}),
        ("/v1/reload", None),
        ("/v1/log-level", {"level": "error"}),
    ],
)
async def test_a_repeated_order_to_the_daemon_succeeds(
    tmp_path: Path, path: str, body: object
) -> None:
    async with controlled_daemon(tmp_path, "web", load=lambda: daemon.daemon.config) as daemon:
        assert await daemon.post(path, body) == await daemon.post(path, body)


def test_every_order_is_repeated_in_a_test() -> None:
    orders = {one.name for one in OPERATIONS if one.method == "POST" and not one.changes}
    assert orders == {*VERBS, "end_some", "log_level", "reload"}


async def test_pause_queues_clients_until_resume_and_survives_a_reload(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        before, _ = await daemon.live("web")
        assert (await daemon.post("/v1/routes/web/pause"))["state"] == "paused"
        queued = await daemon.connect("web")
        await queued.send_all(b"x")
        await before.send_all(b"y")
        assert await before.receive_some() == b"y"
        await daemon.reload(limits=Limits(7))
        assert (await daemon.get("/v1/routes/web"))["state"] == "paused"
        assert daemon.stats("web").connections == 1
        assert (await daemon.post("/v1/routes/web/resume"))["state"] == "listening"
        assert await queued.receive_some() == b"x"
        for client in (before, queued):
            await client.aclose()


async def test_drain_refuses_clients_and_keeps_connections_across_a_reload(tmp_path: Path) -> None:
    policy = Policy(drain_timeout=0)
    async with controlled_daemon(tmp_path, "web", "other", policy=policy) as daemon:
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


async def test_resume_with_an_endpoint_in_use_fails_and_the_route_stays_drained(
    tmp_path: Path,
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes/web/drain")
        with unix_listener(Path(daemon.path("web"))):
            answer = await daemon.ask("POST", "/v1/routes/web/resume")
        assert answer.status_code == 409
        assert "another process listens" in answer.json()["error"]
        assert (await daemon.get("/v1/routes/web"))["state"] == "drained"
        assert (await daemon.post("/v1/routes/web/resume"))["state"] == "listening"


async def test_a_drained_route_that_is_removed_and_added_again_is_listening(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", "other") as daemon:
        await daemon.post("/v1/routes/web/drain")
        routes = daemon.daemon.config.routes
        await daemon.reload(routes=routes[1:])
        assert [one["name"] for one in (await daemon.get("/v1/routes"))["routes"]] == ["other"]
        await daemon.reload(routes=routes)
        assert (await daemon.get("/v1/routes/web"))["state"] == "listening"


async def test_stop_with_a_drained_route_ends_its_connections(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", policy=Policy(drain_timeout=0)) as daemon:
        client, _ = await daemon.live("web")
        await daemon.post("/v1/routes/web/drain")
        daemon.daemon.stop()
        await daemon.closed("web", "drained")
        await client.aclose()
