"""Dials: the connected socket, the error of a failed dial, and no descriptor left over."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

import vsockproxy
from tests.fake_services import (
    as_ordinary_user,
    cancelled_while_waiting,
    dead_unix_socket,
    full_tcp_listener,
    full_unix_listener,
    listening,
    needs_ipv6,
    no_descriptors_left,
    open_folder,
    taken_on_ipv6_alone,
    unix_listener,
    unused_tcp_port,
    without_ipv6,
)
from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import (
    AF_VSOCK,
    Dialable,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.address.sockaddr import new_socket, peer_name
from vsockproxy.dial import connecting, unix
from vsockproxy.dial.connecting import failed
from vsockproxy.dial.dial import dial
from vsockproxy.dial.unix import connect_now
from vsockproxy.errors import DialError
from vsockproxy.pump.reset import reset

TIMEOUT = 20.0
SHORT = 0.05


async def fails(endpoint: Dialable, timeout: float = TIMEOUT) -> DialError:
    """Return the error of a dial that must fail and leave no descriptor."""
    with no_descriptor_left_over(), pytest.raises(DialError) as caught:
        await dial(endpoint, timeout)
    assert caught.value.endpoint == endpoint
    return caught.value


def exchange(one: socket.socket, other: socket.socket) -> None:
    """Prove that two sockets are the ends of one connection."""
    for sender, receiver in ((one, other), (other, one)):
        receiver.settimeout(TIMEOUT)
        assert sender.send(b"ping") == 4
        assert receiver.recv(8) == b"ping"


# --- dial: tcp ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6), "localhost", None]
)
async def test_a_tcp_target_is_connected_ready_for_the_pump(host: str | None) -> None:
    with listening(TcpEndpoint(host, 0)) as listeners:
        endpoint = listeners[0].endpoint
        assert isinstance(endpoint, TcpEndpoint)
        with await dial(TcpEndpoint(host, endpoint.port), TIMEOUT) as sock:
            listener = next(x.sock for x in listeners if x.sock.family == sock.family)
            listener.settimeout(TIMEOUT)
            accepted, _ = listener.accept()
            with accepted:
                exchange(sock, accepted)
            assert type(sock) is socket.socket
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert not os.get_inheritable(sock.fileno())
            assert not os.get_blocking(sock.fileno())


@needs_ipv6
async def test_a_dial_of_localhost_falls_back_to_ipv6() -> None:
    with taken_on_ipv6_alone() as port, await dial(TcpEndpoint(None, port), TIMEOUT) as sock:
        assert sock.family == socket.AF_INET6


async def test_a_loopback_dial_has_no_checkpoint() -> None:
    """A cancelled scope does not stop it: it has no checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as server, trio.CancelScope() as scope:
        scope.cancel()
        (await dial(TcpEndpoint("127.0.0.1", server.getsockname()[1]), TIMEOUT)).close()
    assert not scope.cancelled_caught


async def test_a_tcp_port_without_listener_is_refused() -> None:
    error = await fails(TcpEndpoint("127.0.0.1", unused_tcp_port()))
    assert (error.reason, error.errno) == ("refused", errno.ECONNREFUSED)


async def test_when_every_address_fails_the_error_says_how_many_were_tried() -> None:
    error = await fails(TcpEndpoint(None, unused_tcp_port()))
    assert error.reason == "refused"
    assert "(2 addresses tried)" in str(error)


async def test_a_tcp_target_that_does_not_answer_times_out() -> None:
    with full_tcp_listener() as (host, port):
        error = await fails(TcpEndpoint(host, port), SHORT)
    assert (error.reason, error.errno) == ("timeout", errno.ETIMEDOUT)


async def test_cancelling_a_tcp_dial_leaks_nothing() -> None:
    with full_tcp_listener() as (host, port):
        await cancelled_while_waiting(TcpEndpoint(host, port))


