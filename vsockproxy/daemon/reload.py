"""A reload: where SIGHUP and the API's request to reload end up.

Owns: `Reloading`, which reads the configuration again and has the daemon run it; the reports of
it: the log, the counters, systemd. The listeners are opened before anything changes, so a reload
that fails changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import trio

from vsockproxy.config.settings import Config
from vsockproxy.errors import VsockproxyError
from vsockproxy.systemd import Notifier

if TYPE_CHECKING:
    from vsockproxy.daemon.daemon import Daemon

START_AGAIN: Final = "start the daemon again once it has ended"

Load = Callable[[], Config]
"""Reads the configuration again; called in a thread. Raises `ConfigError`."""


class Reloading:
    """The reloads of one daemon, one after the other.

    Attributes:
      has_failed: whether the last reload failed.
    """

    def __init__(self, daemon: Daemon, load: Load | None, notifier: Notifier, log: Any) -> None:
        """Reload ``daemon`` with what ``load`` reads; without ``load`` there is no reload."""
        self.has_failed = False
        self._daemon = daemon
        self._load = load
        self._notifier = notifier
        self._log = log

    async def reload(self, tasks: trio.Nursery) -> list[str]:
        """Read the configuration again and run it, without losing a connection.

        Cancelled, it still goes on to its end, in ``tasks``.

        Returns:
          The problems that keep the configuration from running, and then nothing has changed;
          empty when it runs.
        """
        if self._load is None:
            return ["this daemon was started without a configuration that could be read again"]
        if self._daemon.is_stopping:  # and the tasks may have ended
            return ["the daemon drains: it takes no other configuration"]
        self._notifier.reloading()
        reload = _Reload(self._load)
        tasks.start_soon(self._reload, reload)
        await reload.ended.wait()
        return reload.problems

    async def _reload(self, reload: _Reload) -> None:
        try:
            await self.replace(reload.load)
        except VsockproxyError as error:
            reload.problems = _problems(error)
            for problem in reload.problems:
                self._log.error("reload_failed", problem=problem)
        except Exception as error:  # noqa: BLE001 - a reload never ends the daemon
            reload.problems = [f"{type(error).__name__}: {error}"]
            self._log.exception("reload_failed", problem=reload.problems[0])
        self.has_failed = bool(reload.problems)
        self._daemon.tell_status()
        if not self._daemon.is_stopping:  # STOPPING=1 is final
            self._notifier.ready()
        reload.ended.set()

    async def replace(self, load: Load) -> None:
        """Run the configuration that ``load`` gives in place of the present one.

        Raises:
          VsockproxyError: it cannot be read or run, and nothing has changed.
          Exception: a defect, or no thread or memory is left; the present one runs on.
        """
        daemon = self._daemon
        async with daemon.changing:
            before = daemon.config
            try:
                config = await trio.to_thread.run_sync(load)
                is_applied = await daemon.apply(config, await daemon.open(config))
            except Exception:
                daemon.reloads.failed()
                raise
            if is_applied:
                self._report(before, config)

    def _report(self, before: Config, config: Config) -> None:
        for name in ("pump", "log"):
            if getattr(config, name) != getattr(before, name):
                self._log.warning("needs_restart", settings=name)
        self._daemon.reloads.succeeded(config)
        routes = len(self._daemon.supervisor.listeners)
        self._log.info("reloaded", routes=routes, config=config.fingerprint)
        self._daemon.warn_of_unused_sockets()


class _Reload:
    """A reload that a caller waits for, and what came of it."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.problems: list[str] = []
        self.ended = trio.Event()


def _problems(error: VsockproxyError) -> list[str]:
    """Return the lines of an error, each after what it was about (`BaseException.add_note`)."""
    notes: list[str] = getattr(error, "__notes__", [])
    return [": ".join([*notes, line]) for line in str(error).splitlines()]
