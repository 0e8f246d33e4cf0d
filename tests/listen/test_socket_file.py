"""Socket files in a folder of a hostile user: no other file is changed, made or removed.

The hostile user owns the folder and puts links in place of what is in it, as the user of a jailed
VMM can. As root the tests give the folder to `ORDINARY_USER`; else this user plays both parts.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_services import (
    ORDINARY_USER,
    as_ordinary_user,
    dead_unix_socket,
    listening,
    open_folder,
    unix_listener,
)
from tests.sockets import no_descriptor_left_over
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ListenError
from vsockproxy.listen import socket_file
from vsockproxy.listen.bind import ListeningSocket, listen

IS_ROOT = os.geteuid() == 0
ROUNDS = 400
NAME = "v.sock_52"
GIVEN = Policy(mode=0o666, owner=ORDINARY_USER) if IS_ROOT else Policy(mode=0o666)
needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root gives files away: run as root")


class Jail:
    """A hostile user's folder, and what must not change.

    Attributes:
      folder: where the listener is; its parent is the hostile user's too.
      file: a file of this user that nobody else may read.
      private: a folder of this user, with a stale socket named as the listener's.
    """

    def __init__(self, top: Path) -> None:
        self.file = top / "shadow"
        self.file.write_text("secret")
        self.file.chmod(0o600)
        self.private = top / "private"
        self.private.mkdir(mode=0o755)
        dead_unix_socket(self.private / NAME)
        (self.private / NAME).chmod(0o600)
        self.folder = top / "jail" / "run"
        self.folder.mkdir(parents=True)
        if IS_ROOT:
            for folder in (self.folder, self.folder.parent):
                os.chown(folder, ORDINARY_USER, ORDINARY_USER)
        self.path = self.folder / NAME
        self.before = self.facts()

    def facts(self) -> list[object]:
        """Return owners, modes and names of what must not change."""
        found = [path.stat() for path in (self.file, self.private, self.private / NAME)]
        owned = [(s.st_ino, s.st_uid, s.st_gid, stat.S_IMODE(s.st_mode)) for s in found]
        return [*owned, sorted(path.name for path in self.private.iterdir())]

    def endpoint(self) -> UnixEndpoint:
        return UnixEndpoint(str(self.path))


@pytest.fixture
def jail() -> Iterator[Jail]:
    with open_folder() as top:
        yield Jail(top)


def link_at(path: Path, to: Path) -> None:
    """Put a link in place of a file, as the hostile user."""
    with as_ordinary_user():
        path.unlink(missing_ok=True)
        path.symlink_to(to)


# ---- one replaced name at a time ----


@pytest.mark.parametrize("to", ["file", "private"])
def test_a_new_mode_is_not_set_through_a_link(jail: Jail, to: str) -> None:
    with no_descriptor_left_over():
        [listener] = listen(jail.endpoint(), 16, {}, Policy(mode=0o600))
        link_at(jail.path, getattr(jail, to))
        listener.configure(GIVEN)
        listener.close()
    assert jail.facts() == jail.before
    assert jail.path.is_symlink()


def test_a_socket_of_another_process_is_not_given_away(jail: Jail) -> None:
    [listener] = listen(jail.endpoint(), 16, {}, Policy(mode=0o600))
    jail.path.unlink()
    with unix_listener(jail.path):
        jail.path.chmod(0o640)
        listener.configure(GIVEN)
        listener.close()
        found = jail.path.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o640)


def test_a_socket_that_the_fd_store_kept_is_not_looked_for_behind_a_link(jail: Jail) -> None:
    link_at(jail.path, jail.private / NAME)
    with no_descriptor_left_over(), socket.socket(socket.AF_UNIX) as sock:
        restored = ListeningSocket.restored(sock, jail.endpoint())
        restored.configure(GIVEN)
        restored.close()
    assert jail.facts() == jail.before


@needs_root
def test_a_folder_behind_a_link_of_another_user_is_denied(jail: Jail) -> None:
    with as_ordinary_user():
        jail.folder.rmdir()
        jail.folder.symlink_to(jail.private)
    with no_descriptor_left_over(), pytest.raises(ListenError) as caught:
        listen(jail.endpoint(), 16, {}, GIVEN)
    assert caught.value.reason == "denied"
    assert "'run' on the path is a link of another user" in str(caught.value)
    assert jail.facts() == jail.before


@pytest.mark.parametrize("text", ["here", "../{}/here"])
def test_a_folder_behind_a_link_of_this_user_is_used(tmp_path: Path, text: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(text.format(tmp_path.name))
    (tmp_path / "absolute").symlink_to(tmp_path / "link")
    with listening(UnixEndpoint(str(tmp_path / "absolute" / "s"))):
        assert (tmp_path / "here" / "s").is_socket()
    assert list((tmp_path / "here").iterdir()) == []


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with no_descriptor_left_over(), pytest.raises(ListenError):
        listen(UnixEndpoint(str(tmp_path / "a" / "s")), 16, {})


def test_a_relative_path_and_the_folder_of_a_process_are_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("s", f"/proc/{os.getpid()}/root{tmp_path}/s"):
        with listening(UnixEndpoint(path)):
            assert (tmp_path / "s").is_socket()


# ---- an attacker at every instant ----


def swap_the_file(jail: Jail) -> None:
    """Put links to the victims in place of the socket's file."""
    for victim in (jail.file, jail.private / NAME):
        spare = jail.folder / "spare"
        spare.symlink_to(victim)
        spare.rename(jail.path)
    jail.path.unlink()