async def test_an_address_that_drops_packets_delays_the_next_by_a_quarter_of_a_second(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    with full_tcp_listener() as silent, socket.create_server(("127.0.0.2", silent[1])) as server:
        resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        with await dial(TcpEndpoint("two.example", silent[1]), 5) as sock:
            assert sock.getpeername() == server.getsockname()
    assert trio.current_time() == pytest.approx(0.25)


async def test_a_refusal_is_the_reason_and_not_the_silence_of_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with full_tcp_listener() as silent:
        resolves_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        assert (await fails(TcpEndpoint("two.example", silent[1]), SHORT)).reason == "refused"


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_without_ipv6_the_reason_is_that_of_ipv4(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(connecting, "new_socket", without_ipv6(code))
    assert (await fails(TcpEndpoint(None, unused_tcp_port()))).reason == "refused"


async def test_a_late_rst_is_a_refusal() -> None:
    """The listener's end answers the second SYN, which Linux sends after a second."""
    errors = []

    async def refused(endpoint: TcpEndpoint) -> None:
        with pytest.raises(DialError) as caught:
            await dial(endpoint, TIMEOUT)
        errors.append(caught.value.reason)

    async with trio.open_nursery() as nursery:
        with full_tcp_listener() as (host, port):
            nursery.start_soon(refused, TcpEndpoint(host, port))
            await trio.testing.wait_all_tasks_blocked()
    assert errors == ["refused"]


@needs_ipv6
async def test_the_scope_of_an_ipv6_address_reaches_the_kernel() -> None:
    """A link-local address without its scope is EINVAL."""
    error = await fails(TcpEndpoint("fe80::1%lo", unused_tcp_port()))
    assert error.errno != errno.EINVAL
    assert error.reason == "unreachable"


async def test_a_name_that_does_not_resolve_is_named() -> None:
    """The name space ``.invalid`` is empty for ever (RFC 6761)."""
    error = await fails(TcpEndpoint("no-such-host.invalid", 80))
    assert error.reason == "name"
    assert "'no-such-host.invalid' does not resolve" in str(error)


async def test_a_name_that_idna_cannot_encode_does_not_resolve() -> None:
    assert (await fails(TcpEndpoint("a" * 70 + ".example", 80))).reason == "name"


async def test_a_name_server_that_is_silent_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", sleeps_forever)
    error = await fails(TcpEndpoint("silent.example", 80), 5)
    assert error.reason == "timeout"
    assert "'silent.example'" in str(error)
    assert trio.current_time() == pytest.approx(5)


async def test_cancelling_a_name_that_is_being_resolved_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", sleeps_forever)
    await cancelled_while_waiting(TcpEndpoint("silent.example", 80))


async def test_a_tcp_self_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binding to the target's own port makes the simultaneous open that chance makes rarely."""
    port = unused_tcp_port()

    def bound(family: int) -> socket.socket:
        sock = new_socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        return sock

    monkeypatch.setattr(connecting, "new_socket", bound)
    assert (await fails(TcpEndpoint("127.0.0.1", port))).reason == "refused"


async def test_a_full_descriptor_table_is_no_descriptors() -> None:
    endpoint = TcpEndpoint("127.0.0.1", unused_tcp_port())
    with no_descriptors_left(), pytest.raises(DialError) as caught:
        await dial(endpoint, TIMEOUT)
    assert caught.value.reason == "no_descriptors"


# --- dial: unix ---------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{}/server", "@vsockproxy-test{}"])
async def test_a_unix_target_is_connected(tmp_path: Path, spelling: str) -> None:
    endpoint = UnixEndpoint(spelling.format(tmp_path))
    with listening(endpoint) as [listener], await dial(endpoint, TIMEOUT) as sock:
        listener.sock.settimeout(TIMEOUT)
        accepted, _ = listener.sock.accept()
        with accepted:
            exchange(sock, accepted)
        assert not os.get_inheritable(sock.fileno())
        assert not os.get_blocking(sock.fileno())


async def test_a_full_backlog_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "full"
    with full_unix_listener(path):
        error = await fails(UnixEndpoint(str(path)), SHORT)
    assert (error.reason, error.errno) == ("busy", errno.EAGAIN)


async def test_a_dial_is_connected_once_a_full_backlog_has_room(tmp_path: Path) -> None:
    path = tmp_path / "full"
    with full_unix_listener(path) as server:

        async def make_room() -> None:
            await trio.testing.wait_all_tasks_blocked()
            server.accept()[0].close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_room)
            with trio.fail_after(TIMEOUT / 2):  # not only once, at the end
                sock = await dial(UnixEndpoint(str(path)), TIMEOUT)
            with sock:
                assert sock.getpeername() == str(path)


class Counted(socket.socket):
    """A socket that counts the attempts of all to connect."""

    attempts = 0

    def connect_ex(self, address: object) -> int:
        Counted.attempts += 1
        return super().connect_ex(address)  # type: ignore[arg-type] # as socket.socket takes it


async def test_of_many_dials_that_wait_for_a_full_backlog_one_at_a_time_tries(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    dials, seconds = 100, 10
    failures: list[str] = []
    Counted.attempts = 0

    async def fail(path: str) -> None:
        with Counted(socket.AF_UNIX) as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                await unix.connect(sock, path, trio.current_time() + seconds)
        failures.append(path)

    with full_unix_listener(tmp_path / "full"):
        async with trio.open_nursery() as nursery:
            for _ in range(dials):
                nursery.start_soon(fail, str(tmp_path / "full"))
    assert len(failures) == dials
    assert dials < Counted.attempts < 2 * dials + 220 * seconds


async def test_dials_that_wait_for_a_full_backlog_are_connected_in_the_order_of_their_coming(
    tmp_path: Path,
) -> None:
    path, names = tmp_path / "full", [b"first", b"second", b"third"]

    async def call(name: bytes) -> None:
        with await dial(UnixEndpoint(str(path)), TIMEOUT) as sock:
            sock.sendall(name)

    with full_unix_listener(path) as server:
        async with trio.open_nursery() as nursery:
            for name in names[:2]:
                nursery.start_soon(call, name)
                await trio.testing.wait_all_tasks_blocked()
            server.accept()[0].close()  # of the one that fills the backlog: there is room now
            assert connect_now(UnixEndpoint(str(path))) is None
            nursery.start_soon(call, names[2])
            for name in names:
                await trio.lowlevel.wait_readable(server)
                with server.accept()[0] as client:
                    await trio.lowlevel.wait_readable(client)
                    assert client.recv(10) == name


async def test_a_dial_whose_time_is_over_lets_the_next_one_wait_for_a_full_backlog(
    tmp_path: Path,
) -> None:
    path = tmp_path / "full"

    async def is_busy() -> None:
        with pytest.raises(DialError) as caught:
            await dial(UnixEndpoint(str(path)), SHORT)
        assert caught.value.reason == "busy"

    with full_unix_listener(path) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_busy)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(is_busy)
        server.accept()[0].close()
        with await dial(UnixEndpoint(str(path)), TIMEOUT) as sock:
            assert sock.getpeername() == str(path)


async def test_cancelling_the_wait_for_a_full_backlog_leaks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "full"
    with full_unix_listener(path):
        await cancelled_while_waiting(UnixEndpoint(str(path)))


@pytest.mark.parametrize("kind", ["unix", "vsock-mux"])
async def test_a_missing_path_is_not_found(tmp_path: Path, kind: str) -> None:
    assert (await fails(target(kind, tmp_path / "none"))).reason == "not_found"


@pytest.mark.parametrize("kind", ["unix", "vsock-mux"])
async def test_a_path_that_is_not_a_socket_is_refused_and_the_error_says_so(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").touch()
    error = await fails(target(kind, tmp_path / "file"))
    assert (error.reason, error.errno) == ("refused", errno.ECONNREFUSED)
    assert "is not a socket" in str(error)
    with pytest.raises(DialError, match="is not a socket"):
        connect_now(UnixEndpoint(str(tmp_path)))


@pytest.mark.parametrize("kind", ["unix", "vsock-mux"])
async def test_a_dead_socket_file_is_refused(tmp_path: Path, kind: str) -> None:
    dead_unix_socket(tmp_path / "dead")
    error = await fails(target(kind, tmp_path / "dead"))
    assert (error.reason, error.errno) == ("refused", errno.ECONNREFUSED)


async def test_a_refused_abstract_socket_is_refused_whatever_the_working_directory_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "@nothing-there").touch()
    error = await fails(UnixEndpoint("@nothing-there"))
    assert (error.reason, "is not a socket" in str(error)) == ("refused", False)


async def test_a_refused_socket_whose_path_cannot_be_read_any_more_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake: the folder's permissions change between connect(2) and stat(2)."""
    dead_unix_socket(tmp_path / "dead")

    def denied(*_: object, **__: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", denied)
        error = failed(
            UnixEndpoint(str(tmp_path / "dead")), ConnectionRefusedError(errno.ECONNREFUSED, "")
        )
    assert error.reason == "refused"


@pytest.mark.parametrize("kind", ["unix", "vsock-mux"])
async def test_a_socket_without_write_permission_is_denied(kind: str) -> None:
    with open_folder() as folder, unix_listener(folder / "closed"):
        (folder / "closed").chmod(0o600 if os.geteuid() == 0 else 0)
        with as_ordinary_user():
            assert (await fails(target(kind, folder / "closed"))).reason == "denied"


# --- dial: vsock, where the system has none --------------------------------------


async def test_without_af_vsock_a_dial_is_unsupported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    assert (await fails(VsockEndpoint(3, 80))).reason == "unsupported"


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EAFNOSUPPORT, "blocked"), (errno.EPERM, "blocked"), (errno.ENODEV, "no_transport")],
)
async def test_an_errno_of_socket_for_af_vsock_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def refused(family: int) -> socket.socket:
        assert family == AF_VSOCK
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "AF_VSOCK", AF_VSOCK, raising=False)
    monkeypatch.setattr(connecting, "new_socket", refused)
    assert (await fails(VsockEndpoint(3, 80))).reason == reason


