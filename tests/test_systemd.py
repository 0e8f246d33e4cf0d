"""The interface to systemd: inherited sockets, names in the fd store, notifications."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import Any

import pytest

from tests.fake_systemd import FakeSystemd, fake_systemd
from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import ListenEndpoint, TcpEndpoint, UnixEndpoint, VsockEndpoint
from vsockproxy.errors import ListenError
from vsockproxy.systemd import Notifier, inherited_sockets, is_store_name, store_name

# Prints the inherited sockets.
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

# exec keeps the pid: the shell's is the one in LISTEN_PID.
_COMMAND = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" -c "$1"', sys.executable, _DAEMON]


def hand_in(files: list[int], variables: Mapping[str, str]) -> dict[str, list[Any]]:
    """Return the sockets of a process that is started as by systemd, with ``files`` from 3 up."""
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


def test_sockets_are_grouped_by_name() -> None:
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


def test_sockets_without_names_are_named_unknown() -> None:
    """The name is the manual page's."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert list(hand_in([sock.fileno()], {"LISTEN_FDS": "1"})) == ["unknown"]


def test_a_file_that_is_not_a_socket_is_ignored() -> None:
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
def test_variables_for_another_process_are_ignored(environ: dict[str, str]) -> None:
    assert inherited_sockets(environ, 5) == {}


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", " 1", "٣", "9" * 5000])
def test_a_count_that_is_not_a_number_is_an_error_that_names_the_variable(count: str) -> None:
    with pytest.raises(ListenError, match="LISTEN_FDS") as caught:
        inherited_sockets({"LISTEN_PID": "5", "LISTEN_FDS": count}, 5)
    assert caught.value.reason == "invalid"


