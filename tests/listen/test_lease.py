"""The owner of the listening sockets: opening, leases, closing, and systemd's fd store."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import CapturingLogger

from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import FdEndpoint, ListenEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ListenError
from vsockproxy.listen.bind import ListeningSocket
from vsockproxy.listen.sockets import Listen, ListeningSockets
from vsockproxy.systemd import store_name

FOR_WEB = Listen("route web", Policy(), "web")


class FakeFdStore:
    """A fake of systemd's fd store that notes the names it keeps, and has a socket once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._sockets: dict[int, str] = {}  # names, by their inodes

    def fd_store(self, name: str, sock: socket.socket) -> None:
        inode = os.fstat(sock.fileno()).st_ino
        if inode not in self._sockets:
            self._sockets[inode] = name
            self.names.append(name)

    def fd_remove(self, name: str) -> None:
        if name in self.names:
            self.names.remove(name)
        self._sockets = {inode: kept for inode, kept in self._sockets.items() if kept != name}


def at(folder: Path, *names: str) -> list[ListenEndpoint]:
    return [UnixEndpoint(str(folder / name)) for name in names]


def opened(*endpoints: ListenEndpoint, store: FakeFdStore | None = None) -> ListeningSockets:
    sockets = ListeningSockets(store=store, log=CapturingLogger())
    sockets.open(dict.fromkeys(endpoints, FOR_WEB))
    return sockets


def test_an_endpoint_that_cannot_be_bound_closes_those_opened_before_it(tmp_path: Path) -> None:
    [one] = at(tmp_path, "one")
    missing = UnixEndpoint(str(tmp_path / "none" / "two"))
    with no_descriptor_left_over():
        sockets = ListeningSockets(log=CapturingLogger())
        with pytest.raises(ListenError) as caught:
            sockets.open({one: FOR_WEB, missing: Listen("route two", Policy(), "two")})
        assert caught.value.__notes__ == ["route two"]
        assert one not in sockets
        assert not (tmp_path / "one").exists()


def test_an_endpoint_that_is_not_wanted_any_more_is_closed_at_its_release(tmp_path: Path) -> None:
    one, two = at(tmp_path, "one", "two")
    sockets = opened(one)
    lease = sockets.lease(one, FOR_WEB)
    assert sockets.open({two: FOR_WEB}) == [two]
    assert (tmp_path / "one").exists()
    lease.release()
    lease.release()
    assert one not in sockets
    assert not (tmp_path / "one").exists()
    sockets.close_all()
    assert not (tmp_path / "two").exists()


def test_a_released_endpoint_that_is_wanted_stays_open_for_the_next_lease(tmp_path: Path) -> None:
    [one] = at(tmp_path, "one")
    sockets = opened(one)
    first = sockets.lease(one, FOR_WEB)
    socket_before = first.sockets[0].sock
    first.release()
    assert sockets.lease(one, FOR_WEB).sockets[0].sock is socket_before
    sockets.close_all()


def test_a_lease_sets_the_mode_of_another_policy_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [one] = at(tmp_path, "one")
    sockets = opened(one)
    set_modes: list[int | None] = []
    configure = ListeningSocket.configure

    def noting(listening: ListeningSocket, policy: Policy) -> None:
        set_modes.append(policy.mode)
        configure(listening, policy)

    monkeypatch.setattr(ListeningSocket, "configure", noting)
    private = Listen("route web", Policy(mode=0o600), "web")
    lease = sockets.lease(one, private)
    lease.configure(private)
    assert set_modes == [0o600]
    sockets.close_all()


def test_the_fd_store_keeps_what_the_end_leaves_and_drops_what_a_reload_closes(
    tmp_path: Path,
) -> None:
    one, two = at(tmp_path, "one", "two")
    store = FakeFdStore()
    sockets = opened(one, two, store=store)
    lease = sockets.lease(one, FOR_WEB)
    sockets.open({two: FOR_WEB})
    lease.release()
    assert store.names == [store_name(two, 0)]
    sockets.leave()
    sockets.close_all()
    assert store.names == [store_name(two, 0)]
    assert (tmp_path / "two").exists()


@pytest.mark.parametrize("order", ["wider", "narrower"])
def test_a_socket_that_another_endpoint_goes_on_with_stays_in_the_store(order: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    narrow, wide = TcpEndpoint("127.0.0.1", port), TcpEndpoint(None, port)
    before, after = (narrow, wide) if order == "wider" else (wide, narrow)
    store = FakeFdStore()
    sockets = opened(before, store=store)
    lease = sockets.lease(before, FOR_WEB)
    sockets.open({after: FOR_WEB})
    lease.release()
    number = len(sockets.sockets_of(after))
    assert sorted(store.names) == sorted(store_name(after, index) for index in range(number))
    sockets.close_all()


def test_restored_sockets_without_an_endpoint_are_closed_and_removed_from_the_store() -> None:
    store = FakeFdStore()
    with no_descriptor_left_over():
        used, unused = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        endpoint = TcpEndpoint(*used.getsockname())
        names = [store_name(endpoint, 0), store_name(TcpEndpoint("127.0.0.1", 1), 0)]
        store.names += names
        inherited = dict(zip(names, ([used], [unused]), strict=True))
        sockets = ListeningSockets(inherited, store=store, log=CapturingLogger())
        sockets.open({endpoint: FOR_WEB})
        sockets.close_unclaimed()
        assert store.names == [names[0]]
        assert unused.fileno() == -1
        with socket.create_connection((endpoint.host, endpoint.port)):
            pass
        sockets.close_all()


def test_sockets_of_a_socket_unit_without_an_endpoint_are_unused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as web, socket.create_server(("", 0)) as old:
        inherited = {"web": [web], "old": [old]}
        sockets = ListeningSockets(inherited, log=CapturingLogger())
        sockets.open({FdEndpoint("web"): FOR_WEB})
        assert sockets.unused() == ["old"]
        sockets.close_all()


async def test_a_holder_accepts_at_the_renewed_socket_and_the_old_one_is_closed(
    tmp_path: Path,
) -> None:
    [one] = at(tmp_path, "one")
    sockets = opened(one)
    lease = sockets.lease(one, FOR_WEB)
    turns: list[socket.socket] = []

    async def accept(present: Sequence[ListeningSocket]) -> None:
        turns.append(present[0].sock)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.serve, accept)
        await trio.testing.wait_all_tasks_blocked()
        await trio.Path(tmp_path / "one").unlink()
        assert lease.is_absent
        await lease.renew()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(turns) == 2
    assert [sock.fileno() >= 0 for sock in turns] == [False, True]
    lease.release()
    sockets.close_all()
