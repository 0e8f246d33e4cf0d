"""A reload on a change of the files, with real files and a clock that the tests move."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from unittest import mock

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.waiting import until
from vsockproxy.config.load import load_config
from vsockproxy.config.settings import Config
from vsockproxy.daemon import watch
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.daemon.watch import Stamp, stamp_of
from vsockproxy.errors import OrderError

ON = "[reload]\non_change = true\n"


class Watched:
    """A running daemon of a file, whose polls are counted."""

    def __init__(self, file: Path, clock: MockClock) -> None:
        self.file = file
        self.daemon = Daemon(load_config(file), load=self.load)
        self.clock = clock
        self.polls = 0
        self.ended = trio.Event()

    def load(self) -> Config:
        """Read the file again."""
        return load_config(self.file)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the polls within the block."""
        watch = self.daemon._watch
        assert watch is not None
        original = watch._stamp

        async def counted() -> Stamp:
            stamp = await original()
            self.polls += 1
            return stamp

        with mock.patch.object(watch, "_stamp", counted):
            yield

    @property
    def results(self) -> dict[str, int]:
        return dict(self.daemon.reloads.results)

    @property
    def events(self) -> list[str]:
        return [event.event for event in self.daemon.events.after(0)]

    @property
    def names(self) -> list[str]:
        return [route.name for route in self.daemon.config.routes]

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.daemon.run(task_status=task_status)
        self.ended.set()

    async def poll(self, number: int = 1) -> None:
        """Move the clock until so many more polls have ended."""
        wanted = self.polls + number
        await self.move_until(lambda: self.polls >= wanted)

    async def move_until(self, condition: Callable[[], object]) -> None:
        """Move the clock by a poll's time until a condition holds; threads take real time."""
        while True:
            await wait_all_tasks_blocked(0.01)
            if condition():
                break
            self.clock.jump(2)

    async def reloaded(self, **results: int) -> None:
        await until(lambda: self.results == {"success": 0, "failure": 0, **results})


@asynccontextmanager
async def started(file: Path, clock: MockClock, *, is_on: bool = True) -> AsyncIterator[Watched]:
    """Run a daemon of a file, from its first stamp on if the key is on."""
    watched = Watched(file, clock)
    async with trio.open_nursery() as nursery:
        with watched.counting():
            await nursery.start(watched.run)
            if is_on:
                await until(lambda: watched.polls)
            yield watched
        nursery.cancel_scope.cancel()


def write(file: Path, text: str) -> None:
    """Write a file in place; a few bytes, so tests call it in the event loop."""
    file.write_text(text)


def route(folder: Path, name: str) -> str:
    return f'[[route]]\nname = "{name}"\nlisten = "unix:{folder}/{name}.sock"\ntarget = "3:80"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    write(path, ON + route(tmp_path, "one"))
    return path


def project(volume: Path, version: str, text: str) -> None:
    """Write a version of a ConfigMap's volume and swap the link to it, as the kubelet does."""
    (volume / version).mkdir()
    (volume / version / "config.toml").write_text(text)
    (volume / "..data_tmp").symlink_to(version)
    (volume / "..data_tmp").rename(volume / "..data")


async def test_the_swap_of_a_configmap_reloads_once(tmp_path: Path, mock_clock: MockClock) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    project(volume, "..2026_1", ON + route(tmp_path, "one"))
    (volume / "config.toml").symlink_to("..data/config.toml")
    async with started(volume / "config.toml", mock_clock) as watched:
        await watched.poll(3)
        assert watched.results == {"success": 0, "failure": 0}
        project(volume, "..2026_2", ON + route(tmp_path, "one") + route(tmp_path, "two"))
        await watched.poll()
        assert watched.names == ["one"]  # the change may not be complete yet
        await watched.poll()
        await watched.reloaded(success=1)
        assert watched.names == ["one", "two"]
        await watched.poll(3)
        assert watched.results == {"success": 1, "failure": 0}
        assert "files_changed" in watched.events


async def test_a_configuration_that_cannot_be_read_again_is_left_alone(
    file: Path, mock_clock: MockClock
) -> None:
    def load() -> Config:
        raise OrderError("it was read from standard input", "run it from a file")

    with mock.patch.object(Watched, "load", staticmethod(load)):
        async with started(file, mock_clock) as watched:
            await watched.poll(3)
            assert watched.results == {"success": 0, "failure": 0}
            assert not {"watch_error", "files_changed"} & set(watched.events)


