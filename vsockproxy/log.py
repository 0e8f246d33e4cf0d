"""One line an event: what is written about the daemon's life, and where.

Only a traceback on a terminal, which is a bug of ours, has more than one line.

Owns: the set-up of structlog, the escaping of values, and the bridge that brings the
libraries' own `logging` records into the same lines.  Knows no event: those who log say
what happened, in these words:

| event | says | keys |
|---|---|---|
| ``pump`` | which pump moves the bytes | pump, why |
| ``listening`` | a listener is open | owner, listen |
| ``ready`` | every listener is open | routes, config |
| ``reloaded`` | a new configuration runs | routes, config |
| ``reload_failed`` | the configuration could not be replaced | problem |
| ``needs_restart`` | a reload changed what a running daemon cannot change | settings |
| ``not_alive`` | a pump thread does not answer the watchdog | remedy |
| ``surplus_socket`` | a socket was handed in that no route uses | name, remedy |
| ``connection`` | a connection has ended (the access line) | number, route, client, target, \
upstream_bytes, downstream_bytes, seconds, dial_seconds, reason, why, vmm_port |
| ``dial_failed`` | a target could not be reached | number, route, client, target, reason, error |
| ``connection_failed`` | a bug ended a connection | number, route, client, target, exception |
| ``rejected`` | clients were turned away | number, route, client, target, reason, why, left_out |
| ``clients_wait`` | clients wait in the backlog | route, reason, why, left_out |
| ``listener_kept`` | a listener could not take new options | route, error |
| ``accept_failed`` | clients wait: accept(2) fails | route, error, remedy |
| ``accept_recovered`` | clients are accepted again | route, failures |
| ``http_failed`` | a request on the metrics listener broke the HTTP library | error |
| ``draining`` | told to stop: live connections may end | connections |
| ``ending`` | told again: live connections are ended | connections |
| ``stopped`` | the last line | drained |
| ``library`` | a library's own warning | logger, message |
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from vsockproxy.route import LogSettings

_Event = MutableMapping[str, Any]


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Send every event of this process to ``stream``, standard error by default.

    A line that cannot be written (a full disk, a closed pipe) is lost: the daemon goes
    on.  Loggers that have logged before keep what was configured then.
    """
    stream = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=_processors(settings, is_terminal=stream.isatty()),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=True,
    )
    _bridge_libraries()


def get_logger(**values: object) -> FilteringBoundLogger:
    """A logger that adds ``values`` to each of its events."""
    logger: FilteringBoundLogger = structlog.get_logger(**values)
    return logger


class _Lines:
    """Writes each line with one system call, so that lines of two processes do not mix."""

    def __init__(self, stream: TextIO) -> None:
        self._write = _writer(stream)

    def msg(self, line: str) -> None:
        with suppress(OSError):
            self._write(line + "\n")

    debug = info = warning = error = critical = msg


def _writer(stream: TextIO) -> Callable[[str], object]:
    # Past the stream's buffer: what a full disk refused would be written again at exit,
    # fail again, and turn the exit status into 120.
    try:
        descriptor = stream.fileno()
    except OSError:  # io.UnsupportedOperation: a stream in memory
        return stream.write
    return lambda text: os.write(descriptor, text.encode(errors="backslashreplace"))


def _processors(settings: LogSettings, *, is_terminal: bool) -> list[Processor]:
    human = settings.format == "human" or (settings.format == "auto" and is_terminal)
    return [
        structlog.processors.add_log_level,
        _time_stamper(human=human),
        structlog.processors.format_exc_info,
        _printable if not human else _printable_with_traceback,
        _renderer(settings, human=human, colors=is_terminal),
    ]


def _time_stamper(*, human: bool) -> Processor:
    if human:
        return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False, key="time")
    return structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")


def _renderer(settings: LogSettings, *, human: bool, colors: bool) -> Processor:
    if human:
        return structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="time", sort_keys=False)
    order = ("time", "level", "event")
    if settings.format == "json":
        return lambda logger, method, event: _to_json(
            logger, method, {**{key: event[key] for key in order}, **event}
        )
    return structlog.processors.LogfmtRenderer(key_order=order, bool_as_flag=False)


_to_json: Final = structlog.processors.JSONRenderer()


def _printable(_logger: object, _method: str, event: _Event) -> _Event:
    """Every value as a number, a truth value or a text without control characters.

    What a peer says can neither begin a line of its own nor steer a terminal.
    """
    for key, value in event.items():
        if value is not None and not isinstance(value, int | float):
            event[key] = escape(str(value))
    return event


def _printable_with_traceback(logger: object, method: str, event: _Event) -> _Event:
    """The same for people, who read a traceback in lines."""
    lines = [escape(line) for line in event.get("exception", "").split("\n")]
    event = _printable(logger, method, event)
    if "exception" in event:
        event["exception"] = "\n".join(lines)
    return event


def escape(text: str) -> str:
    r"""``text`` with what is not printable as Python spells it: ``\n``, ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class _Bridge(logging.Handler):
    """Turns a record of `logging` into an event."""

    def emit(self, record: logging.LogRecord) -> None:
        get_logger().log(
            record.levelno,
            "library",
            logger=record.name,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def _bridge_libraries() -> None:
    """Have `logging` speak through us: by default it would print tracebacks of many lines."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge())
