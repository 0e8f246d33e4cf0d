"""Tests of `vsockproxy top` in a real terminal with a real daemon."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.cli.terminal import Terminal, terminal
from tests.daemon_process import Daemon, command, daemon
from tests.fake_services import echo, mux_server

LEAVE_SCREEN: bytes = b"\x1b[?1049l"
SHOW_CURSOR: bytes = b"\x1b[?25h"


class Watched:
    """The configuration of a daemon with two routes, one of which has no target."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "config.toml"
        self.file.write_text(
            f'[[route]]\nname = "web"\nlisten = "unix:{folder}/web.sock"\n'
            f'target = "vsock-mux:{folder}/guest:80"\n'
            f'[[route]]\nname = "dead"\nlisten = "unix:{folder}/dead.sock"\n'
            f'target = "unix:{folder}/nothing"\n[admin]\nsocket = "{folder}/admin.sock"\n'
        )

    @property
    def top(self) -> tuple[str, str, Path]:
        """Return the arguments of `top` for this daemon."""
        return "top", "--socket", self.folder / "admin.sock"

    async def client(self) -> trio.SocketStream:
        """Return a client that has received its first byte back."""
        client = await trio.open_unix_socket(str(self.folder / "web.sock"))
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
        return client

    async def load(self) -> None:
        """Exchange bytes on one route and cause failed dials on the other, until cancelled."""
        async with await self.client() as client:
            while True:
                await client.send_all(bytes(10_000))
                await client.receive_some(10_000)
                async with await trio.open_unix_socket(str(self.folder / "dead.sock")):
                    await trio.lowlevel.checkpoint()


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    async with mux_server(tmp_path / "guest", {80: echo}):
        yield Watched(tmp_path)


async def started(running: Daemon) -> None:
    await running.wait_for("ready")


async def test_top_of_a_busy_daemon_shows_sorts_filters_and_kills(watched: Watched) -> None:
    async with daemon("run", "-c", watched.file) as running:
        await started(running)
        async with (
            terminal(*watched.top) as top,
            await watched.client() as victim,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(watched.load)
            lines = await top.shows(lambda lines: "2 connections" in lines[0] and "█" in lines[3])
            assert lines[3].startswith("web ")
            assert lines[4].startswith("dead ")
            await top.shows("W dead: dial_failed: cannot dial")
            await top.type("ss")
            await top.shows("connections by age")
            await top.type("ss")
            await top.shows("connections by id, ascending")
            await top.type("/missing\r")
            await top.shows("filter 'missing'")
            await top.shows(lambda lines: not any(line.startswith(">") for line in lines))
            await top.type("\x1b")
            lines = await top.shows(lambda lines: any(line.startswith(">") for line in lines))
            first = next(line for line in lines if line.startswith(">"))
            number = first[1:].split()[0]
            await top.type("k")
            await top.shows(f"end connection {number}? press y to confirm")
            await top.type("y")
            await top.shows(f"connection {number} ended")
            assert await victim.receive_some() == b""
            await top.type("p")
            await top.shows("screen frozen")
            await top.type("p")
            await top.shows("connections by id")
            top.resize(120, 30)
            await top.shows(lambda lines: len(lines) == 30 and "target" in lines[5])
            await top.type("q")
            assert await top.wait() == 0
            nursery.cancel_scope.cancel()
        assert await running.stop() in (0, 1)


@pytest.mark.parametrize("how", ["q", signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_q_or_a_signal_ends_top_and_restores_the_terminal(
    watched: Watched, how: str | signal.Signals
) -> None:
    async with daemon("run", "-c", watched.file) as running:
        await started(running)
        async with terminal(*watched.top) as top:
            before = top.mode()
            await top.shows("q quit")
            assert top.mode() != before
            if isinstance(how, signal.Signals):
                top.process.send_signal(how)
            else:
                await top.type(how)
            assert await top.wait() == 0
            assert top.mode() == before
            await top.shows(lambda _: LEAVE_SCREEN in top.written)
            assert (
                SHOW_CURSOR
                in top.written.split(LEAVE_SCREEN)[0][-20:] + top.written.split(LEAVE_SCREEN)[1]
            )


async def test_top_reconnects_to_a_restarted_daemon(watched: Watched) -> None:
    async with daemon("run", "-c", watched.file) as first:
        await started(first)
        async with terminal(*watched.top) as top:
            await top.shows(f"process {first.pid}")
            assert await first.stop() == 0
            await top.shows("no answer from the daemon")
            async with daemon("run", "-c", watched.file) as second:
                await started(second)
                lines = await top.shows(f"process {second.pid}")
                assert "no answer from the daemon" not in "\n".join(lines)
                await top.type("q")
                assert await top.wait() == 0


async def test_top_without_a_daemon_fails_before_it_draws(watched: Watched) -> None:
    async with terminal(*watched.top) as top:
        assert await top.wait() == 1
        assert LEAVE_SCREEN not in top.written


async def test_with_no_color_set_the_screen_has_no_colours(watched: Watched) -> None:
    async with daemon("run", "-c", watched.file) as running:
        await started(running)
        async with terminal(*watched.top, environ={"NO_COLOR": "1"}) as top:
            await _shown_with_an_error(watched, top)
            assert not _has_colour(top.written)
        async with terminal(*watched.top) as top:
            await _shown_with_an_error(watched, top)
            assert _has_colour(top.written)


async def test_top_on_a_dumb_terminal_fails_before_it_draws(watched: Watched) -> None:
    async with terminal(*watched.top, environ={"TERM": "dumb"}) as top:
        assert await top.wait() == 1
        assert b"\x1b" not in top.written


def test_without_a_terminal_top_suggests_connections_watch(tmp_path: Path) -> None:
    done = command("top", "--socket", tmp_path / "none")
    assert done.returncode == 1
    assert "connections --watch" in done.stderr


async def _shown_with_an_error(watched: Watched, top: Terminal) -> None:
    async with await trio.open_unix_socket(str(watched.folder / "dead.sock")):
        await top.shows("W dead: dial_failed")


def _has_colour(written: bytes) -> bool:
    return b"\x1b[33m" in written or b"\x1b[31m" in written
