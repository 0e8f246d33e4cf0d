"""What each user may do at the control socket, and the audit line of each action."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import structlog
import trio

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.config.texts import errors, toml
from tests.fake_services import ORDINARY_USER, as_ordinary_user, open_folder
from tests.sockets import read_to_end
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.admin import control
from vsockproxy.admin.openapi import OPERATIONS, Operation
from vsockproxy.admin.permission import Requester, is_allowed, requester_of
from vsockproxy.config.access import GroupRule, Peer, UserRule
from vsockproxy.config.permission import LEVELS, Grant, Level
from vsockproxy.config.process import AdminSettings

OPERATOR = Peer(uid=4711, gids=frozenset({815}))
FURTHER = ["/metrics", "/healthz", "/readyz"]
names = [one.name for one in OPERATIONS]
every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=names)


@pytest.fixture
def as_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every client of a control socket be a fake process of `OPERATOR`."""
    monkeypatch.setattr(control, "requester_of", lambda _client: Requester(99, OPERATOR))


async def grant(daemon: ControlledDaemon, *may: Grant) -> None:
    await daemon.reload(admin=AdminSettings(UnixEndpoint(str(daemon.socket)), may=may))


async def perform(daemon: ControlledDaemon, operation: Operation) -> int:
    """Request an operation that nothing fits, so that it changes nothing; return the status."""
    path = operation.published_path.replace("{name}", "web").replace("{id}", "12345")
    body = {"client": "192.0.2.1"} if operation.body else None
    answer = await daemon.ask(operation.method, path, body)
    return answer.status_code


@pytest.mark.parametrize("rule", [UserRule(4711), GroupRule(815)], ids=["uid", "gid"])
@pytest.mark.parametrize("level", LEVELS)
@every_operation
@pytest.mark.usefixtures("as_operator")
async def test_a_level_allows_its_operations_and_those_below(
    tmp_path: Path, operation: Operation, level: Level, rule: UserRule | GroupRule
) -> None:
    async with controlled_daemon(tmp_path, "web", load=lambda: daemon.daemon.config) as daemon:
        await grant(daemon, Grant("read", UserRule(1)), Grant(level, rule))
        status = await perform(daemon, operation)
    allowed = LEVELS.index(operation.level) <= LEVELS.index(level)
    assert (status != 403) == allowed


@every_operation
@pytest.mark.usefixtures("as_operator")
async def test_without_may_another_user_reads_and_steers_but_changes_nothing(
    tmp_path: Path, operation: Operation
) -> None:
    async with controlled_daemon(tmp_path, "web", load=lambda: daemon.daemon.config) as daemon:
        status = await perform(daemon, operation)
    assert (status == 403) == (operation.level == "change")


