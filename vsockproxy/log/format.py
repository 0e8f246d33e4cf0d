"""The text of an event's line: for people, as logfmt or as JSON, with the journal's priorities.

Owns: the time's format, the escaping of values, and the three formats.  Writes nothing and
knows no event.
"""

from __future__ import annotations

import re
import time
from collections.abc import MutableMapping
from typing import Any, Final

import structlog
from structlog.typing import Processor

from vsockproxy.config.process import LogFormat
from vsockproxy.readable import escape

# sd-daemon(3): the priorities of syslog(3), which the journal removes from the line.
_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}

_Event = MutableMapping[str, Any]


def processors(
    form: LogFormat, *, is_terminal: bool, in_journal: bool, colors: bool
) -> list[Processor]:
    """Return structlog's processors that turn an event into a line.

    ``auto`` is human on a terminal and logfmt elsewhere.  In the journal each line begins
    with its priority.
    """
    if form == "auto":
        form = "human" if is_terminal else "logfmt"
    *before, render = _FORMS[form](colors)
    return [
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        *before,
        _with_priority(render) if in_journal else render,
    ]


def _human(colors: bool) -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False, key="time"),
        _printable_with_traceback,
        structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", sort_keys=False),
    ]


def _json(_colors: bool) -> list[Processor]:
    to_json = structlog.processors.JSONRenderer()
    order = ("time", "level", "event")
    return [
        _UtcTime(),
        _printable,
        lambda logger, method, event: to_json(
            logger, method, {**{key: event[key] for key in order}, **event}
        ),
    ]


def _logfmt(_colors: bool) -> list[Processor]:
    return [_UtcTime(), _to_logfmt]


_FORMS: Final = {"human": _human, "json": _json, "logfmt": _logfmt}


def _with_priority(render: Processor) -> Processor:
    """Return a renderer that puts the priority before each line, see sd-daemon(3)."""

    def prefixed(logger: object, method: str, event: _Event) -> str:
        prefix = f"<{_PRIORITIES[event['level']]}>"
        return prefix + str(render(logger, method, event)).replace("\n", "\n" + prefix)

    return prefixed


class _UtcTime:
    """Add the time in UTC as ISO 8601.

    The text up to the second is cached: strftime costs more than the rest of the line.
    """

    def __init__(self) -> None:
        self._latest = (0, "")

    def __call__(self, _logger: object, _method: str, event: _Event) -> _Event:
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        latest, text = self._latest
        if seconds != latest:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            self._latest = seconds, text
        event["time"] = f"{text}.{microseconds:06d}Z"
        return event


def _to_logfmt(_logger: object, _method: str, event: _Event) -> str:
    """Return the event as logfmt.

    Written by hand: structlog's renderer costs a busy daemon more than relaying does.
    """
    head = f"time={event.pop('time')} level={event.pop('level')} event={event.pop('event')}"
    return head + "".join([f" {key}={_logfmt_value(value)}" for key, value in event.items()])


_is_plain: Final = re.compile(r"[!#-<>-~]+").fullmatch  # ASCII without blank, quote and =


def _logfmt_value(value: object) -> str:
    kind = type(value)
    if kind is int or kind is float:
        return str(value)
    if value is None:
        return ""
    if kind is bool:
        return "true" if value else "false"
    text = str(value)
    return text if _is_plain(text) else _quoted(escape(text))


def _quoted(text: str) -> str:
    if any(char in text for char in ' ="'):
        text = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'
    return text


def _printable(_logger: object, _method: str, event: _Event) -> _Event:
    """Turn every value into a number, a truth value or a text without control characters.

    A value that a peer chose can then neither forge a line nor control a terminal.
    """
    for key, value in event.items():
        if value is not None and not isinstance(value, int | float):
            event[key] = escape(str(value))
    return event


def _printable_with_traceback(logger: object, method: str, event: _Event) -> _Event:
    """Do the same as `_printable`, but keep the lines of a traceback."""
    lines = [escape(line) for line in event.get("exception", "").split("\n")]
    event = _printable(logger, method, event)
    if "exception" in event:
        event["exception"] = "\n".join(lines)
    return event
