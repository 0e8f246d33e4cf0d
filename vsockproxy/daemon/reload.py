"""A reload: where SIGHUP and the API's request to reload end up.

Owns: `Reloading`, which reads the configuration again and has the daemon run it; the reports of
it: the log, the counters, systemd. The listeners are opened before anything changes, so a reload
that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from vsockproxy.config.added import KINDS, Added, with_added, without_clashes
from vsockproxy.config.changes import Changes, compare, facts_of, listed
from vsockproxy.config.settings import Config
from vsockproxy.errors import ConfigError, ListenError, OrderError, VsockproxyError
from vsockproxy.log.output import reconfigure
from vsockproxy.systemd import Notifier

if TYPE_CHECKING:
    from vsockproxy.daemon.daemon import Daemon

START_AGAIN: Final = "start the daemon again once it has ended"

Load = Callable[[], Config]
"""Reads the configuration again; called in a thread. Raises `ConfigError`."""

T = TypeVar("T")


async def in_thread(call: Callable[[], T], threads: trio.CapacityLimiter | None = None) -> T:
    """Return what a call returns that may wait for a disk; a cancellation leaves it behind."""
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=threads)


class Reloading:
    """The reloads of one daemon, one after the other."""

    def __init__(self, daemon: Daemon, load: Load | None, notifier: Notifier, log: Any) -> None:
        """Reload ``daemon`` with what ``load`` reads; without ``load`` there is no reload."""
        self._daemon = daemon
        self._load = load
        self._notifier = notifier
        self._log = log
        self._pump = daemon.config.pump

    async def reload(self, tasks: trio.Nursery) -> Changes:
        """Read the configuration again and run it, without losing a connection.

        Cancelled, it still goes on to its end, in ``tasks``. Returns what has changed.

        Raises:
          OrderError: with a line for each problem; nothing has changed, and the log has them.
        """
        try:
            load = self._loader()
        except OrderError as refusal:
            self._log.error("reload_failed", problem=str(refusal), remedy=refusal.remedy)
            raise
        self._notifier.reloading()
        reload = _Reload(load)
        tasks.start_soon(self._reload, reload)
        await reload.ended.wait()
        if reload.problems:
            raise OrderError("\n".join(reload.problems), reload.remedy)
        return reload.changes

    async def preview(self) -> Changes:
        """Return what a reload would change; raises `OrderError` as far as that can be known."""
        try:
            _, _, config = await self._plan(self._loader())
            await self._daemon.read_certificates(config)
        except VsockproxyError as error:
            raise OrderError("\n".join(_problems(error)), _remedy(error)) from error
        return self._changes(self._daemon.config, config)

    async def read(self) -> Config:
        """Return the configuration as it is now; raises `OrderError` or `ConfigError`."""
        return await in_thread(self._loader())

    def _loader(self) -> Load:
        """Return what reads the configuration; raises `OrderError` where there is no reload."""
        if self._load is None:
            sentence = "cannot reload: the daemon was started without a configuration file"
            raise OrderError(sentence, "restart it with other options, or run it from a file")
        if self._daemon.is_stopping:  # and the tasks may have ended
            sentence = "the daemon is stopping: it takes no other configuration"
            raise OrderError(sentence, START_AGAIN)
        return self._load

    async def _reload(self, reload: _Reload) -> None:
        try:
            reload.changes = await self.replace(reload.load)
        except VsockproxyError as error:
            reload.fail(_problems(error), _remedy(error))
            for problem in reload.problems:
                self._log.error("reload_failed", problem=problem)
        except Exception as error:  # noqa: BLE001 - a reload never ends the daemon
            reload.fail(_problems(error), _remedy(error))
            self._log.exception("reload_failed", problem=reload.problems[0])
        self._daemon.tell_status()
        if not self._daemon.is_stopping:  # STOPPING=1 is final
            self._notifier.ready()
        reload.ended.set()

    async def replace(self, load: Load) -> Changes:
        """Run the configuration that ``load`` gives in place of the present one.

        Raises:
          VsockproxyError: it cannot be read or run, and nothing has changed.
          Exception: a defect, or no thread or memory is left; the present one runs on.
        """
        async with self._daemon.changing:
            try:
                return await self._take_in(load)
            except Exception as error:
                self._daemon.reloads.failed(_problems(error))
                raise

    async def take_in(self) -> Changes:
        """Reload as a part of a change: ``changing`` is held, and a failure is the change's."""
        return await self._take_in(self._loader())

    async def _take_in(self, load: Load) -> Changes:
        daemon = self._daemon
        before = daemon.config
        base, added, config = await self._plan(load)
        config, certificates = await daemon.open(config)
        base = replace(base, admin=config.admin)
        is_applied = await daemon.apply(config, certificates)
        self._report_clashes(daemon.added, added, base)
        daemon.base, daemon.added = base, added
        changes = self._changes(before, config)
        if is_applied:
            self._report(base, changes)
        return changes

    async def _plan(self, load: Load) -> tuple[Config, Added, Config]:
        """Return the files' configuration, what stays added to it, and both together."""
        present = self._daemon.added

        def plan() -> tuple[Config, Added, Config]:
            base = load()
            added = without_clashes(base, present)
            return base, added, with_added(base, added)

        return await in_thread(plan)

    def _report_clashes(self, before: Added, after: Added, base: Config) -> None:
        for kind in KINDS:
            for name in before.of(kind).keys() - after.of(kind).keys():
                self._log.warning("added_entry_replaced", kind=kind, name=name, config=base.source)

    def _changes(self, before: Config, config: Config) -> Changes:
        return compare(facts_of(before, self._pump), facts_of(config))

    def _report(self, config: Config, changes: Changes) -> None:
        reconfigure(config.log)
        for name in changes.needs_restart:
            self._log.warning("needs_restart", settings=name)
        self._daemon.reloads.succeeded(config)
        routes = len(self._daemon.supervisor.listeners)
        found = ((kind.name, getattr(changes, kind.name)) for kind in fields(changes))
        what = {kind: listed(names) for kind, names in found if names}
        self._log.info("reloaded", routes=routes, config=config.fingerprint, **what)
        self._daemon.warn_of_unused_sockets()


class _Reload:
    """A reload that a caller waits for, and what came of it."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.changes = Changes()
        self.problems: list[str] = []
        self.remedy = ""
        self.ended = trio.Event()

    def fail(self, problems: list[str], remedy: str) -> None:
        self.problems, self.remedy = problems, remedy


def _problems(error: Exception) -> list[str]:
    """Return the lines of an error, each after what it was about (`BaseException.add_note`)."""
    if not isinstance(error, VsockproxyError):
        return [f"{type(error).__name__}: {error}"]
    notes: list[str] = getattr(error, "__notes__", [])
    return [": ".join([*notes, line]) for line in str(error).splitlines()]


def _remedy(error: Exception) -> str:
    match error:
        case OrderError():
            return error.remedy
        case ConfigError():
            return "nothing has changed: correct the configuration, then reload again"
        case ListenError():
            return "nothing has changed: free the address or choose another, then reload again"
    return "nothing has changed: see reload_failed in the log, and report it"
