"""Adding, replacing and removing routes and guests while the daemon runs, as the API asks for.

Owns: `Changing`.  What is added lasts until the daemon ends; with ``persist`` it is a file that is
written and taken in as by a reload.  A change is made as a whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.config import persisted
from vsockproxy.config.added import (
    Added,
    Kind,
    Table,
    changed,
    file_text,
    is_taken,
    names_of,
    with_added,
)
from vsockproxy.config.changes import Changes, Facts, compare, facts_of
from vsockproxy.config.guest import KnownGuests
from vsockproxy.config.settings import Config
from vsockproxy.daemon.reload import START_AGAIN, Reloading, in_thread
from vsockproxy.errors import ConfigError, MissingError, OrderError

if TYPE_CHECKING:
    from vsockproxy.daemon.daemon import Daemon

_A_FILE_WINS: Final = "change it there, then: vsockproxy reload"
_IN_A_FILE: Final = "write it in a file, then: vsockproxy reload"
_SHOWN: Final = 20  # names
_UNDONE_WITHIN: Final = 5.0  # seconds, at the end of the daemon


class Changing:
    """The changes of one daemon, one after the other."""

    def __init__(self, daemon: Daemon, reloading: Reloading, log: Any) -> None:
        self._daemon = daemon
        self._reloading = reloading
        self._log = log
        self._scope = trio.CancelScope()

    def end(self) -> None:
        """Cancel the change under way: a disk that hangs must not hold up the daemon's end."""
        self._scope.cancel()

    async def add(self, kind: Kind, name: str, table: Table, *, persist: bool) -> Changes:
        """Add a route or a guest; a cancellation takes effect before or after it.

        Raises:
          OrderError: it cannot be added here, or there is one of that name.
          ConfigError, ListenError: it cannot be read or run. Nothing has changed.
        """
        async with self._alone():
            self._check_new(kind, name, persist=persist)
            _check_keys(kind, table)
            if not persist:
                return await self._run(kind, name, table)
            file = persisted.file_of(self._daemon.base.written.include, kind, name)
            if await in_thread(lambda: os.path.lexists(file)):
                raise OrderError(f"{file} exists", "remove it, or replace what it has")
            await self._try(kind, name, table)
            return await self._write(file, _data(kind, name, table, file))

    async def replace(self, kind: Kind, name: str, table: Table) -> Changes:
        """Replace what was added, where it is: in memory, or in its file. Raises as `add`."""
        async with self._alone():
            _check_keys(kind, table)
            if name in self._daemon.added.of(kind):
                return await self._run(kind, name, table)
            file = await self._own_file(kind, name)
            return await self._write(file, _data(kind, name, table, file))

    async def remove(self, kind: Kind, name: str) -> Changes:
        """Remove what was added: it accepts no more, and its connections go on. Raises as `add`."""
        async with self._alone():
            if name in self._daemon.added.of(kind):
                with _in_use(kind, name):
                    return await self._run(kind, name, None)
            file = await self._own_file(kind, name)
            return await self._write(file, None, _in_use(kind, name))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Keep reloads and orders away, and each cancellation but `end`."""
        async with self._daemon.ordering():
            with trio.CancelScope(shield=True) as self._scope:
                yield
        if self._scope.cancelled_caught:
            raise OrderError("the daemon has ended during the change", START_AGAIN)

    def _check_new(self, kind: Kind, name: str, *, persist: bool) -> None:
        base = self._daemon.base
        if name in names_of(base, kind):
            sentence = f"the {kind} {name!r} is in the configuration ({base.source}): a file wins"
            raise OrderError(sentence, f"choose another name, or {_A_FILE_WINS}")
        if kind == "guest" and not persist and is_taken(KnownGuests(base.guests), name):
            sentence = f"a pattern in the configuration ({base.source}) names the guest {name!r}"
            raise OrderError(sentence, "choose another name, or add it with --persist")
        if name in self._daemon.added.of(kind):
            raise OrderError(
                f"the {kind} {name!r} was added before", f"replace it: vsockproxy {kind} replace"
            )

    async def _own_file(self, kind: Kind, name: str) -> Path:
        """Return the file in which something was persisted."""
        base = self._daemon.base
        if name not in names_of(base, kind):
            raise MissingError(f"there is no {kind} {name!r}", self._known(kind))
        if base.written.include:
            file = persisted.file_of(base.written.include, kind, name)
            if await in_thread(lambda: persisted.has_only(file, kind, name)):
                return file
        sentence = f"the {kind} {name!r} is in the configuration ({base.source}): a file wins"
        raise OrderError(sentence, _A_FILE_WINS)

    def _known(self, kind: Kind) -> str:
        names = sorted({*names_of(self._daemon.base, kind), *self._daemon.added.of(kind)})
        more = ", ..." if len(names) > _SHOWN else ""
        return f"the names are {', '.join(names[:_SHOWN])}{more}" if names else f"no {kind} exists"

    async def _run(self, kind: Kind, name: str, table: Table | None) -> Changes:
        daemon = self._daemon
        before, added = daemon.config, daemon.added.with_(kind, name, table)
        config = await in_thread(lambda: changed(daemon.base, before, added, kind, name))
        if not await daemon.swap(config):
            raise OrderError("the daemon is stopping: nothing is added or removed", START_AGAIN)
        daemon.added = added
        return _changes(before, config)

    async def _try(self, kind: Kind, name: str, table: Table) -> None:
        """Raise `ConfigError` or `OrderError` for an entry that a file cannot have."""
        base, added = self._daemon.base, self._daemon.added
        try:
            await in_thread(lambda: with_added(base, Added().with_(kind, name, table)))
        except ConfigError:
            await in_thread(lambda: with_added(base, added.with_(kind, name, table)))
            sentence = f"the {kind} {name!r} needs a guest that was added without persist"
            remedy = "remove that guest and add it with --persist, then repeat this"
            raise OrderError(sentence, remedy) from None

    async def _write(
        self,
        file: Path,
        data: bytes | None,
        taking_in: AbstractContextManager[None] | None = None,
    ) -> Changes:
        """Write a file, or remove it for None, and take it in; put it back if that fails.

        ``taking_in`` is around the last step: its errors are those of the change itself.
        """
        await self._check_unchanged()
        before = await in_thread(lambda: persisted.read(file))
        try:
            await in_thread(lambda: persisted.write(file, data))
            with taking_in or nullcontext():
                return await self._reloading.take_in()
        except BaseException:
            with trio.move_on_after(_UNDONE_WITHIN, shield=True) as scope:
                await self._put_back(file, before)
            if scope.cancelled_caught:
                error = f"{file} was not put back within {_UNDONE_WITHIN:g} s"
                remedy = f"see to it that {file} is as it was before the change"
                self._log.error("change_not_undone", error=error, remedy=remedy)
            raise

    async def _put_back(self, file: Path, data: bytes | None) -> None:
        try:
            await in_thread(lambda: persisted.write(file, data))
        except OrderError as error:
            if await in_thread(lambda: _has(file, data)):
                return
            self._log.error("change_not_undone", error=str(error), remedy=error.remedy)

    async def _check_unchanged(self) -> None:
        """Raise `OrderError` if the files have changed: a change takes in nothing else."""
        config = await self._reloading.read()
        if config.fingerprint != self._daemon.reloads.fingerprint:
            raise OrderError(
                "the configuration has changed since the daemon read it",
                "vsockproxy reload takes it in (--dry-run shows it), then repeat this",
            )


@contextmanager
def _in_use(kind: Kind, name: str) -> Iterator[None]:
    """Name what needs the entry that the block removes, as the configuration's error does."""
    try:
        yield
    except ConfigError as error:
        sentence = f"the {kind} {name!r} is in use: {error.place_of(error.problems[0])}"
        raise OrderError(sentence, "remove or retarget what uses it first") from error


