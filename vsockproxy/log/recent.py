"""The last failures and changes of the daemon, for those who ask it: a short memory of its log.

Owns: `Events`, and `Recorder`, a logger that remembers what it passes on.  Knows no event:
the words are those of `log`.
"""

from __future__ import annotations

from collections import deque
from time import time
from typing import Any, Final, NamedTuple

from vsockproxy.log.format import escape

KEPT: Final = 200
"""How many events are remembered."""

_EACH_CONNECTION: Final = "connection_closed"  # the access line: neither a failure nor a change
_SENTENCES: Final = ("error", "why", "problem")
_ELSEWHERE: Final = ("route", "remedy")


class Event(NamedTuple):
    """One event: its number from 1 on, when it was (seconds of the epoch), and its words."""

    number: int
    time: float
    level: str
    event: str
    route: str | None
    message: str


class Events:
    """The last `KEPT` events."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._number = 0

    def record(self, level: str, event: str, fields: dict[str, Any]) -> None:
        """Remember an event, and forget the oldest."""
        self._number += 1
        route = fields.get("route")
        self._kept.append(
            Event(
                self._number,
                time(),
                level,
                event,
                None if route is None else str(route),
                _message(fields),
            )
        )

    def after(self, number: int) -> list[Event]:
        """Those with a greater number, the oldest first."""
        return [event for event in self._kept if event.number > number]


def _message(fields: dict[str, Any]) -> str:
    """The sentence among an event's fields, and the remedy; without one, all of them."""
    words = [str(fields[key]) for key in _SENTENCES if fields.get(key)][:1]
    if not words:
        words = [f"{key}={value}" for key, value in fields.items() if key not in _ELSEWHERE]
    if fields.get("remedy"):
        words.append(f"({fields['remedy']})")
    return escape(" ".join(words))


class Recorder:
    """A logger that remembers what is of lasting interest, whatever the log's level is."""

    def __init__(self, log: Any, events: Events) -> None:
        self._log = log
        self._events = events

    def debug(self, event: str, **fields: Any) -> None:
        """Log what is for developers; it is not remembered."""
        self._log.debug(event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log, and remember, what has changed."""
        if event != _EACH_CONNECTION:
            self._events.record("info", event, fields)
        self._log.info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log and remember what did not work for one client."""
        self._events.record("warning", event, fields)
        self._log.warning(event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log and remember what did not work for many."""
        self._events.record("error", event, fields)
        self._log.error(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log the exception that is being handled, and remember that there was one."""
        self._events.record("error", event, fields)
        self._log.exception(event, **fields)
