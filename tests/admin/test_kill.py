"""Tests of ending connections: through the control API and through `Connection`."""

from __future__ import annotations

import os
from pathlib import Path
from socket import AF_UNIX

import pytest
import trio
import trio.testing

from tests.admin.running_daemon import controlled_daemon
from tests.fake_services import answers_nothing, echo, mux_server
from tests.sockets import ends_by_reset
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import MuxEndpoint, UnixEndpoint
from vsockproxy.config.access import parse_rule
from vsockproxy.config.settings import Policy, PumpChoice, Route
from vsockproxy.connection import Connection, EndedError


async def test_delete_of_a_connection_ends_it_and_counts_it_as_killed(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with controlled_daemon(tmp_path, "web", choice=choice) as daemon:
        client, connection = await daemon.live("web")
        other, _ = await daemon.live("web")
        answer = await daemon.ask("DELETE", f"/v1/connections/{connection.number}")
        assert answer.json() == {"ended": [connection.number]}
        await daemon.closed("web", "killed")
        assert await ends_by_reset(client) is False  # Unix sockets have no RST
        await other.send_all(b"y")
        assert await other.receive_some() == b"y"
        again = await daemon.ask("DELETE", f"/v1/connections/{connection.number}")
        await other.aclose()
    assert again.status_code == 404
    assert again.json()["error"] == f"there is no live connection {connection.number}"


async def test_end_with_a_route_ends_only_its_connections(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "a", "b") as daemon:
        first, one = await daemon.live("a")
        second, two = await daemon.live("a")
        third, _ = await daemon.live("b")
        answer = await daemon.post("/v1/connections/end", {"route": "a"})
        await daemon.closed("a", "killed", 2)
        assert len(daemon.stats("b").live) == 1
        for client in (first, second, third):
            await client.aclose()
    assert answer == {"ended": [one.number, two.number]}


@pytest.mark.parametrize("body", [{}, {"all": False}, {"all": True, "route": "a"}])
async def test_end_without_exactly_one_filter_ends_nothing(tmp_path: Path, body: object) -> None:
    async with controlled_daemon(tmp_path, "a") as daemon:
        client, _ = await daemon.live("a")
        answer = await daemon.ask("POST", "/v1/connections/end", body)
        assert len(daemon.stats("a").live) == 1
        await client.aclose()
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "remedy"}


async def test_end_with_all_ends_every_connection(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "a", "b") as daemon:
        clients = [await daemon.live(name) for name in ("a", "b")]
        answer = await daemon.post("/v1/connections/end", {"all": True})
        await daemon.closed("b", "killed")
        for client, _ in clients:
            await client.aclose()
    assert len(answer["ended"]) == 2


async def test_a_connection_can_be_duplicated_until_it_is_closed(
    tmp_path: Path, choice: PumpChoice
) -> None:
    async with controlled_daemon(tmp_path, "web", choice=choice) as daemon:
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
        assert await ends_by_reset(client) is False  # Unix sockets have no RST
    assert str(connection).startswith("#1 unix -> tcp:127.0.0.1:")
    assert repr(connection).startswith("<Connection #1 ")
    assert connection == connection  # noqa: PLR0124 - equality is under test
    assert len({connection, connection}) == 1


async def test_a_connection_can_be_killed_during_its_dial(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "guest", {80: echo}, answers_nothing) as guest:
        target = MuxEndpoint(str(guest.path), 80)
        async with controlled_daemon(tmp_path, "web", target=target) as daemon:
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


async def test_a_connection_can_be_killed_before_its_proxy_header(tmp_path: Path) -> None:
    policy = Policy(accept_proxy=True, proxy_trusted=(parse_rule(f"uid:{os.getuid()}"),))
    async with controlled_daemon(tmp_path, "web", policy=policy) as daemon:
        client = await daemon.connect("web")
        await until(lambda: daemon.stats("web").live)
        await daemon.post("/v1/connections/end", {"route": "web"})
        await daemon.closed("web", "killed")
        await client.aclose()


async def test_a_kill_as_one_wait_of_a_connection_ends_is_not_lost_in_the_next_one() -> None:
    target = UnixEndpoint("/run/target")
    connection = Connection(1, Route("web", UnixEndpoint("/run/listen"), target), AF_UNIX, b"")
    reached, waits = trio.Event(), []

    async def serve() -> None:
        with pytest.raises(EndedError) as ended:  # noqa: PT012 - two waits of one connection
            with connection.cancellable():
                await reached.wait()
            with connection.cancellable():
                waits.append("the next one")
        assert ended.value.reason == "killed"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.testing.wait_all_tasks_blocked()
        reached.set()
        connection.end("killed")
    assert not waits
