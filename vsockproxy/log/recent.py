"""The last failures and changes of the daemon, kept in memory for the operator's API.

Owns: `RecentEvents`, and `Recorder`, a logger that also records its events.
"""

from __future__ import annotations

from collections import deque
from time import time
from typing import Any, Final, NamedTuple

from vsockproxy.readable import escape

KEPT: Final = 200
"""The number of events that are kept."""

_UNRECORDED: Final = (  # many, and neither failures nor changes
    "connection_closed",
    "listening",
    "request_decided",
)
_SENTENCES: Final = ("error", "why", "problem")
_SHOWN_APART: Final = ("route", "remedy")


class RecentEvent(NamedTuple):
    """One event of the log.

    Attributes:
      number: counts from 1, without gaps.
      time: in seconds since the epoch.
      level: ``info``, ``warning`` or ``error``.
      event: its name.
      route: the route that it is about, or None.
      message: its sentence and remedy.
    """

    number: int
    time: float
    level: str
    event: str
    route: str | None
    message: str


class RecentEvents:
    """The last `KEPT` events."""

    def __init__(self) -> None:
        self._kept: deque[RecentEvent] = deque(maxlen=KEPT)
        self._number = 0

    def record(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Keep an event, and discard the oldest one beyond `KEPT`."""
        self._number += 1
        route = fields.get("route")
        self._kept.append(
            RecentEvent(
                self._number,
                time(),
                level,
                event,
                None if route is None else str(route),
                _message(fields),
            )
        )

    def after(self, number: int) -> list[RecentEvent]:
        """Return the events with a greater number, oldest first."""
        return [event for event in self._kept if event.number > number]


def _message(fields: dict[str, Any]) -> str:
    """Return the sentence among an event's fields and the remedy; without one, all fields."""
    words = [str(fields[key]) for key in _SENTENCES if fields.get(key)][:1]
    if not words:
        words = [f"{key}={value}" for key, value in fields.items() if key not in _SHOWN_APART]
    if fields.get("remedy"):
        words.append(f"({fields['remedy']})")
    return escape(" ".join(words))


class Recorder:
    """A logger that also records its events, whatever the log's level is.

    Access and audit lines of clients, those of listeners, and debug events are not recorded.
    """

    def __init__(self, log: Any, events: RecentEvents) -> None:
        self._log = log
        self._events = events

    def debug(self, event: str, **fields: Any) -> None:
        """Log an event for developers."""
        self._log.debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log and record a change."""
        if event not in _UNRECORDED:
            self._events.record("info", event, fields)
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log and record a failure that affects one client or guest."""
        self._events.record("warning", event, fields)
        self._log.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log and record a failure that affects a route or the daemon."""
        self._events.record("error", event, fields)
        self._log.error(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log the exception that is being handled, and record the event."""
        self._events.record("error", event, fields)
        self._log.exception(event, **fields)
