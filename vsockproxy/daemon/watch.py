"""``[reload] on_change``: a reload once the files of the configuration have changed.

Owns: which files these are, and when they count as changed.  The files are polled, in a thread:
inotify(7) reports neither changes on network file systems nor, for a path, the swap of a symbolic
link above it, which is how a ConfigMap changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.config.by_name import ByName
from vsockproxy.config.include import matching
from vsockproxy.config.process import ReloadSettings
from vsockproxy.config.settings import Config
from vsockproxy.daemon.reload import Load, in_thread
from vsockproxy.errors import ConfigError, OrderError

if TYPE_CHECKING:
    from vsockproxy.daemon.daemon import Daemon

_PERIOD: Final = 2.0  # seconds between polls; a change is complete if it outlasts one; arbitrary

Stamp = list[tuple[str, object]]
"""The files and what stat(2) said of each, or the number of its error."""


class Watch:
    """The task that reloads one daemon; it only waits for an event while the key is off."""

    def __init__(self, daemon: Daemon, load: Load, log: Any) -> None:
        """Reload ``daemon``, which reads its configuration with ``load``."""
        self._daemon = daemon
        self._load = load
        self._log = log
        self._is_on = trio.Event()  # another object each time that the key is switched off
        # A hung file system blocks this one thread, and none that others need.
        self._threads = trio.CapacityLimiter(1)

    def use(self, settings: ReloadSettings) -> None:
        """Watch or stop watching; one poll may still be on its way."""
        if settings.on_change:
            self._is_on.set()
        elif self._is_on.is_set():
            self._is_on = trio.Event()

    async def run(self) -> None:
        """Reload at each change while the key is on, until cancelled."""
        while True:
            is_on = self._is_on
            await is_on.wait()
            try:
                await self._watch(is_on)
            except Exception:  # noqa: BLE001 - no thread or memory is left, or a defect
                self._log.exception("watch_error", remedy="changes are watched again in 2 seconds")
                await trio.sleep(_PERIOD)

    async def _watch(self, is_on: trio.Event) -> None:
        """Reload once for each stamp that two polls agree on, until the key is switched off.

        A stamp whose reload failed is not tried again.
        """
        tried, before = await self._first(), None
        while True:
            await trio.sleep(_PERIOD)
            if is_on is not self._is_on:
                return
            stamp = await self._stamp()
            if stamp == before != tried and is_on is self._is_on:
                tried = stamp
                await self._reload()
            before = stamp

    async def _first(self) -> Stamp | None:
        """Return the stamp of the configuration that runs; None if its files have changed."""
        stamp = await self._stamp()
        try:
            config = await in_thread(self._load, self._threads)
        except ConfigError:  # the reload reports it
            return None
        except OrderError:  # it cannot be read again
            return stamp
        return stamp if config.fingerprint == self._daemon.base.fingerprint else None

    async def _stamp(self) -> Stamp:
        return await in_thread(partial(stamp_of, self._daemon.config), self._threads)

    async def _reload(self) -> None:
        if not self._daemon.is_stopping:
            self._log.info("files_changed", config=self._daemon.config.source)
            with suppress(OrderError):  # the log has it
                await self._daemon.reload()


def stamp_of(config: Config) -> Stamp:
    """Return the stamp of the files of a configuration; stats them and lists folders.

    A file that only a refused configuration includes is not among them.
    """
    return [(path, _status(path)) for path in _files(config)]


def _status(path: str) -> object:
    try:
        found = os.stat(path)  # noqa: PTH116 - of texts, thousands of them
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _files(config: Config) -> Iterator[str]:
    yield config.source
    for pattern in config.written.include:
        yield from _included(Path(pattern))
    if tls := config.metrics_tls:
        yield from filter(None, (tls.certificate, tls.key, tls.client_ca))
    for route in config.routes:
        if isinstance(route.target, ByName) and route.target.credentials:
            yield route.target.credentials


def _included(pattern: Path) -> Iterator[str]:
    yield str(pattern)  # a file's name, where it has no wildcards
    with suppress(OSError):
        yield from map(str, matching(pattern.parent, pattern.name))