async def test_a_file_that_still_changes_is_not_reloaded(
    file: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    async with started(file, mock_clock) as watched:
        for name in ("a", "bb", "ccc"):
            write(file, ON + route(tmp_path, name))
            await watched.poll()
        assert watched.results == {"success": 0, "failure": 0}
        await watched.poll()
        await watched.reloaded(success=1)
        assert watched.names == ["ccc"]


async def test_a_faulty_file_fails_once_and_its_repair_is_reloaded(
    file: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    async with started(file, mock_clock) as watched:
        write(file, "nonsense")
        await watched.poll(2)
        await watched.reloaded(failure=1)
        await watched.poll(3)
        assert watched.results == {"success": 0, "failure": 1}
        write(file, ON + route(tmp_path, "repaired"))
        await watched.poll(2)
        await watched.reloaded(success=1, failure=1)
        assert watched.names == ["repaired"]


async def test_files_that_come_change_and_go_in_an_included_folder_are_reloaded(
    file: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    write(file, 'include = ["conf.d/*.toml"]\n' + ON)
    folder = tmp_path / "conf.d"
    async with started(file, mock_clock) as watched:
        folder.mkdir()
        write(folder / "a.toml", "nonsense")
        await watched.poll(2)
        await watched.reloaded(failure=1)
        write(folder / "a.toml", route(tmp_path, "a"))  # in place
        await watched.poll(2)
        await watched.reloaded(success=1, failure=1)
        assert watched.names == ["a"]
        (folder / "a.toml").unlink()
        await watched.poll(2)
        await watched.reloaded(success=2, failure=1)
        assert watched.names == []


async def test_a_change_between_the_first_reading_and_the_first_stamp_is_reloaded(
    file: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    def write_then_stamp(config: Config) -> Stamp:
        if "changed" not in file.read_text():
            write(file, ON + route(tmp_path, "changed"))
        return stamp_of(config)

    with mock.patch.object(watch, "stamp_of", write_then_stamp):
        async with started(file, mock_clock) as watched:
            await watched.poll(3)
            await watched.reloaded(success=1)
            assert watched.names == ["changed"]


async def test_without_the_key_no_file_is_polled_and_a_reload_switches_it(
    file: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    off = route(tmp_path, "one")
    write(file, off)
    async with started(file, mock_clock, is_on=False) as watched:
        write(file, off + "# changed\n")
        for _ in range(3):
            await wait_all_tasks_blocked()
            mock_clock.jump(2)
        assert watched.polls == 0
        write(file, ON + off)
        await watched.daemon.reload()
        await until(lambda: watched.polls)
        await watched.poll(3)
        assert watched.results == {"success": 1, "failure": 0}
        write(file, off)
        await watched.poll(2)
        await watched.reloaded(success=2)
        before = watched.polls
        for _ in range(3):
            await wait_all_tasks_blocked()
            mock_clock.jump(2)
        assert watched.polls == before


async def test_a_hung_file_system_holds_up_neither_a_reload_nor_the_end(
    file: Path, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, answers = threading.Event(), threading.Event()

    def hang(_config: object) -> Stamp:
        hung.set()
        answers.wait()
        return []

    try:
        async with started(file, mock_clock) as watched:
            monkeypatch.setattr(watch, "stamp_of", hang)
            await watched.move_until(hung.is_set)
            await watched.daemon.reload()
            assert watched.results == {"success": 1, "failure": 0}
            watched.daemon.stop()
            await until(watched.ended.is_set)
    finally:
        answers.set()


async def test_a_defect_in_a_poll_is_logged_and_the_next_ones_go_on(
    file: Path, tmp_path: Path, mock_clock: MockClock
) -> None:
    def fail(_config: Config) -> Stamp:
        raise MemoryError

    async with started(file, mock_clock) as watched:
        with mock.patch.object(watch, "stamp_of", fail):
            await watched.move_until(lambda: "watch_error" in watched.events)
        write(file, ON + route(tmp_path, "later"))
        await watched.poll(3)
        await watched.reloaded(success=1)


def test_the_stamp_has_certificates_and_the_files_of_users(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text("ada:$2b$04$" + "x" * 53 + "\n")
    pem = tmp_path / "server.pem"
    file = tmp_path / "config.toml"
    write(
        file,
        f'metrics = {{listen = "9490", certificate = "{pem}"}}\n'
        f'[[route]]\nlisten = "1080"\nby = "socks5"\ntarget_allow = ["10.0.0.0/8:80"]\n'
        f'credentials = "{users}"\n',
    )
    config = load_config(file)
    before = watch.stamp_of(config)
    assert [path for path, _ in before] == [str(file), str(pem), str(users)]
    pem.touch()
    assert watch.stamp_of(config) != before