def _data(kind: Kind, name: str, table: Table, file: Path) -> bytes:
    return file_text(kind, name, table, file.suffix).encode()


def _changes(before: Config, after: Config) -> Changes:
    """Compare two configurations, of whose routes most are the same objects."""
    same = {id(one) for one in before.routes} & {id(one) for one in after.routes}

    def facts(config: Config) -> Facts:
        routes = tuple(one for one in config.routes if id(one) not in same)
        return facts_of(replace(config, routes=routes))

    return compare(facts(before), facts(after))


def _has(file: Path, data: bytes | None) -> bool:
    with suppress(OrderError):
        return persisted.read(file) == data
    return False


def _check_keys(kind: Kind, table: Table) -> None:
    """Raise `OrderError` for a guest that is a program: only a file has the daemon run one."""
    if kind != "guest":
        return
    if "command" in table:
        sentence = "a guest with a command is not added at run time: the daemon would run it"
        raise OrderError(sentence, _IN_A_FILE)
    scheme, _, rest = str(table.get("uri", "")).partition(":")
    if "+" in scheme or "?" in rest:
        sentence = (
            "a guest whose uri has a transport or parameters is not added at run time: libvirt"
            " can be told by them to run a program"
        )
        raise OrderError(sentence, _IN_A_FILE)
