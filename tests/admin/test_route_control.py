"""Tests of pause, drain and resume of a route."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.admin.running_daemon import controlled_daemon
from tests.fake_services import unix_listener
from vsockproxy.admin.openapi import OPERATIONS
from vsockproxy.config.process import Limits
from vsockproxy.config.settings import Policy

VERBS = [one.name for one in OPERATIONS if one.path.startswith("/v1/routes/{") and one.body is None]
VERBS.remove("route")  # it only reads


@pytest.mark.parametrize("before", [[], ["pause"], ["drain"], ["pause", "drain"]])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_repeated_order_to_a_route_succeeds_and_changes_nothing(
    tmp_path: Path, before: list[str], verb: str
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        for order in before:
            await daemon.post(f"/v1/routes/web/{order}")
        once = await daemon.post(f"/v1/routes/web/{verb}")
        twice = await daemon.post(f"/v1/routes/web/{verb}")
    assert once["state"] == twice["state"]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/connections/end", {"all": True}), ("/v1/reload", None)]
)
async def test_a_repeated_order_to_the_daemon_succeeds(
    tmp_path: Path, path: str, body: object
) -> None:
    async with controlled_daemon(tmp_path, "web", load=lambda: daemon.daemon.config) as daemon:
        assert await daemon.post(path, body) == await daemon.post(path, body)


def test_every_order_is_repeated_in_a_test() -> None:
    orders = {one.name for one in OPERATIONS if one.method == "POST"}
    assert orders == {*VERBS, "end_some", "reload"}


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
