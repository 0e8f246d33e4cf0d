"""Adding, replacing and removing routes and guests while the daemon runs, as the API asks for.

Owns: `Changing`.  What is added lasts until the daemon ends; with ``persist`` it is a file that is
written and taken in as by a reload.  A change is made as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from vsockproxy.config import persisted
from vsockproxy.config.added import Added, Kind, Table, changed, file_text, names_of, with_added
from vsockproxy.config.changes import Changes, compare, facts_of
from vsockproxy.config.settings import Config
from vsockproxy.errors import ConfigError, MissingError, OrderError

if TYPE_CHECKING:
    from vsockproxy.daemon.daemon import Daemon
    from vsockproxy.daemon.reload import Reloading

_A_FILE_WINS: Final = "change it there, then: vsockproxy reload"


class Changing:
    """The changes of one daemon, one after the other."""

    def __init__(self, daemon: Daemon, reloading: Reloading) -> None:
        self._daemon = daemon
        self._reloading = reloading

    async def add(self, kind: Kind, name: str, table: Table, *, persist: bool) -> Changes:
        """Add a route or a guest; a cancellation takes effect after it.

        Raises:
          OrderError: it cannot be added here, or there is one of that name.
          ConfigError, ListenError: it cannot be read or run. Nothing has changed.
        """
        async with self._alone():
            self._check_new(kind, name)
            if not persist:
                return await self._run(kind, name, table)
            file = persisted.file_of(self._daemon.base.written.include, kind, name)
            if await _exists(file):
                raise OrderError(f"{file} exists", "remove it, or replace what it has")
            await self._try(kind, name, table)
            return await self._write(file, _data(kind, name, table, file))

    async def replace(self, kind: Kind, name: str, table: Table) -> Changes:
        """Replace what was added, where it is: in memory, or in its file. Raises as `add`."""
        async with self._alone():
            if name in self._daemon.added.of(kind):
                return await self._run(kind, name, table)
            file = await self._own_file(kind, name)
            return await self._write(file, _data(kind, name, table, file))

    async def remove(self, kind: Kind, name: str) -> Changes:
        """Remove what was added: it accepts no more, and its connections go on. Raises as `add`."""
        async with self._alone():
            if name in self._daemon.added.of(kind):
                return await self._run(kind, name, None)
            return await self._write(await self._own_file(kind, name), None)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep reloads and orders away, and a cancellation until the end."""
        with trio.CancelScope(shield=True):
            async with self._daemon.ordering():
                yield

    def _check_new(self, kind: Kind, name: str) -> None:
        if name in names_of(self._daemon.base, kind):
            source = self._daemon.base.source
            sentence = f"the {kind} {name!r} is in the configuration ({source}): a file wins"
            raise OrderError(sentence, f"choose another name, or {_A_FILE_WINS}")
        if name in self._daemon.added.of(kind):
            raise OrderError(
                f"the {kind} {name!r} was added before", f"vsockproxy {kind} replace, or remove"
            )

    async def _own_file(self, kind: Kind, name: str) -> Path:
        """Return the file in which something was persisted."""
        base = self._daemon.base
        if name not in names_of(base, kind):
            raise MissingError(f"there is no {kind} {name!r}", f"vsockproxy {kind} add adds it")
        if base.written.include:
            file = persisted.file_of(base.written.include, kind, name)
            if await _exists(file):
                return file
        sentence = f"the {kind} {name!r} is in the configuration ({base.source}): a file wins"
        raise OrderError(sentence, _A_FILE_WINS)

    async def _run(self, kind: Kind, name: str, table: Table | None) -> Changes:
        daemon = self._daemon
        before, added = daemon.config, daemon.added.with_(kind, name, table)
        config = await trio.to_thread.run_sync(changed, daemon.base, before, added, kind, name)
        await daemon.swap(config)
        daemon.added = added
        return _changes(before, config)

    async def _try(self, kind: Kind, name: str, table: Table) -> None:
        """Raise `ConfigError` or `OrderError` for an entry that a file cannot have."""
        base, added = self._daemon.base, self._daemon.added
        try:
            await trio.to_thread.run_sync(with_added, base, Added().with_(kind, name, table))
        except ConfigError:
            await trio.to_thread.run_sync(with_added, base, added.with_(kind, name, table))
            sentence = f"the {kind} {name!r} needs a guest that was added without persist"
            remedy = "remove that guest and add it with --persist, then repeat this"
            raise OrderError(sentence, remedy) from None

    async def _write(self, file: Path, data: bytes | None) -> Changes:
        """Write a file, or remove it for None, and take it in; put it back if that fails."""
        await self._check_unchanged()
        before = await trio.to_thread.run_sync(persisted.read, file)
        await trio.to_thread.run_sync(persisted.write, file, data)
        try:
            return await self._reloading.take_in()
        except BaseException:
            await trio.to_thread.run_sync(persisted.write, file, before)
            raise

    async def _check_unchanged(self) -> None:
        """Raise `OrderError` if the files have changed: a change takes in nothing else."""
        config = await self._reloading.read()
        if config.fingerprint != self._daemon.reloads.fingerprint:
            raise OrderError(
                "the configuration has changed since the daemon read it",
                "vsockproxy reload takes it in (--dry-run shows it), then repeat this",
            )


def _data(kind: Kind, name: str, table: Table, file: Path) -> bytes:
    return file_text(kind, name, table, file.suffix).encode()


def _changes(before: Config, after: Config) -> Changes:
    return compare(facts_of(before), facts_of(after))


async def _exists(file: Path) -> bool:
    return await trio.to_thread.run_sync(file.exists)
