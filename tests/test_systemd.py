"""Sockets that systemd hands in: names, counts, and variables that contradict themselves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from vsockproxy.errors import ListenError
from vsockproxy.systemd import inherited_sockets

# What a daemon would do with them, told on standard output.
_DAEMON = """
import json, os
from vsockproxy.systemd import inherited_sockets

print(json.dumps({
    name: [
        [sock.fileno(), sock.getsockname()[1], os.get_inheritable(sock.fileno()), sock.gettimeout()]
        for sock in sockets
    ]
    for name, sockets in inherited_sockets(os.environ, os.getpid()).items()
}))
"""

# exec keeps the process: the shell's number is the daemon's, as systemd knows it.
_COMMAND = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" -c "$1"', sys.executable, _DAEMON]


def hand_in(files: list[int], variables: Mapping[str, str]) -> dict[str, list[Any]]:
    """What a process sees that is started as systemd starts one: ``files`` from 3 upwards."""
    moves = [(os.POSIX_SPAWN_DUP2, file, 100 + n) for n, file in enumerate(files)]
    moves += [(os.POSIX_SPAWN_DUP2, 100 + n, 3 + n) for n, _ in enumerate(files)]
    moves += [(os.POSIX_SPAWN_CLOSE, 100 + n) for n, _ in enumerate(files)]  # type: ignore[misc] # a close has one number
    reader, writer = os.pipe()
    moves.append((os.POSIX_SPAWN_DUP2, writer, 1))
    pid = os.posix_spawnp("sh", _COMMAND, {**os.environ, **variables}, file_actions=moves)
    os.close(writer)
    with os.fdopen(reader) as output:
        text = output.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    answer: dict[str, list[Any]] = json.loads(text)
    return answer


def test_sockets_come_by_name_and_a_name_may_have_several() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as a,
        socket.create_server(("127.0.0.1", 0)) as b,
        socket.create_server(("127.0.0.1", 0)) as c,
    ):
        ports = [sock.getsockname()[1] for sock in (a, b, c)]
        seen = hand_in(
            [a.fileno(), b.fileno(), c.fileno()],
            {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:metrics:web"},
        )
    assert seen == {
        "web": [[3, ports[0], False, 0.0], [5, ports[2], False, 0.0]],
        "metrics": [[4, ports[1], False, 0.0]],
    }


def test_sockets_without_names_are_unknown() -> None:
    """The word is the manual page's."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert list(hand_in([sock.fileno()], {"LISTEN_FDS": "1"})) == ["unknown"]


def test_a_file_that_is_no_socket_is_passed_over() -> None:
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as sock, os.fdopen(reader), os.fdopen(writer, "w"):
        seen = hand_in([reader, sock.fileno()], {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "pipe:web"})
    assert list(seen) == ["web"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "5"},
        {"LISTEN_PID": "4", "LISTEN_FDS": "1"},
        {"LISTEN_PID": "5", "LISTEN_FDS": "0"},
        {"LISTEN_PID": "5", "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""},
    ],
)
def test_nothing_is_taken_that_is_not_meant_for_this_process(environ: dict[str, str]) -> None:
    assert inherited_sockets(environ, 5) == {}


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", " 1", "٣", "9" * 5000])
def test_a_count_that_is_no_number_is_an_error_that_names_the_variable(count: str) -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS") as caught:
        inherited_sockets({"LISTEN_PID": "5", "LISTEN_FDS": count}, 5)
    assert caught.value.reason == "invalid"


def test_names_that_are_not_as_many_as_sockets_are_an_error() -> None:
    with pytest.raises(ListenError, match="3 names for 2 sockets"):
        inherited_sockets({"LISTEN_PID": "5", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b:c"}, 5)


def test_a_count_beyond_the_open_files_is_an_error_and_not_a_crash() -> None:
    run = subprocess.run(
        _COMMAND, env={**os.environ, "LISTEN_FDS": "1"}, check=False, capture_output=True
    )
    assert run.returncode != 0
    assert b"counts descriptor 3, which is not open" in run.stderr