def swap_the_folder(jail: Jail) -> None:
    """Put a link to the victim's folder in place of the socket's, and the folder back."""
    aside = jail.folder.with_name("aside")
    jail.folder.rename(aside)
    try:
        jail.folder.symlink_to(jail.private)
        jail.folder.unlink()
    finally:
        aside.rename(jail.folder)


@contextmanager
def attacked(jail: Jail, swap: Callable[[Jail], None]) -> Iterator[None]:
    """Swap in a process of the hostile user, without a pause, for a block."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:  # no exception may leave the child: it would run the other tests
        with suppress(BaseException):
            if IS_ROOT:
                os.setgroups([])
                os.setgid(ORDINARY_USER)
                os.setuid(ORDINARY_USER)
            os.write(told, b"x")
            while os.getppid() != 1:
                with suppress(OSError):
                    swap(jail)
        os._exit(0)
    try:
        os.read(ready, 1)
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)


@pytest.mark.parametrize("swap", [swap_the_file, swap_the_folder])
def test_no_other_file_changes_while_the_folders_owner_swaps_links(
    jail: Jail, swap: Callable[[Jail], None]
) -> None:
    if swap is swap_the_folder and not IS_ROOT:
        pytest.skip("links of this user are followed: run as root")
    bound = 0
    with no_descriptor_left_over(), attacked(jail, swap):
        for number in range(100 * ROUNDS):
            if bound and number >= ROUNDS:
                break
            with suppress(ListenError):
                [listener] = listen(jail.endpoint(), 16, {}, GIVEN)
                bound += 1
                with suppress(ListenError):
                    listener.configure(replace(GIVEN, mode=0o660))
                listener.close()
                assert jail.facts() == jail.before
    assert jail.facts() == jail.before
    assert bound


# ---- what a file has when it appears ----


def test_a_file_has_its_mode_and_a_listener_as_soon_as_it_exists(jail: Jail) -> None:
    """A client that finds the file can connect, and one that may not cannot before either."""
    paths = [jail.path.with_suffix(f".{number}") for number in range(100)]
    seen: set[object] = set()

    def watch() -> None:
        for path in paths:
            while not path.exists():
                pass
            with socket.socket(socket.AF_UNIX) as client:
                seen.add((stat.S_IMODE(path.stat().st_mode), client.connect_ex(str(path))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    listeners = [listen(UnixEndpoint(str(path)), 16, {}, GIVEN)[0] for path in paths]
    watcher.join()
    for listener in listeners:
        listener.close()
    assert seen == {(0o666, 0)}


@needs_root
def test_a_stale_socket_of_the_policys_owner_is_replaced(jail: Jail) -> None:
    """A daemon that was killed leaves the file that it gave away."""
    for _ in range(2):
        [listener] = listen(jail.endpoint(), 16, {}, GIVEN)
        listener.leave()
    assert jail.path.stat().st_uid == ORDINARY_USER


@pytest.mark.parametrize("umask", [0o077, 0o117, 0o277])
def test_a_umask_does_not_keep_a_listener_out_of_its_folder(umask: int) -> None:
    with open_folder() as folder:
        if IS_ROOT:
            os.chown(folder, ORDINARY_USER, -1)
        before = os.umask(umask)
        try:
            with as_ordinary_user(), listening(UnixEndpoint(str(folder / "s"))):
                assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o777 & ~umask
        finally:
            os.umask(before)


def test_a_name_as_long_as_an_address_may_be_is_bound(jail: Jail) -> None:
    path = str(jail.path).ljust(107, "n")
    with listening(UnixEndpoint(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_without_proc_paths_are_walked_and_links_are_not_followed(
    jail: Jail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS, with the system calls of this system."""
    monkeypatch.setattr(socket_file, "_THROUGH_PROC", False)
    owner = Policy(owner=ORDINARY_USER if IS_ROOT else None)
    dead_unix_socket(jail.path)
    with no_descriptor_left_over():
        [listener] = listen(jail.endpoint(), 16, {}, Policy())
        listener.configure(owner)
        assert jail.path.is_socket()
        link_at(jail.path, jail.file)
        listener.configure(owner)
        listener.close()
    assert jail.facts() == jail.before
