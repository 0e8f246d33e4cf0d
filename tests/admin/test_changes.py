"""Routes and guests that are added, replaced and removed while the daemon runs."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import structlog
import trio

from tests.admin.running_daemon import ControlledDaemon, controlled_daemon
from tests.fake_services import echo, mux_server, says
from tests.sockets import read_to_end
from tests.waiting import PATIENCE, until
from vsockproxy.admin.openapi import OPERATIONS
from vsockproxy.config import persisted
from vsockproxy.config.guest import Guest, MuxGlob
from vsockproxy.config.load import load_config
from vsockproxy.daemon.daemon import Daemon


def route(daemon: ControlledDaemon, name: str, /, **keys: Any) -> dict[str, Any]:
    """Return the body of a route from a Unix socket to the target of the route web."""
    listen = f"unix:{daemon.socket.parent}/{name}.sock"
    return {"name": name, "listen": listen, "target": target(daemon), **keys}


def target(daemon: ControlledDaemon) -> str:
    return str(daemon.stats("web").route.target)


def routes(daemon: ControlledDaemon) -> list[str]:
    return [one.name for one in daemon.daemon.config.routes]


async def works(daemon: ControlledDaemon, name: str) -> None:
    client, _ = await daemon.live(name)
    await client.aclose()


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def refused(answer: httpx.Response, status: int) -> str:
    """Check the status and that there is a remedy; return the error."""
    assert answer.status_code == status, answer.text
    assert answer.json()["remedy"]
    return str(answer.json()["error"])


async def test_an_added_route_relays_until_it_is_removed(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        assert (await daemon.post("/v1/routes", route(daemon, "a")))["added"] == ["a"]
        client, _ = await daemon.live("a")
        answer = await daemon.ask("DELETE", "/v1/routes/a")
        assert answer.json()["removed"] == ["a"]
        with pytest.raises(FileNotFoundError):
            await trio.open_unix_socket(f"{tmp_path}/a.sock")
        await client.send_all(b"y")
        assert await client.receive_some() == b"y"
        await client.aclose()
        assert routes(daemon) == ["web"]


async def test_the_last_route_can_be_removed_and_one_added_again(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        body = route(daemon, "a")
        await daemon.reload(routes=())
        await daemon.post("/v1/routes", body)
        assert (await daemon.ask("DELETE", "/v1/routes/a")).status_code == 200
        assert routes(daemon) == []
        await daemon.post("/v1/routes", body)
        await works(daemon, "a")


async def test_a_replaced_route_keeps_its_listener_and_connections(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon, trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, says(b"other"), 0, host="127.0.0.1")
        [served] = await nursery.start(serve)
        other = f"127.0.0.1:{served.socket.getsockname()[1]}"
        await daemon.post("/v1/routes", route(daemon, "a"))
        live, _ = await daemon.live("a")
        body = route(daemon, "a", target=other)
        answer = await daemon.ask("PUT", "/v1/routes/a", body)
        assert answer.json()["retargeted"] == ["a"]
        async with await daemon.connect("a") as client:
            assert await read_to_end(client) == b"other"
        await live.send_all(b"y")
        assert await live.receive_some() == b"y"
        await live.aclose()
        nursery.cancel_scope.cancel()


async def test_an_added_guest_is_a_target_until_no_route_needs_it(tmp_path: Path) -> None:
    async with (
        mux_server(tmp_path / "guest", {80: echo}),
        controlled_daemon(tmp_path, "web") as one,
    ):
        await one.post("/v1/guests", {"name": "vm", "mux": f"{tmp_path}/guest"})
        await one.post("/v1/routes", route(one, "a", target="vm:80"))
        await works(one, "a")
        error = await refused(await one.ask("DELETE", "/v1/guests/vm"), 409)
        start = "the guest 'vm' is in use: route a: target"
        assert error.startswith(start)
        await one.ask("DELETE", "/v1/routes/a")
        assert (await one.ask("DELETE", "/v1/guests/vm")).status_code == 200
        assert one.daemon.config.guests == ()


async def test_a_replaced_guest_moves_the_added_routes_to_it(tmp_path: Path) -> None:
    async with (
        mux_server(tmp_path / "new", {80: says(b"new")}),
        controlled_daemon(tmp_path, "web") as daemon,
    ):
        await daemon.post("/v1/guests", {"name": "vm", "mux": f"{tmp_path}/old"})
        await daemon.post("/v1/routes", route(daemon, "a", target="vm:80"))
        answer = await daemon.ask("PUT", "/v1/guests/vm", {"mux": f"{tmp_path}/new"})
        assert answer.json()["retargeted"] == ["a"]
        async with await daemon.connect("a") as client:
            assert await read_to_end(client) == b"new"


async def test_what_was_added_survives_a_reload(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/guests", {"name": "vm", "cid": 7})
        await daemon.post("/v1/routes", route(daemon, "a"))
        base = daemon.daemon.base
        await daemon.daemon.replace(lambda: base)
        assert routes(daemon) == ["web", "a"]
        await works(daemon, "a")
        answer = await daemon.get("/v1/config")
        assert [(one["name"], one["is_added"]) for one in answer["routes"]] == [
            ("web", False),
            ("a", True),
        ]
        assert [one["is_added"] for one in answer["guests"]] == [True]
        assert answer["fingerprint"] == base.fingerprint


async def test_a_file_that_brings_the_name_of_an_added_route_wins(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes", route(daemon, "a"))
        web = daemon.daemon.base
        await daemon.daemon.replace(lambda: daemon.daemon.config)
        assert daemon.daemon.added.routes == {}
        assert routes(daemon) == ["web", "a"]
        error = await refused(await daemon.ask("DELETE", "/v1/routes/a"), 409)
        assert error == "the route 'a' is in the configuration (command line): a file wins"
        await daemon.daemon.replace(lambda: web)
        assert routes(daemon) == ["web"]


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"name": "web"}, 409, "the route 'web' is in the configuration (command line): a file wins"),
    ({"name": "old"}, 409, "the route 'old' was added before"),
    ({"name": None}, 400, "the body has no name of a route"),
    ({"name": ""}, 400, "route : name: '' is not a name"),
    ({"listen": "unix:{}/web.sock"}, 400, "is already in use by the route 'web': choose another"),
    ({"listen": "unix:{}/admin.sock"}, 400, "is already in use by the daemon itself"),
    ({"listen": "unix:{}/none/a.sock"}, 409, "cannot listen unix:"),
    ({"listen": "8000-8001", "target": "3:1-2"}, 400, "route a: a range of ports is several rou"),
    ({"target": "unix:{}/a.sock"}, 400, "is the route's own listener"),
    ({"target": "vm:80"}, 400, "route a: target: 'vm:80': no guest 'vm' in [guests]"),
    ({"target": None}, 400, "route a: target: "),
    ({"backlog": "many"}, 400, "route a: backlog: "),
    ({"colour": "red"}, 400, "route a: colour: unknown key"),
    ({"allow": ["vm"], "target": "unix:/x"}, 400, "route a: allow: "),
]


@pytest.mark.parametrize("keys", BAD, ids=[one[2] for one in BAD])
async def test_a_failed_change_changes_nothing(
    tmp_path: Path, keys: tuple[dict[str, Any], int, str]
) -> None:
    changed, status, says_ = keys
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes", route(daemon, "old"))
        before = daemon.daemon.config, daemon.daemon.added, files_in(tmp_path)
        body = route(daemon, "a", **json.loads(json.dumps(changed).replace("{}", str(tmp_path))))
        error = await refused(await daemon.ask("POST", "/v1/routes", body), status)
        assert says_ in error
        assert before == (daemon.daemon.config, daemon.daemon.added, files_in(tmp_path))
        assert daemon.daemon.reloads.last_failure is None
        await works(daemon, "old")
        await works(daemon, "web")


@pytest.mark.parametrize("kind", ["routes", "guests"])
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_what_does_not_exist_is_neither_replaced_nor_removed(
    tmp_path: Path, method: str, kind: str
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await refused(await daemon.ask(method, f"/v1/{kind}/none", {}), 404)


async def test_a_route_cannot_be_renamed(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes", route(daemon, "a"))
        await refused(await daemon.ask("PUT", "/v1/routes/a", route(daemon, "b")), 400)


async def test_without_a_file_nothing_is_persisted(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        answer = await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        await refused(answer, 409)
        assert routes(daemon) == ["web"]


async def test_status_marks_an_added_route(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes", route(daemon, "a"))
        marks = {one["name"]: one["is_added"] for one in (await daemon.get("/v1/routes"))["routes"]}
        assert marks == {"web": False, "a": True}


async def test_a_guest_with_a_command_is_not_added_at_run_time(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        guest = {"name": "vm", "command": ["echo", "7"]}
        await refused(await daemon.ask("POST", "/v1/guests", guest), 409)
        await daemon.post("/v1/guests", {"name": "vm", "cid": 7})
        await refused(await daemon.ask("PUT", "/v1/guests/vm", {"command": ["echo"]}), 409)
        assert [str(guest.locator) for guest in daemon.daemon.config.guests] == ["cid = 7"]


@pytest.mark.parametrize(
    "uri", ["qemu+ext:///system?command=/tmp/x", "qemu+ssh://host/system", "qemu:///system?no=1"]
)
async def test_a_guest_whose_uri_can_run_a_program_is_not_added_at_run_time(
    tmp_path: Path, uri: str
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        guest = {"name": "vm", "libvirt": "vm", "uri": uri}
        await refused(await daemon.ask("POST", "/v1/guests", guest), 409)
        await daemon.post("/v1/guests", {"name": "vm", "cid": 7})
        await refused(await daemon.ask("PUT", "/v1/guests/vm", {"libvirt": "vm", "uri": uri}), 409)


async def test_an_added_guest_does_not_take_a_name_from_a_pattern_of_a_file(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/guests", {"name": "vm-1", "cid": 7})
        pattern = Guest("vm-*", MuxGlob(f"{tmp_path}/{{name}}*"))
        base = replace(daemon.daemon.base, guests=(pattern,))
        await daemon.daemon.replace(lambda: base)
        assert daemon.daemon.config.guests == (pattern,)
        error = await refused(
            await daemon.ask("POST", "/v1/guests", {"name": "vm-2", "cid": 8}), 409
        )
        assert error == "a pattern in the configuration (command line) names the guest 'vm-2'"


async def test_a_client_that_may_only_steer_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        await daemon.post("/v1/routes", route(daemon, "a"))
        monkeypatch.setattr("os.geteuid", lambda: 4321)  # the client is another user than ours
        monkeypatch.setattr("vsockproxy.admin.permission._ROOT", 4321)
        for operation in OPERATIONS:
            if operation.method == "GET" or not operation.changes:
                continue
            path = operation.path.replace("{name:path}", "a")
            for written in (path, f"{path}/", f"/{path}", f"{path}?persist=true"):
                answer = await daemon.ask(operation.method, written, route(daemon, "b"))
                assert answer.status_code in (403, 404, 405)
        assert routes(daemon) == ["web", "a"]


async def test_a_change_after_a_stop_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web") as daemon:
        live, _ = await daemon.live("web")
        resolve = daemon.daemon._sockets.resolve

        async def stop_first(wanted: Any) -> Any:
            daemon.daemon.stop()
            return await resolve(wanted)

        daemon.daemon._sockets.resolve = stop_first  # type: ignore[method-assign]
        await refused(await daemon.ask("POST", "/v1/routes", route(daemon, "a")), 409)
        assert daemon.daemon.added.routes == {}
        await live.aclose()


# ---- persisted ----

NAME = 'a "/ä'


@asynccontextmanager
async def from_files(folder: Path, suffix: str = "toml") -> AsyncIterator[ControlledDaemon]:
    """Run a daemon with a file that includes others; its route web leads to an echo."""
    main = folder / "config.toml"
    if not main.exists():
        (folder / "conf.d").mkdir()
        main.write_text(
            f'include = ["conf.d/*.{suffix}"]\n[defaults]\nbacklog = 9\n'
            f'[admin]\nsocket = "{folder}/admin.sock"\n[[route]]\nname = "web"\n'
            f'listen = "unix:{folder}/web.sock"\ntarget = "vsock-mux:{folder}/guest:80"\n'
        )
    async with mux_server(folder / "guest", {80: echo}), trio.open_nursery() as nursery:
        daemon = Daemon(load_config(main), load=lambda: load_config(main))
        await nursery.start(daemon.run)
        transport = httpx.AsyncHTTPTransport(uds=f"{folder}/admin.sock")
        async with httpx.AsyncClient(
            transport=transport, base_url="http://daemon", timeout=30
        ) as http:
            yield ControlledDaemon(daemon, http, folder / "admin.sock")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("suffix", ["toml", "yaml", "yml"])
async def test_a_persisted_route_and_guest_survive_a_restart(tmp_path: Path, suffix: str) -> None:
    files = tmp_path / "conf.d"
    async with from_files(tmp_path, suffix) as daemon:
        guest = {"name": "vm", "mux": f"{tmp_path}/guest"}
        keys = {"target": "vm:80", "wait_for_guest": "5s", "access_log": False}
        body = route(daemon, NAME, listen=f"unix:{tmp_path}/a.sock", deny=["uid:9999"], **keys)
        for path, content in (("/v1/guests", guest), ("/v1/routes", body)):
            answer = await daemon.ask("POST", path, content, persist=True)
            assert answer.status_code == 200, answer.text
        assert len(files_in(files)) == 2
        assert daemon.daemon.added.routes == {}
    async with from_files(tmp_path, suffix) as daemon:
        assert routes(daemon) == ["web", NAME]
        policy = daemon.daemon.config.routes[1].policy
        assert (policy.backlog, policy.access_log) == (9, False)
        client = await trio.open_unix_socket(f"{tmp_path}/a.sock")
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        await client.aclose()


async def test_a_persisted_route_needs_a_persisted_guest(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        await daemon.post("/v1/guests", {"name": "vm", "mux": f"{tmp_path}/guest"})
        body = route(daemon, "a", target="vm:80")
        error = await refused(await daemon.ask("POST", "/v1/routes", body, persist=True), 409)
        assert error == "the route 'a' needs a guest that was added without persist"
        assert files_in(tmp_path / "conf.d") == []


async def test_a_persisted_route_is_replaced_and_removed_in_its_file(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        body = route(daemon, "a", backlog=3)
        assert (await daemon.ask("PUT", "/v1/routes/a", body)).json()["changed"] == ["a"]
    async with from_files(tmp_path) as daemon:
        assert daemon.daemon.config.routes[1].policy.backlog == 3
        assert (await daemon.ask("DELETE", "/v1/routes/a")).json()["removed"] == ["a"]
        assert files_in(tmp_path / "conf.d") == []
        assert routes(daemon) == ["web"]


@pytest.mark.parametrize("file", ["main", "own"])
async def test_a_file_of_the_operator_wins(tmp_path: Path, file: str) -> None:
    async with from_files(tmp_path) as daemon:
        name = "web"
        if file == "own":
            name = "b"
            text = f'[[route]]\nname = "b"\nlisten = "unix:{tmp_path}/b.sock"\ntarget = "3:1"\n'
            (tmp_path / "conf.d/mine.toml").write_text(text)
            await daemon.post("/v1/reload")
        body = route(daemon, name, backlog=3)
        for method, path in (
            ("POST", "/v1/routes"),
            ("PUT", f"/v1/routes/{name}"),
            ("DELETE", f"/v1/routes/{name}"),
        ):
            error = await refused(await daemon.ask(method, path, body), 409)
            assert error.endswith("a file wins")


async def test_a_persisted_change_that_fails_leaves_no_file(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        body = route(daemon, "a", listen=f"unix:{tmp_path}/none/a.sock")
        await refused(await daemon.ask("POST", "/v1/routes", body, persist=True), 409)
        assert files_in(tmp_path / "conf.d") == []
        await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        before = (tmp_path / "conf.d/route-a.toml").read_text()
        await refused(await daemon.ask("PUT", "/v1/routes/a", body), 409)
        assert [one.read_text() for one in files_in(tmp_path / "conf.d")] == [before]
        assert daemon.daemon.reloads.last_failure is None
        await works(daemon, "a")


async def test_a_persisted_change_whose_undoing_takes_too_long_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("vsockproxy.daemon.change._UNDONE_WITHIN", 0.01)
    async with from_files(tmp_path) as daemon:
        monkeypatch.setattr(daemon.daemon.changing_entries, "_put_back", hang)
        body = route(daemon, "a", listen=f"unix:{tmp_path}/none/a.sock")
        with structlog.testing.capture_logs() as logs:
            await refused(await daemon.ask("POST", "/v1/routes", body, persist=True), 409)
    [line] = [line for line in logs if line["event"] == "change_not_undone"]
    assert f"{tmp_path}/conf.d/route-a.toml was not put back" in line["error"]


async def test_a_persisted_change_without_its_folder_says_to_create_it(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        (tmp_path / "conf.d").rmdir()
        answer = await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        assert answer.status_code == 409
        assert answer.json()["remedy"] == f"create the folder {tmp_path}/conf.d"


async def test_a_persisted_guest_that_a_file_needs_is_not_removed(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        await daemon.ask("POST", "/v1/guests", {"name": "vm", "cid": 7}, persist=True)
        body = route(daemon, "a", target="vm:80")
        await daemon.ask("POST", "/v1/routes", body, persist=True)
        error = await refused(await daemon.ask("DELETE", "/v1/guests/vm"), 409)
        assert error.startswith("the guest 'vm' is in use: ")
        assert "conf.d/route-a.toml:1:" in error
        assert error.endswith(": route[0].target")
        assert (tmp_path / "conf.d/guest-vm.toml").exists()


async def test_a_file_with_an_error_is_not_taken_for_a_use_of_the_guest(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        await daemon.ask("POST", "/v1/guests", {"name": "vm", "cid": 7}, persist=True)
        main = tmp_path / "config.toml"
        main.write_text(main.read_text() + "oops = 1\n")
        error = await refused(await daemon.ask("DELETE", "/v1/guests/vm"), 400)
        assert error.startswith(f"{main}:10:1: ")
        assert "in use" not in error
        assert (tmp_path / "conf.d/guest-vm.toml").exists()


async def test_a_persisted_change_takes_in_no_other_change_of_the_files(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        main = tmp_path / "config.toml"
        main.write_text(main.read_text().replace("backlog = 9", "backlog = 8"))
        answer = await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        assert "has changed since the daemon read it" in await refused(answer, 409)
        assert files_in(tmp_path / "conf.d") == []


async def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        file = tmp_path / "conf.d/route-a.toml"
        file.write_text("# mine\n")
        answer = await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        assert await refused(answer, 409) == f"{file} exists"
        assert file.read_text() == "# mine\n"


@pytest.mark.parametrize(
    "more",
    ['[forward]\n"unix:{}/c.sock" = "3:1"\n', "[guests]\nvm = {{ cid = 7 }}\n", "[[route]]\n"],
)
async def test_a_file_with_more_than_the_entry_is_the_operators(tmp_path: Path, more: str) -> None:
    async with from_files(tmp_path) as daemon:
        await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        file = tmp_path / "conf.d/route-a.toml"
        if more == "[[route]]\n":
            more = f'name = "c"\nlisten = "unix:{tmp_path}/c.sock"\ntarget = "3:1"\n'
            entry = f'name = "a"\nlisten = "unix:{tmp_path}/a.sock"\ntarget = "3:1"\n'
            file.write_text(f"[[route]]\n{entry}[[route]]\n{more}")
        else:
            file.write_text(file.read_text() + more.format(tmp_path))
        await daemon.post("/v1/reload")
        before = file.read_text()
        for method in ("PUT", "DELETE"):
            answer = await daemon.ask(method, "/v1/routes/a", route(daemon, "a", backlog=3))
            assert (await refused(answer, 409)).endswith("a file wins")
        assert file.read_text() == before


ODD = [
    "..x",
    "../../x",
    "a/b",
    ".hidden",
    "ä" * 42,
    "x" * 128,
    "*",
    "[a]",
    "%2F",
    "a\\b",
    "~",
    "🙂",
]


@pytest.mark.parametrize("name", ODD)
async def test_a_persisted_route_with_an_odd_name_stays_in_the_folder(
    tmp_path: Path, name: str
) -> None:
    async with from_files(tmp_path) as daemon:
        before = files_in(tmp_path)
        body = route(daemon, name, listen=f"unix:{tmp_path}/odd.sock")
        answer = await daemon.ask("POST", "/v1/routes", body, persist=True)
        if answer.status_code != 200:
            assert "is too long for a file" in await refused(answer, 409)
            return
        assert len(files_in(tmp_path / "conf.d")) == 1
        assert routes(daemon) == ["web", name]
        path = f"/v1/routes/{quote(name, safe='')}"
        assert (await daemon.ask("PUT", path, {**body, "backlog": 3})).status_code == 200
        assert (await daemon.ask("DELETE", path)).status_code == 200
        assert files_in(tmp_path / "conf.d") == []
        assert files_in(tmp_path) == before


async def test_names_that_differ_by_case_have_a_file_each(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        for name in ("vm", "VM"):
            answer = await daemon.ask("POST", "/v1/routes", route(daemon, name), persist=True)
            assert answer.status_code == 200, answer.text
        await daemon.ask("DELETE", "/v1/routes/VM")
        assert routes(daemon) == ["web", "vm"]


async def test_on_a_disk_that_ignores_case_no_other_file_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with from_files(tmp_path) as daemon:
        main = tmp_path / "config.toml"
        text = f'[[route]]\nname = "A"\nlisten = "unix:{tmp_path}/A.sock"\ntarget = "3:1"\n'
        main.write_text(main.read_text() + text)
        await daemon.post("/v1/reload")
        await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        file = tmp_path / "conf.d/route-a.toml"
        monkeypatch.setattr(persisted, "file_of", lambda *_: file)  # as such a disk finds it
        await refused(await daemon.ask("DELETE", "/v1/routes/A"), 409)
        assert file.exists()


async def test_a_write_that_is_not_synced_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with from_files(tmp_path) as daemon:

        def fail(folder: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(persisted, "_sync", fail)
        answer = await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        assert "Input/output error" in await refused(answer, 409)
        assert files_in(tmp_path / "conf.d") == []
        assert routes(daemon) == ["web"]


async def test_a_file_that_cannot_be_read_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        file = tmp_path / "conf.d/route-a.toml"
        file.unlink()
        file.mkdir()
        await refused(await daemon.ask("DELETE", "/v1/routes/a"), 409)
        assert routes(daemon) == ["web", "a"]


@pytest.mark.parametrize("function", ["has_only", "read", "write"])
async def test_a_disk_that_hangs_does_not_hold_up_the_end_of_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    hung, answered = trio.Event(), threading.Event()
    loop = trio.lowlevel.current_trio_token()

    def hang(*_: object) -> None:
        loop.run_sync_soon(hung.set)
        answered.wait(30)

    monkeypatch.setattr("vsockproxy.daemon.change._UNDONE_WITHIN", 0.01)
    try:
        async with from_files(tmp_path) as daemon:
            await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
            monkeypatch.setattr(persisted, function, hang)

            async def remove() -> None:
                await refused(await daemon.ask("DELETE", "/v1/routes/a"), 409)

            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(remove)
                    await hung.wait()
                    daemon.daemon.stop()
    finally:
        answered.set()


async def test_a_folder_that_does_not_exist_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    async with from_files(tmp_path) as daemon:
        (tmp_path / "conf.d").rmdir()
        answer = await daemon.ask("POST", "/v1/routes", route(daemon, "a"), persist=True)
        assert await refused(answer, 409) == (
            f"cannot write {tmp_path}/conf.d/route-a.toml: No such file or directory"
        )


# ---- many ----


async def test_500_routes_added_and_removed_under_load_lose_no_connection_of_others(
    tmp_path: Path,
) -> None:
    number, done = 500, trio.Event()
    served = 0

    async def client(daemon: ControlledDaemon) -> None:
        nonlocal served
        while not done.is_set():
            async with await daemon.connect("web") as stream:
                await stream.send_all(b"x" * 100)
                await stream.send_eof()
                assert await read_to_end(stream) == b"x" * 100
            served += 1

    async def change(daemon: ControlledDaemon, names: list[str]) -> None:
        for name in names:
            await daemon.post("/v1/routes", route(daemon, name))
        for name in names:
            assert (await daemon.ask("DELETE", f"/v1/routes/{name}")).status_code == 200

    async with controlled_daemon(tmp_path, "web") as daemon:
        live, _ = await daemon.live("web")
        async with trio.open_nursery() as clients:
            for _ in range(4):
                clients.start_soon(client, daemon)
            async with trio.open_nursery() as changes:
                for start in range(4):
                    names = [f"r{index}" for index in range(start, number, 4)]
                    changes.start_soon(change, daemon, names)
            done.set()
        await live.send_all(b"y")
        assert await live.receive_some() == b"y"
        await live.aclose()
        assert routes(daemon) == ["web"]
        await until(lambda: daemon.stats("web").connections == served + 1)
    assert served
