"""One run of `top`: looks at the daemon, keys and the size of the terminal, until the end.

Owns: the tasks, and the terminal from start to end.  What is seen is `traffic`'s, what a key
means `panel`'s, what it looks like `screen`'s.
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
from vsockproxy.top.panel import Order, Panel
from vsockproxy.top.screen import ASCII, UNICODE, screen
from vsockproxy.top.terminal import key_by_key, keys
from vsockproxy.top.traffic import Look, Traffic

_EVERY: Final = 1.0  # seconds from one look to the next
_PAGE: Final = 200  # connections; whoever scrolls farther wants a filter
_FILTERED: Final = 20  # pages of 1000 that a filter looks through
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(client: Client, console: Console, descriptor: int) -> None:
    """Show the daemon on ``console`` until somebody has enough of it.

    ``descriptor`` is the terminal of the keys.  The terminal is as it was afterwards, whatever
    ends it.  Raises as `Client` does if the first request fails.
    """
    session = Session(client, console)
    session.traffic.observe(take(client, session.panel, 0))
    with suppress(OSError), key_by_key(descriptor):  # OSError: the terminal is gone
        trio.run(session.serve, descriptor)


def take(client: Client, panel: Panel, last_event: int) -> Look:
    """Ask the daemon for everything that the screen shows; raises as `Client` does."""
    query = {"sort": panel.sort, "order": panel.direction}
    pages = client.connections(**query, limit=1000 if panel.filter else _PAGE)
    taken = list(islice(pages, _FILTERED if panel.filter else 1))
    return Look(
        time.monotonic(),
        client.get("/v1/status"),
        client.get("/v1/routes")["routes"],
        [connection for page in taken for connection in page["connections"]],
        taken[0]["total"],
        client.get("/v1/events", after=last_event)["events"],
    )


class Session:
    """The tasks of one run; all of them draw."""

    def __init__(self, client: Client, console: Console) -> None:
        self.traffic = Traffic()
        self.panel = Panel()
        self._client = client
        self._console = console
        self._glyphs = ASCII if console.options.ascii_only else UNICODE
        self._soon = trio.Event()

    async def serve(self, descriptor: int) -> None:
        """Look, follow the keys and draw, until a key or a signal ends it."""
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        with self._live, trio.open_signal_receiver(*_ENDINGS, signal.SIGWINCH) as signals:
            async with trio.open_nursery() as nursery:
                end = nursery.cancel_scope.cancel
                self.draw()
                nursery.start_soon(self._look)
                nursery.start_soon(self._follow_keys, descriptor, end)
                async for number in signals:
                    if number in _ENDINGS:
                        end()
                    self.draw()

    def draw(self) -> None:
        """Bring the screen up to date."""
        size = self._console.size
        shown = screen(self.traffic, self.panel, size.width, size.height, self._glyphs)
        self._live.update(shown, refresh=True)

    async def _look(self) -> None:
        while True:
            with trio.move_on_after(_EVERY):
                await self._soon.wait()
            self._soon = trio.Event()
            if not self.panel.is_paused:
                await self._ask(self._observe)
                self.draw()

    def _observe(self) -> Callable[[], None]:
        look = take(self._client, self.panel, self.traffic.last_event)
        return lambda: self.traffic.observe(look)

    async def _follow_keys(self, descriptor: int, end: Callable[[], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            data = os.read(descriptor, 1024)
            if not data:
                end()
            for key in keys(data):
                order = self.panel.press(key)
                if order is not None:
                    await self._obey(order, end)
            self.draw()

    async def _obey(self, order: Order, end: Callable[[], None]) -> None:
        match order.verb:
            case "quit":
                end()
            case "look":
                self._soon.set()
            case "kill":
                await self._ask(lambda: self._kill(order.connection))
                self._soon.set()

    def _kill(self, connection: int) -> Callable[[], None]:
        said = f"connection {connection} has been ended"
        try:
            self._client.delete(f"/v1/connections/{connection}")
        except RequestError as error:
            said = str(error).splitlines()[0]
        return lambda: setattr(self.panel, "said", said)

    async def _ask(self, question: Callable[[], Callable[[], None]]) -> None:
        """Ask the daemon in a thread; what its answer changes is changed here."""
        try:
            change = await trio.to_thread.run_sync(question, abandon_on_cancel=True)
        except (DaemonUnreachableError, RequestError) as error:
            self.traffic.miss(str(error).splitlines()[0])
        else:
            change()
