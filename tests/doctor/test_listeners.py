"""The doctor's check of listeners and certificates, and its note of what was not checked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.config.texts import toml
from tests.doctor.canned_machine import HOST, machine_tree, routes
from tests.fake_services import as_ordinary_user, open_folder, unix_listener
from vsockproxy.config.document import Plain
from vsockproxy.config.load import forward_config
from vsockproxy.config.settings import Config
from vsockproxy.doctor.examination import Attempts, examine
from vsockproxy.doctor.finding import Finding
from vsockproxy.doctor.listeners import judge_certificates, judge_listeners, judge_users, try_bind
from vsockproxy.doctor.machine import read_machine
from vsockproxy.doctor.running_daemon import RunningDaemon


def judge(config: Config, *running: str) -> list[Finding]:
    return list(judge_listeners(config, frozenset(running), try_bind))


def test_a_port_of_another_process_is_a_problem_and_that_of_the_daemon_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        config = routes(listen, "3:80")
        [found] = judge(config)
        assert judge(config, listen) == []
    assert (found.level, found.subject) == ("problem", f"route {listen}")
    assert "another process listens there" in found.text
    assert "ss -lntp" in found.remedy
    [found] = judge(config)
    assert (found.level, found.text) == ("ok", "1 listener can be opened")


def test_a_unix_socket_that_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    live, missing = tmp_path / "live", tmp_path / "missing" / "x"
    with unix_listener(live):
        found = judge(routes(f"unix:{live}", "3:80", f"unix:{missing}", "3:81"))
    assert [one.level for one in found] == ["problem", "problem"]
    assert "another process listens on this socket" in found[0].text
    assert "the folder of the socket does not exist" in found[1].text


def test_a_folder_that_this_user_may_not_write_to_is_a_problem() -> None:
    with open_folder() as folder:
        folder.chmod(0o555)
        with as_ordinary_user():
            [found] = judge(routes(f"unix:{folder}/x", "3:80"))
    assert "may not create a file there" in found.text


def test_a_certificate_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    tables: dict[str, Plain] = {
        "metrics": {"listen": f"unix:{tmp_path}/m", "certificate": f"{tmp_path}/none.pem"}
    }
    [found] = judge_certificates(forward_config([("8080", "3:80")], tables))
    assert found.level == "problem"
    assert "none.pem: No such file" in found.text


def test_a_file_of_users_that_every_user_can_read_is_noted(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"ann:$2b$05${'a' * 53}\n")
    config = toml(
        f'[[route]]\nname = "out"\nlisten = 1080\nby = "socks5"\ntarget_allow = []\n'
        f'credentials = "{users}"\n'
    )
    users.chmod(0o640)
    assert list(judge_users(config)) == []
    users.chmod(0o644)
    [found] = judge_users(config)
    assert (found.level, found.subject, found.remedy) == (
        *("note", "route out"),
        f"run chmod o= {users}",
    )


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("vsock::80", "the listeners vsock:any:80"),
        ("fd:web", "fd:web"),
        ("tcp:name.example:80", "name.example"),
    ],
)
async def test_a_listener_that_cannot_be_tried_is_listed_as_not_checked(
    tmp_path: Path, listen: str, words: str
) -> None:
    [found] = await unchecked(tmp_path, routes(listen, f"unix:{tmp_path}/none"))
    assert words in found.text
    assert "a running daemon: its routes, rejected clients and last reload" in found.text


async def test_without_a_configuration_everything_of_it_is_listed_as_not_checked(
    tmp_path: Path,
) -> None:
    [found] = await unchecked(tmp_path, None)
    assert "targets, listeners and certificates (no configuration)" in found.text


async def test_nothing_is_listed_as_not_checked_if_all_was(tmp_path: Path) -> None:
    status = {
        **{"pid": 1, "source": "x", "pump": "native", "live": 0, "ready": True},
        **{"failed_reload": None, "fingerprint": ""},
    }
    daemon = RunningDaemon(tmp_path, status, [])
    config = routes(f"unix:{tmp_path}/x", f"unix:{tmp_path}/none")
    assert await unchecked(tmp_path, config, daemon) == []


async def unchecked(
    tmp_path: Path, config: Config | None, daemon: RunningDaemon | None = None
) -> list[Finding]:
    found = await examine(
        config,
        machine=read_machine(machine_tree(tmp_path, HOST)),
        attempts=Attempts(open_vsock=lambda: 0, read_cid=lambda: 2, bind=lambda _: None),
        daemon=daemon,
    )
    return [one for one in found if one.subject == "not checked"]
