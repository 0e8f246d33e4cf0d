"""Listeners whose files come and go: a VMM's folder that is made, removed and made again."""

from __future__ import annotations

import shutil
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from tests.daemon.running import exchange
from tests.dial.fake_vmm import Vmm
from tests.fake_services import echo
from tests.sockets import no_descriptor_left_over
from tests.waiting import until
from vsockproxy.address.endpoint import ListenEndpoint, MuxEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.address.sockaddr import socket_file
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.errors import ListenError, sentences
from vsockproxy.listen.sockets import ListeningSockets

DEFAULTS = Policy()
PORT = 52


class FakeFdStore:
    """A fake of systemd's fd store: duplicates by name, several under one name."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, socket.socket]] = []

    def fd_store(self, name: str, sock: socket.socket) -> None:
        self.kept.append((name, sock.dup()))

    def fd_remove(self, name: str) -> None:
        for kept in [kept for kept in self.kept if kept[0] == name]:
            self.kept.remove(kept)
            kept[1].close()


@asynccontextmanager
async def serving(
    listen: ListenEndpoint, policy: Policy = DEFAULTS, store: FakeFdStore | None = None
) -> AsyncIterator[Daemon]:
    """Run a daemon with one route, from ``listen`` to an echo service."""
    async with trio.open_nursery() as nursery:
        [target] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        service = TcpEndpoint("127.0.0.1", target.socket.getsockname()[1])
        config = Config((Route("guest", listen, service, policy),))
        daemon = Daemon(config, store=store)
        async with trio.open_nursery() as running:
            await running.start(daemon.run)
            yield daemon
            daemon.stop()
        nursery.cancel_scope.cancel()


def file_of(endpoint: ListenEndpoint) -> Path:
    file = socket_file(endpoint)
    assert file is not None
    return file


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record whether each look at a listener's file found it absent."""
    found: list[bool] = []
    look = ListeningSockets.is_absent

    def watched(sockets: ListeningSockets, endpoint: ListenEndpoint) -> bool:
        found.append(look(sockets, endpoint))
        return found[-1]

    monkeypatch.setattr(ListeningSockets, "is_absent", watched)
    return found


async def test_a_listener_is_bound_once_its_vmms_folder_exists(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path / "jail" / "root" / "v.sock", {})
    endpoint = MuxEndpoint(str(vmm.path), PORT)
    with no_descriptor_left_over():
        async with serving(endpoint, Policy()) as daemon:
            assert daemon.not_ready() == []  # the daemon is ready, if this guest is not
            vmm.path.parent.mkdir(parents=True)
            await until(file_of(endpoint).exists)
            assert await exchange(await vmm.guest_connects(PORT), b"hello") == b"hello"
        assert not file_of(endpoint).exists()


@pytest.mark.parametrize("kind", ["vsock-mux", "unix"])
async def test_a_folder_that_is_made_again_gets_a_new_socket(tmp_path: Path, kind: str) -> None:
    """Connections from before, if the VMM keeps any, go on."""
    folder = tmp_path / "vm"
    folder.mkdir()
    endpoint = (
        MuxEndpoint(str(folder / "v"), PORT)
        if kind == "vsock-mux"
        else UnixEndpoint(str(folder / "v_52"))
    )
    file = file_of(endpoint)
    vmm = Vmm(folder / "v", {})
    async with serving(endpoint) as daemon:
        old = await vmm.guest_connects(PORT)
        await old.send_all(b"a")
        assert await old.receive_some() == b"a"
        for _ in range(2):
            shutil.rmtree(folder)
            folder.mkdir()
            await until(file.exists)
            await until(lambda: _answers(file))
            assert await exchange(await vmm.guest_connects(PORT), b"hello") == b"hello"
        assert await exchange(old, b"hello") == b"hello"
        await until(lambda: not daemon.supervisor.live())