@every_operation
@pytest.mark.usefixtures("as_operator")
async def test_a_user_that_may_does_not_name_is_denied_everything(
    tmp_path: Path, operation: Operation
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await grant(daemon)
        assert await perform(daemon, operation) == 403


@pytest.mark.parametrize("path", FURTHER)
@pytest.mark.usefixtures("as_operator")
async def test_the_probes_at_the_control_socket_need_read(tmp_path: Path, path: str) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await grant(daemon)
        assert (await daemon.ask("GET", path)).status_code == 403
        await grant(daemon, Grant("read", UserRule(4711)))
        assert (await daemon.ask("GET", path)).status_code == 200


@pytest.mark.usefixtures("as_operator")
async def test_a_denial_says_what_to_do(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await grant(daemon, Grant("read", UserRule(4711)))
        answer = await daemon.ask("POST", "/v1/routes/web/pause")
        assert (await daemon.get("/v1/routes/web"))["state"] == "listening"
    assert answer.status_code == 403
    assert answer.json() == {
        "error": "permission denied: uid 4711 may not steer at the control socket",
        "remedy": 'as root: add "steer uid:4711" to [admin] may, then reload the daemon',
    }


@pytest.mark.parametrize("may", [None, ()])
@pytest.mark.parametrize("level", LEVELS)
def test_root_and_the_daemons_user_may_do_everything(
    level: Level, may: tuple[Grant, ...] | None
) -> None:
    settings = AdminSettings(may=may)
    assert is_allowed(settings, Peer(uid=0), level)
    assert is_allowed(settings, Peer(uid=os.geteuid()), level)


def test_a_client_that_the_kernel_does_not_describe_changes_nothing() -> None:
    assert not is_allowed(AdminSettings(), Peer(), "change")
    assert not is_allowed(AdminSettings(may=(Grant("change", UserRule(1)),)), Peer(), "read")


def test_the_process_of_a_client_is_known() -> None:
    one, other = socket.socketpair()
    with one, other:
        found = requester_of(one)
    assert (found.pid, found.peer.uid) == (os.getpid(), os.geteuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to connect as another user")
async def test_a_process_of_another_user_is_told_apart_from_the_daemon() -> None:
    with open_folder() as folder:
        async with controlled_daemon(folder, "web") as daemon:
            socket_of = UnixEndpoint(str(daemon.socket))
            grants = (Grant("read", UserRule(ORDINARY_USER)),)
            daemon.socket.chmod(0o666)
            await daemon.reload(admin=AdminSettings(socket_of, mode=0o666, may=grants))
            answers = []
            for request in (b"GET /v1/status", b"POST /v1/routes/web/drain"):
                with as_ordinary_user():
                    stream = await trio.open_unix_socket(str(daemon.socket))
                async with stream:
                    await stream.send_all(request + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    answers.append((await read_to_end(stream))[:12])
    assert answers == [b"HTTP/1.1 200", b"HTTP/1.1 403"]


ACTIONS = [one for one in OPERATIONS if one.level != "read"]


@pytest.mark.parametrize("operation", ACTIONS, ids=[one.name for one in ACTIONS])
async def test_every_action_leaves_an_audit_line(tmp_path: Path, operation: Operation) -> None:
    async with controlled_daemon(tmp_path, "web", load=lambda: daemon.daemon.config) as daemon:
        with structlog.testing.capture_logs() as logs:
            status = await perform(daemon, operation)
    [line] = [one for one in logs if one["event"] == "admin_action"]
    assert (line["action"], line["uid"], line["pid"]) == (operation.name, os.geteuid(), os.getpid())
    assert line["result"].startswith("done" if status == 200 else "failed: ")
    assert ("web" in line["what"]) == ("{name" in operation.path)


@pytest.mark.usefixtures("as_operator")
async def test_a_denied_action_leaves_an_audit_line_and_reading_leaves_none(
    tmp_path: Path,
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await grant(daemon)
        with structlog.testing.capture_logs() as logs:
            await daemon.ask("GET", "/v1/status")
            await daemon.ask("POST", "/v1/connections/end", {"all": True})
    [line] = [one for one in logs if one["event"] == "admin_action"]
    assert line["action"] == "end_some"
    assert line["what"] == '{"all": true}'
    assert (line["uid"], line["pid"]) == (4711, 99)
    assert line["result"].startswith("denied: permission denied: uid 4711 may not steer")


def test_the_permissions_of_a_file_are_read() -> None:
    text = '[forward]\n80 = "3:80"\n[admin]\nmay = ["read gid:0", "change uid:7"]\n'
    assert toml(text).admin.may == (Grant("read", GroupRule(0)), Grant("change", UserRule(7)))


@pytest.mark.parametrize(
    "item", ["read", "write uid:0", "change 10.0.0.0/8", "steer web", "read uid:0 gid:0", ""]
)
def test_a_text_that_is_not_a_permission_is_an_error(item: str) -> None:
    [line] = errors(f'[forward]\n80 = "3:80"\n[admin]\nmay = ["{item}"]\n')
    assert line.startswith(f"admin.may: '{item}' is not a permission: expected read, steer or ")
