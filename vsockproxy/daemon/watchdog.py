"""The life signs that systemd waits for: the watchdog, the status, more time to stop.

Owns: `LifeSigns`, what systemd is told while the daemon runs and while it drains.
"""

from __future__ import annotations

from typing import Final

import trio

from vsockproxy.config.settings import Policy
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.log.output import get_logger
from vsockproxy.systemd import Notifier

_BEAT: Final = 5.0  # seconds from one life sign to the next, at most; arbitrary
_RETRY: Final = 0.05  # seconds until systemd, too busy to read, is told again; arbitrary
_GRACE: Final = 5.0  # seconds that the end may take once drain_timeout is over; arbitrary


class LifeSigns:
    """What systemd is told while the daemon runs, and while it drains."""

    def __init__(self, daemon: Daemon, notifier: Notifier) -> None:
        self._daemon = daemon
        self._notifier = notifier
        self._log = get_logger()
        self._period = min(_BEAT, (notifier.watchdog_seconds or 2 * _BEAT) / 2)
        self._drained_by: float | None = None

    def stop(self) -> None:
        """Drain at the first call, end every connection at the second."""
        if self._drained_by is None:
            # A route that a reload has removed may still drain.
            routes = [stats.route for stats in self._daemon.supervisor.stats()]
            longest = max((_drain_seconds(route.policy) for route in routes), default=0.0)
            delay = self._daemon.config.limits.drain_delay
            self._drained_by = trio.current_time() + delay + longest + _GRACE
        self._daemon.stop()
        self._extend_timeout()

    async def beat(self) -> None:
        """Give systemd life signs and the status, until cancelled."""
        while True:
            started = trio.current_time()
            if await self._is_alive():
                self._notifier.watchdog()
                self._extend_timeout()
            else:
                self._log.error("pump_hung", remedy="WatchdogSec= has systemd restart the service")
            self._daemon.tell_status()
            while not self._notifier.flush():  # noqa: ASYNC110 - systemd sets no Event
                await trio.sleep(_RETRY)
            await trio.sleep_until(started + self._period)

    async def _is_alive(self) -> bool:
        with trio.move_on_after(self._period / 2):
            await self._daemon.alive()
            return True
        return False

    def _extend_timeout(self) -> None:
        """While draining: TimeoutStopSec= must not end what drain_timeout allows."""
        if self._drained_by is not None:
            left = self._drained_by - trio.current_time()
            if left > 0:
                self._notifier.extend_timeout(min(left, 3 * self._period))


def _drain_seconds(policy: Policy) -> float:
    return policy.drain_timeout + policy.linger_timeout