@pytest.mark.parametrize("kind", ["vsock-mux", "unix"])
async def test_a_route_whose_sockets_folder_is_removed_is_shown_as_retrying(
    tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    endpoint = (
        MuxEndpoint(str(folder / "v"), PORT)
        if kind == "vsock-mux"
        else UnixEndpoint(str(folder / "v_52"))
    )
    async with serving(endpoint) as daemon:
        [stats] = daemon.supervisor.stats()
        assert daemon.supervisor.state_of(stats) == "listening"
        shutil.rmtree(folder)
        await until(lambda: daemon.supervisor.state_of(stats) == "retrying")
        folder.mkdir()
        await until(lambda: daemon.supervisor.state_of(stats) == "listening")
        vmm = Vmm(folder / "v", {})
        assert await exchange(await vmm.guest_connects(PORT), b"hello") == b"hello"


async def test_a_removed_socket_file_is_bound_again_with_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "front.sock"
    async with serving(UnixEndpoint(str(file)), Policy(mode=0o640)):
        file.unlink()
        await until(file.exists)
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


async def test_a_foreign_socket_at_the_path_is_not_replaced(
    tmp_path: Path, looks: list[bool]
) -> None:
    """Another daemon may have taken over this guest."""
    file = tmp_path / "front.sock"
    with socket.socket(socket.AF_UNIX) as other:
        async with serving(UnixEndpoint(str(file))):
            file.unlink()
            other.bind(str(file))
            other.listen()
            inode = file.stat().st_ino
            seen = len(looks)
            await until(lambda: len(looks) > seen)
        assert file.stat().st_ino == inode


async def test_a_missing_folder_is_logged_once(tmp_path: Path, looks: list[bool]) -> None:
    folder = tmp_path / "vm"
    endpoint = MuxEndpoint(str(folder / "v"), PORT)
    with capture_logs() as entries:
        async with serving(endpoint):
            await until(lambda: looks == [True] * 3)
            folder.mkdir()
            await until(lambda: any(e["event"] == "listener_bound" for e in entries))
    [retrying] = [entry for entry in entries if entry["event"] == "listener_retrying"]
    assert retrying["route"] == "guest"
    assert "folder of the socket does not exist" in retrying["error"]


@pytest.mark.parametrize("listen", [UnixEndpoint("/none/at/all"), MuxEndpoint("/dev/null/x", PORT)])
async def test_a_folder_that_comes_with_no_vmm_is_an_error_at_the_start(
    listen: ListenEndpoint,
) -> None:
    daemon = Daemon(Config((Route("guest", listen, TcpEndpoint(None, 1)),)))
    with pytest.raises((ListenError, ExceptionGroup)) as caught:
        await daemon.run()
    [sentence] = sentences(caught.value)
    assert sentence.startswith(f"route guest: cannot listen {listen}: ")


async def test_a_reload_takes_over_a_listener_without_a_socket_yet(tmp_path: Path) -> None:
    folder = tmp_path / "vm"
    endpoint = MuxEndpoint(str(folder / "v"), PORT)
    async with serving(endpoint) as daemon:
        [route] = daemon.config.routes
        renamed = Config((Route("renamed", endpoint, route.target, Policy(mode=0o600)),))
        await daemon.replace(lambda: renamed)
        folder.mkdir()
        await until(file_of(endpoint).exists)
        assert stat.S_IMODE(file_of(endpoint).stat().st_mode) == 0o600
        vmm = Vmm(folder / "v", {})
        assert await exchange(await vmm.guest_connects(PORT), b"hello") == b"hello"
        gone = Config((Route("other", TcpEndpoint("127.0.0.1", 0), route.target),))
        await daemon.replace(lambda: gone)
        assert not file_of(endpoint).exists()


async def test_the_fd_store_gets_the_socket_that_replaces_a_removed_one(tmp_path: Path) -> None:
    file, store = tmp_path / "front.sock", FakeFdStore()
    async with serving(UnixEndpoint(str(file)), store=store):
        [(name, old)] = store.kept
        file.unlink()
        await until(lambda: old.fileno() < 0)
        await until(lambda: store.kept)
        [(again, new)] = store.kept
        assert again == name
    with new, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(file))  # in the backlog of the socket that the next process restores


def _answers(file: Path) -> bool:
    """Return whether a process listens at a file."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(file)) == 0
