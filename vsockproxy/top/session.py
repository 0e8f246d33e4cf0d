"""One run of `top`: polls the daemon, reads keys and redraws, until a key or a signal ends it.

Owns: the tasks, and the terminal while they run.  `traffic` computes the rates, `panel`
interprets the keys and `screen` lays out the text.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Final

import trio
from rich.console import Console
from rich.live import Live

from vsockproxy.admin.client import Client, DaemonUnreachableError, RequestError
from vsockproxy.top.panel import Action, Panel
from vsockproxy.top.screen import ASCII, UNICODE, screen
from vsockproxy.top.terminal import key_by_key, keys
from vsockproxy.top.traffic import Snapshot, Traffic

_EVERY: Final = 1.0  # seconds between polls
_PAGE: Final = 200  # connections, while none further down is selected
_MOST_PAGES: Final = 20  # of 1000 connections, that a filter or a selection searches
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(client: Client, console: Console, descriptor: int) -> None:
    """Show the daemon on ``console`` until the operator quits or a signal arrives.

    Restores the terminal's mode and screen before it returns or raises.

    Args:
      client: the daemon's control API.
      console: the terminal to draw on.
      descriptor: the terminal to read keys from.

    Raises:
      DaemonUnreachableError, RequestError: the first request failed.
    """
    session = Session(client, console)
    session.traffic.observe(take_snapshot(client, session.panel, 0))
    with suppress(OSError), key_by_key(descriptor):  # OSError: the terminal is gone
        trio.run(session.serve, descriptor)


def take_snapshot(client: Client, panel: Panel, last_event: int) -> Snapshot:
    """Request everything that the screen shows.

    Blocks for up to the client's timeout for each request.

    Raises:
      DaemonUnreachableError, RequestError: a request failed.
    """
    query = {"sort": panel.sort, "order": panel.direction}
    row = panel.row or 0
    is_short = not panel.filter and row < _PAGE - 1
    pages = client.connections(**query, limit=_PAGE if is_short else 1000)
    wanted = 1 if is_short else _MOST_PAGES if panel.filter else (row + 1) // 1000 + 1
    taken = list(islice(pages, min(wanted, _MOST_PAGES)))
    return Snapshot(
        time.monotonic(),
        client.get("/v1/status"),
        client.get("/v1/routes")["routes"],
        [connection for page in taken for connection in page["connections"]],
        taken[0]["total"],
        client.get("/v1/events", after=last_event)["events"],
    )


class Session:
    """The tasks of one run: the poll, the keys and the signals.  Each redraws after a change."""

    def __init__(self, client: Client, console: Console) -> None:
        self.traffic = Traffic()
        self.panel = Panel()
        self._client = client
        self._console = console
        self._glyphs = ASCII if console.options.ascii_only else UNICODE
        self._refresh_now = trio.Event()

    async def serve(self, descriptor: int) -> None:
        """Poll the daemon, process keys and draw until a key or a signal ends the run."""
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        with self._live, trio.open_signal_receiver(*_ENDINGS, signal.SIGWINCH) as signals:
            async with trio.open_nursery() as nursery:
                end = nursery.cancel_scope.cancel
                self.draw()
                nursery.start_soon(self._poll)
                nursery.start_soon(self._follow_keys, descriptor, end)
                async for number in signals:
                    if number in _ENDINGS:
                        end()
                    self.draw()

    def draw(self) -> None:
        """Redraw the screen at the terminal's present size."""
        size = self._console.size
        shown = screen(self.traffic, self.panel, size.width, size.height, self._glyphs)
        self._live.update(shown, refresh=True)

    async def _poll(self) -> None:
        while True:
            with trio.move_on_after(_EVERY):
                await self._refresh_now.wait()
            self._refresh_now = trio.Event()
            if not self.panel.is_paused:
                await self._ask(self._observe)
                self.draw()

    def _observe(self) -> Callable[[], None]:
        snapshot = take_snapshot(self._client, self.panel, self.traffic.last_event)
        return lambda: self.traffic.observe(snapshot)

    async def _follow_keys(self, descriptor: int, end: Callable[[], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            data = os.read(descriptor, 1024)
            if not data:
                end()
            for key in keys(data):
                action = self.panel.press(key)
                if action is not None:
                    await self._perform(action, end)
            self.draw()

    async def _perform(self, action: Action, end: Callable[[], None]) -> None:
        match action.verb:
            case "quit":
                end()
            case "refresh":
                self._refresh_now.set()
            case "kill":
                await self._ask(lambda: self._kill(action.connection))
                self._refresh_now.set()

    def _kill(self, connection: int) -> Callable[[], None]:
        message = f"connection {connection} ended"
        try:
            self._client.delete(f"/v1/connections/{connection}")
        except RequestError as error:
            message = str(error).splitlines()[0]
        return lambda: setattr(self.panel, "message", message)

    async def _ask(self, question: Callable[[], Callable[[], None]]) -> None:
        """Send requests in a thread, and apply the returned change in this thread."""
        try:
            change = await trio.to_thread.run_sync(question, abandon_on_cancel=True)
        except (DaemonUnreachableError, RequestError) as error:
            self.traffic.record_failure(str(error).splitlines()[0])
        else:
            change()
