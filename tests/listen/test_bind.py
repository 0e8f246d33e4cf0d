"""Bind listeners: addresses, the files of Unix sockets, errors that leave nothing open."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fake_services import (
    ORDINARY_USER,
    as_ordinary_user,
    dead_unix_socket,
    full_unix_listener,
    listening,
    needs_ipv6,
    no_descriptors_left,
    open_folder,
    taken_on_ipv6_alone,
    unix_listener,
    without_ipv6,
)
from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import (
    AF_VSOCK,
    FdEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.errors import ListenError
from vsockproxy.listen import bind as binding
from vsockproxy.listen.bind import listen

TIMEOUT = 20.0


def refuses(
    endpoint: TcpEndpoint | UnixEndpoint | MuxEndpoint | FdEndpoint | VsockEndpoint,
    inherited: dict[str, list[socket.socket]] | None = None,
) -> ListenError:
    """Return the error of a listen that must fail and leave no descriptor."""
    with no_descriptor_left_over(), pytest.raises(ListenError) as caught:
        listen(endpoint, 16, inherited or {})
    assert caught.value.endpoint == endpoint
    return caught.value


# --- listen: tcp --------------------------------------------------------------------------


@needs_ipv6
def test_a_bare_port_listens_on_both_loopback_addresses_with_one_number() -> None:
    with listening(TcpEndpoint(None, 0)) as listeners:
        four, six = (listener.sock.getsockname()[:2] for listener in listeners)
        assert (four[0], six[0]) == ("127.0.0.1", "::1")
        assert four[1] == six[1] != 0
        assert [str(x.endpoint) for x in listeners] == [
            f"tcp:127.0.0.1:{four[1]}",
            f"tcp:[::1]:{four[1]}",
        ]


@needs_ipv6
def test_a_free_port_that_is_taken_on_ipv6_is_chosen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with taken_on_ipv6_alone() as port:
        ports = iter([port, 0])
        original = binding._listening

        def unlucky(family: int, address: tuple[str, int], *others: Any) -> socket.socket:
            if family == socket.AF_INET:
                address = (address[0], next(ports))
            return original(family, address, *others)

        monkeypatch.setattr(binding, "_listening", unlucky)
        with listening(TcpEndpoint(None, 0)) as listeners:
            assert len(listeners) == 2
            assert listeners[1].sock.getsockname()[1] != port


@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_without_ipv6_the_ipv4_loopback_is_enough(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(binding, "new_socket", without_ipv6(code))
    with listening(TcpEndpoint(None, 0)) as [only]:
        assert only.sock.family == socket.AF_INET


def test_accepted_tcp_sockets_inherit_the_listeners_options() -> None:
    with (
        listening(TcpEndpoint("127.0.0.1", 0)) as [listener],
        socket.create_connection(listener.sock.getsockname()),
    ):
        listener.sock.settimeout(TIMEOUT)
        accepted, _ = listener.sock.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_listeners_are_non_blocking_and_not_inherited_by_children() -> None:
    with listening(TcpEndpoint(None, 0)) as listeners:
        for listener in listeners:
            assert not os.get_blocking(listener.sock.fileno())
            assert not os.get_inheritable(listener.sock.fileno())


@needs_ipv6
def test_every_ipv6_address_does_not_take_the_ipv4_port() -> None:
    for _ in range(10):  # another process may have the IPv4 port
        with listening(TcpEndpoint("::", 0)) as [six], suppress(ListenError):
            port = six.sock.getsockname()[1]
            with listening(TcpEndpoint("0.0.0.0", port)) as [four]:
                assert four.sock.getsockname()[1] == port
                return
    pytest.fail("the IPv4 port was in use ten times")


@needs_ipv6
def test_a_host_name_without_an_address_is_an_error() -> None:
    with pytest.raises(ListenError) as caught:
        listen(TcpEndpoint("host.example", 80), 16, {}, resolved=[])
    assert caught.value.reason == "name"


@needs_ipv6
def test_a_taken_port_is_in_use_and_says_on_which_address() -> None:
    with taken_on_ipv6_alone() as port:
        error = refuses(TcpEndpoint(None, port))
    assert (error.reason, error.errno) == ("in_use", errno.EADDRINUSE)
    assert f"[::1]:{port}: " in str(error)


def test_an_address_of_another_machine_is_not_local() -> None:
    assert refuses(TcpEndpoint("192.0.2.1", 0)).reason == "not_local"


def test_a_privileged_port_is_denied_to_an_ordinary_user() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first == 0:
        pytest.skip("net.ipv4.ip_unprivileged_port_start=0: no port is privileged here")
    with as_ordinary_user():
        error = refuses(TcpEndpoint("127.0.0.1", first - 1))
    assert error.reason == "denied"
    assert "CAP_NET_BIND_SERVICE" in str(error)


def test_a_full_descriptor_table_is_the_reason_no_descriptors() -> None:
    with no_descriptors_left(), pytest.raises(ListenError) as caught:
        listen(TcpEndpoint(None, 0), 16, {})
    assert caught.value.reason == "no_descriptors"


# --- listen: vsock, where the system has none


def test_a_vsock_listener_without_af_vsock_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    assert refuses(VsockEndpoint(port=80)).reason == "unsupported"


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.EAFNOSUPPORT, "blocked"), (errno.EPERM, "blocked"), (errno.ENODEV, "no_transport")],
)
def test_an_error_of_socket_for_af_vsock_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    monkeypatch.setattr(socket, "AF_VSOCK", AF_VSOCK, raising=False)
    monkeypatch.setattr(binding, "new_socket", says_no(code))
    assert refuses(VsockEndpoint(port=80)).reason == reason


# --- listen: unix and vsock-mux -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "vsock-mux"])
def test_a_socket_file_exists_while_its_listener_is_open(tmp_path: Path, kind: str) -> None:
    endpoint, path = place(kind, tmp_path)
    with listening(endpoint) as [listener]:
        assert listener.endpoint == endpoint
        assert path.is_socket()
    assert not path.exists()


def test_the_umask_governs_the_mode_of_a_socket_file(tmp_path: Path) -> None:
    before = os.umask(0o117)
    try:
        with listening(UnixEndpoint(str(tmp_path / "s"))):
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["unix", "vsock-mux"])
def test_a_stale_socket_file_of_this_user_is_replaced(tmp_path: Path, kind: str) -> None:
    endpoint, path = place(kind, tmp_path)
    dead_unix_socket(path)
    with listening(endpoint), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@pytest.mark.parametrize("backlog", ["free", "full"])
def test_a_socket_file_with_a_live_listener_is_kept(tmp_path: Path, backlog: str) -> None:
    path = tmp_path / "s"
    make: Callable[..., object] = unix_listener if backlog == "free" else full_unix_listener
    with make(path):  # type: ignore[attr-defined] # both are context managers
        inode = path.stat().st_ino
        assert refuses(UnixEndpoint(str(path))).reason == "in_use"
        assert path.stat().st_ino == inode


def test_a_file_that_is_not_a_socket_is_kept_and_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    error = refuses(UnixEndpoint(str(path)))
    assert error.reason == "in_use"
    assert "not a socket" in str(error)
    assert path.read_text() == "precious"


def test_a_link_to_a_stale_socket_is_not_replaced(tmp_path: Path) -> None:
    dead_unix_socket(tmp_path / "dead")
    (tmp_path / "link").symlink_to("dead")
    assert "not a socket" in str(refuses(UnixEndpoint(str(tmp_path / "link"))))
    assert (tmp_path / "dead").is_socket()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of other users: run as root")
def test_a_stale_socket_of_another_user_is_kept(tmp_path: Path) -> None:
    dead_unix_socket(tmp_path / "s")
    os.chown(tmp_path / "s", ORDINARY_USER, -1)
    error = refuses(UnixEndpoint(str(tmp_path / "s")))
    assert error.reason == "in_use"
    assert str(ORDINARY_USER) in str(error)
    assert (tmp_path / "s").is_socket()


def test_closing_keeps_a_file_that_another_process_has_made(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(UnixEndpoint(str(path))) as [listener]:
        path.unlink()
        with unix_listener(path):
            listener.close()
            assert path.is_socket()


def test_a_second_close_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(UnixEndpoint(str(path))) as [listener]:
        listener.close()
        with unix_listener(path):
            listener.close()
            assert path.is_socket()


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert refuses(UnixEndpoint(str(tmp_path / "none" / "s"))).reason == "not_found"


def test_a_folder_that_is_not_writable_is_denied() -> None:
    with open_folder() as folder:
        folder.chmod(0o555)
        with as_ordinary_user():
            assert refuses(UnixEndpoint(str(folder / "s"))).reason == "denied"


# --- listen: fd ---------------------------------------------------------------------------


def test_inherited_sockets_are_duplicated_and_outlive_the_duplicates(tmp_path: Path) -> None:
    """A reload closes and opens the same name: the sockets that systemd passed must last."""
    with socket.create_server(("127.0.0.1", 0)) as one, unix_listener(tmp_path / "s") as two:
        for _ in range(2):
            with listening(FdEndpoint("web"), {"web": [one, two]}) as copies:
                assert [x.sock.getsockname() for x in copies] == [
                    one.getsockname(),
                    str(tmp_path / "s"),
                ]
                assert not any(os.get_blocking(x.sock.fileno()) for x in copies)
                assert copies[0].sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert (tmp_path / "s").is_socket()
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_an_unknown_inherited_name_lists_the_names_that_exist() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        error = refuses(FdEndpoint("web"), {"metrics": [one], "api": [one]})
    assert error.reason == "not_found"
    assert "it passed api, metrics" in str(error)
    assert "it passed none" in str(refuses(FdEndpoint("web")))


def test_an_inherited_socket_that_is_not_a_listening_stream_is_an_error() -> None:
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    left, right = socket.socketpair()
    with datagram, left, right:
        for sock in (datagram, left):
            assert refuses(FdEndpoint("web"), {"web": [sock]}).reason == "invalid"


# --- words of this file ----


def place(kind: str, folder: Path) -> tuple[UnixEndpoint | MuxEndpoint, Path]:
    """Return a listener's endpoint and the file that it will have."""
    path = folder / "v.sock"
    if kind == "unix":
        return UnixEndpoint(str(path)), path
    return MuxEndpoint(str(path), 52), folder / "v.sock_52"


def says_no(code: int) -> Callable[[int], socket.socket]:
    """A fake of `new_socket` in a kernel or a sandbox without AF_VSOCK."""

    def refused(family: int) -> socket.socket:
        assert family == AF_VSOCK
        raise OSError(code, os.strerror(code))

    return refused