# --- the rest -----------------------------------------------------------------------------


def test_a_peers_name_follows_the_address_grammar() -> None:
    assert peer_name(socket.AF_INET, ("127.0.0.1", 5000)) == "127.0.0.1:5000"
    assert peer_name(socket.AF_INET6, ("::1", 5000, 0, 0)) == "[::1]:5000"
    assert peer_name(AF_VSOCK, (3, 1025)) == "vsock:3:1025"
    assert peer_name(socket.AF_UNIX, "") == "unix"


def test_reset_resets_a_tcp_peer() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        reset(accepted)
        assert accepted.fileno() == -1
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_reset_closes_a_unix_socket_and_accepts_a_closed_one() -> None:
    left, right = socket.socketpair()
    with right:
        reset(left)
        reset(left)
        assert right.recv(1) == b""


def test_reset_sets_no_linger_where_it_would_block() -> None:
    left, right = socket.socketpair()
    with right, left:
        copy = left.dup()
        reset(left)
        with copy:
            linger = copy.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            assert struct.unpack("ii", linger) == (0, 0)


def test_the_package_exports_its_library() -> None:
    for name in vsockproxy.__all__:
        assert getattr(vsockproxy, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_the_sort"):
        vsockproxy.nothing_of_the_sort  # noqa: B018 - looking it up is the test


# --- words of this file -------------------------------------------------------------------


def target(kind: str, path: Path) -> Dialable:
    return UnixEndpoint(str(path)) if kind == "unix" else MuxEndpoint(str(path), 80)


async def sleeps_forever(*_arguments: object, **_keywords: object) -> None:
    await trio.sleep_forever()


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name resolve to these IPv4 addresses."""

    async def answer(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(trio.socket, "getaddrinfo", answer)