def test_a_number_of_names_that_differs_from_the_count_is_an_error() -> None:
    with pytest.raises(ListenError, match="3 names for 2 sockets"):
        inherited_sockets({"LISTEN_PID": "5", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b:c"}, 5)


def test_a_count_beyond_the_open_files_is_an_error() -> None:
    run = subprocess.run(
        _COMMAND, env={**os.environ, "LISTEN_FDS": "1"}, check=False, capture_output=True
    )
    assert run.returncode != 0
    assert b"counts descriptor 3, which is not open" in run.stderr


# ---- names in the store ----


@pytest.mark.parametrize(
    "endpoint",
    [
        TcpEndpoint(None, 80),
        TcpEndpoint(".".join(["a" * 62] * 4), 65535),
        VsockEndpoint(port=5432),
        UnixEndpoint("/run/\udcff/ü:\n.sock"),
    ],
)
def test_a_store_name_is_valid_and_differs_from_an_operators_names(
    endpoint: ListenEndpoint,
) -> None:
    name = store_name(endpoint, 1)
    assert re.fullmatch(r"[!-9;-~]{1,255}", name)
    assert is_store_name(name)
    assert not is_store_name("web")


def test_store_names_differ_by_endpoint_and_by_index() -> None:
    a, b = TcpEndpoint("127.0.0.1", 80), TcpEndpoint("127.0.0.1", 8)
    assert len({store_name(a, 0), store_name(a, 1), store_name(b, 0)}) == 3


def test_store_names_do_not_change_between_versions() -> None:
    """An upgrade restores the sockets of the last version."""
    assert (
        store_name(TcpEndpoint("127.0.0.1", 80), 0)
        == "vsockproxy-listener-5f44ddf8975c261c0ec83c6a94cb699e-0"
    )


# ---- notifications ----


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    with fake_systemd(tmp_path / "notify") as running:
        yield running


@pytest.fixture
def notifier(systemd: FakeSystemd) -> Iterator[Notifier]:
    with Notifier(systemd.environ, os.getpid()) as notifier:
        yield notifier


@pytest.mark.parametrize(
    ("say", "fields"),
    [
        (Notifier.ready, {"READY": "1"}),
        (Notifier.stopping, {"STOPPING": "1"}),
        (Notifier.watchdog, {"WATCHDOG": "1"}),
        (lambda notifier: notifier.extend_timeout(1.5), {"EXTEND_TIMEOUT_USEC": "1500000"}),
        (lambda notifier: notifier.status("2 routes"), {"STATUS": "2 routes"}),
        (lambda notifier: notifier.fd_remove("a"), {"FDSTOREREMOVE": "1", "FDNAME": "a"}),
    ],
)
def test_each_notification_is_one_datagram(
    systemd: FakeSystemd,
    notifier: Notifier,
    say: Callable[[Notifier], object],
    fields: dict[str, str],
) -> None:
    say(notifier)
    assert systemd.receive().fields == fields


def test_a_status_with_a_newline_is_one_assignment(
    systemd: FakeSystemd, notifier: Notifier
) -> None:
    notifier.status("bad\nSTOPPING=1\n")
    assert systemd.receive().fields == {"STATUS": "bad STOPPING=1"}


def test_reloading_and_its_time_are_one_message(systemd: FakeSystemd, notifier: Notifier) -> None:
    """Type=notify-reload requires a time after its signal, in the same datagram."""
    before = clock_gettime_ns(CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    fields = systemd.receive().fields
    assert fields["RELOADING"] == "1"
    assert before <= int(fields["MONOTONIC_USEC"]) <= clock_gettime_ns(CLOCK_MONOTONIC) // 1000


def test_a_stored_socket_is_sent_and_stays_open(systemd: FakeSystemd, notifier: Notifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.fd_store("web", sock)
        message = systemd.receive()
        assert message.fields == {"FDSTORE": "1", "FDNAME": "web", "FDPOLL": "0"}
        [file] = message.files
        assert os.path.sameopenfile(file, sock.fileno())


def test_an_abstract_socket_is_notified() -> None:
    with fake_systemd("@vsockproxy-test-notify") as systemd:
        with Notifier(systemd.environ, os.getpid()) as notifier:
            notifier.ready()
        assert systemd.receive().fields == {"READY": "1"}


@pytest.mark.parametrize("name", [None, "", "relative", "vsock:2:1234"])
def test_without_a_valid_notify_socket_nothing_is_sent_or_opened(
    name: str | None,
) -> None:
    environ = {} if name is None else {"NOTIFY_SOCKET": name}
    with no_descriptor_left_over():
        notifier = Notifier(environ, os.getpid())
    notifier.ready()
    assert not notifier.active
    assert not notifier.watchdog()


def test_a_missing_notify_socket_is_not_an_error(tmp_path: Path) -> None:
    with Notifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}, os.getpid()) as notifier:
        notifier.ready()
        assert not notifier.watchdog()
        assert notifier.flush(), "the message must be dropped"


def test_messages_to_a_full_socket_are_queued_in_order(
    systemd: FakeSystemd, notifier: Notifier
) -> None:
    room = _fill(notifier)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.fd_store("web", sock)
        notifier.ready()
        assert not notifier.flush()
        for _ in range(room):
            assert systemd.receive().fields == {"WATCHDOG": "1"}
        assert notifier.flush()
    assert systemd.receive().fields["FDNAME"] == "web"
    assert systemd.receive().fields == {"READY": "1"}


def test_a_status_does_not_overtake_queued_messages(
    systemd: FakeSystemd, notifier: Notifier
) -> None:
    room = _fill(notifier)
    notifier.ready()
    assert not notifier.status("early")
    for _ in range(room):
        systemd.receive()
    assert notifier.status("late")
    assert systemd.receive().fields == {"READY": "1"}
    assert systemd.receive().fields == {"STATUS": "late"}


def test_a_queued_socket_that_was_closed_does_not_block_the_queue(
    systemd: FakeSystemd, notifier: Notifier
) -> None:
    room = _fill(notifier)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.fd_store("web", sock)
    notifier.ready()
    for _ in range(room):
        systemd.receive()
    assert notifier.flush()
    assert systemd.receive().fields == {"READY": "1"}


def test_a_watchdog_message_needs_no_free_descriptor(
    systemd: FakeSystemd, notifier: Notifier
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert notifier.watchdog()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert systemd.receive().fields == {"WATCHDOG": "1"}


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "5"}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "6"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_interval_applies_only_to_the_named_process(
    systemd: FakeSystemd, environ: dict[str, str], seconds: float | None
) -> None:
    with Notifier({**systemd.environ, **environ}, 5) as notifier:
        assert notifier.watchdog_seconds == seconds


def _fill(notifier: Notifier) -> int:
    """Fill systemd's socket; return the number of messages."""
    number = 0
    while notifier.watchdog():
        number += 1
    return number
