"""One line an event: what is written about the daemon's life, and where.

Only a traceback on a terminal, which is a bug of ours, has more than one line.

Owns: the set-up of structlog, the bound of what repeats itself, and the bridge that brings
the libraries' own `logging` records into the same lines.  Knows no event: those who log say
what happened, in these words:

| event | says | keys |
|---|---|---|
| ``pump`` | which pump moves the bytes | pump, why |
| ``listening`` | a listener is open | owner, listen |
| ``ready`` | every listener is open | routes, config |
| ``reloaded`` | a new configuration runs | routes, config |
| ``reload_failed`` | the configuration could not be replaced | problem |
| ``needs_restart`` | a reload changed what a running daemon cannot change | settings |
| ``pump_hung`` | a pump thread does not answer the watchdog | remedy |
| ``unused_socket`` | a socket was handed in that no route uses | name, remedy |
| ``guest_found`` | where a guest is, once it is asked for or has changed | guest, at |
| ``guest_not_found`` | where a guest is could not be found out | guest, error |
| ``connection`` | a connection has ended (the access line) | number, route, client, target, \
upstream_bytes, downstream_bytes, seconds, dial_seconds, reason, why, vmm_port |
| ``dial_failed`` | targets could not be reached | number, route, client, target, reason, error, \
left_out |
| ``dial_error`` | a bug ended a dial of the daemon's own | route, exception |
| ``connection_error`` | a bug ended a connection | number, route, client, target, exception |
| ``rejected`` | clients were turned away | number, route, client, target, reason, why, left_out |
| ``clients_queued`` | clients wait in the backlog | route, reason, why, left_out |
| ``listener_options_failed`` | a listener could not take new options | route, error |
| ``paused``, ``resumed`` | an operator has a route's clients wait, or come in again | route |
| ``route_draining`` | an operator closed a route's listener | route, connections |
| ``http_server_failed`` | a server beside the routes could not run | server, error, remedy |
| ``accept_failed`` | clients wait: accept(2) fails | route, error, remedy |
| ``accept_recovered`` | clients are accepted again | route, failures |
| ``http_request_failed`` | requests broke the HTTP library | reason, error, left_out |
| ``draining`` | told to stop: live connections may end | connections |
| ``ending`` | told again: live connections are ended | connections |
| ``stopped`` | the last line | drained |
| ``log_lines_lost`` | this log goes on: its reader was too slow, or its disk full | lines |
| ``library`` | a library's own warnings | logger, message, left_out |
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

from vsockproxy.config.settings import LogSettings
from vsockproxy.log import format as rendering
from vsockproxy.log.lines import LineWriter
from vsockproxy.systemd import is_journal

_PAUSE: Final = 10.0  # seconds between two lines of a `Throttle` that say the same


def configure(
    settings: LogSettings,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Output:
    """Send every event of this process to ``stream``, standard error by default.

    A line that cannot be written (a full disk, a closed pipe, a reader that does not read)
    is lost and counted: the daemon goes on.  Loggers that have logged before keep what was
    configured then.  Close the `Output` before the stream.
    """
    output = Output(sys.stderr if stream is None else stream)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=rendering.processors(
            settings.format, is_terminal=output.is_terminal, in_journal=output.is_journal(environ)
        ),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=output,
        cache_logger_on_first_use=True,
    )
    _bridge_libraries()
    return output


def get_logger(**values: object) -> FilteringBoundLogger:
    """A logger that adds ``values`` to each of its events."""
    logger: FilteringBoundLogger = structlog.get_logger(**values)
    return logger


def lines_lost() -> int:
    """How many lines could not be written since `configure`."""
    output = structlog.get_config()["logger_factory"]
    return output.lost if isinstance(output, Output) else 0


class Output:
    """Where the lines go; structlog takes it for its logger and for what makes loggers."""

    def __init__(self, stream: TextIO) -> None:
        # Past the stream's buffer: what a full disk refused would be written again at exit,
        # fail again, and turn the exit status into 120.
        self._writer: LineWriter | None = None
        self._put: Callable[[str], object] = stream.write
        self._descriptor: int | None = None
        self.is_terminal = stream.isatty()
        try:
            self._descriptor = stream.fileno()
        except OSError:  # io.UnsupportedOperation: a stream in memory
            return
        self._writer = LineWriter(self._descriptor, _tell_of_lost)
        self._put = self._writer.put

    @property
    def lost(self) -> int:
        """How many lines could not be written."""
        return self._writer.lost if self._writer else 0

    def is_journal(self, environ: Mapping[str, str]) -> bool:
        """Whether systemd's journal reads the lines."""
        return self._descriptor is not None and is_journal(self._descriptor, environ)

    def close(self) -> None:
        """Write what waits, for a second at most; nothing is logged after that."""
        if self._writer:
            self._writer.close()

    def __call__(self, *_: object) -> Output:
        """The logger that structlog wants made: this."""
        return self

    def msg(self, line: str) -> None:
        """Have a line written; never waits, never raises."""
        self._put(line + "\n")

    debug = info = warning = error = critical = msg


def _tell_of_lost(lines: int) -> None:
    get_logger().warning("log_lines_lost", lines=lines)


class Throttle:
    """Warnings that may come in floods: each is written once in ten seconds.

    What tells one from another is its event and its ``reason``; the next line of the same
    says how many were ``left_out``.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._notes = _Notes()

    def warning(
        self,
        event: str,
        names: Callable[[], Mapping[str, object]],
        *,
        reason: str,
        **values: object,
    ) -> None:
        """Log a warning or leave it out; ``names``, which costs, is called for those logged."""
        left_out = self._notes.take(event, reason)
        if left_out is not None:
            self._log.warning(event, **names(), reason=reason, **values, left_out=left_out)


class _Notes:
    """When what may be said again, and how often it was not since it last was."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str], tuple[float, int]] = {}

    def take(self, what: str, which: str) -> int | None:
        """How many were left out before this one; None if this one is to be left out."""
        due, left_out = self._notes.get((what, which), (-math.inf, 0))
        now = monotonic()
        is_due = now >= due
        self._notes[what, which] = (now + _PAUSE, 0) if is_due else (due, left_out + 1)
        return left_out if is_due else None


class _Bridge(logging.Handler):
    """Turns a record of `logging` into an event, unless the library repeats itself."""

    def __init__(self) -> None:
        super().__init__()
        self._notes = _Notes()

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; never raises, as whoever logs does not expect it to."""
        try:
            self._log(record)
        except Exception:  # noqa: BLE001 - logging has a way to tell of it
            self.handleError(record)

    def _log(self, record: logging.LogRecord) -> None:
        left_out = self._notes.take(record.name, str(record.msg))
        if left_out is not None:
            get_logger().log(
                record.levelno,
                "library",
                logger=record.name,
                message=record.getMessage(),
                exc_info=record.exc_info,
                left_out=left_out,
            )


def _bridge_libraries() -> None:
    """Have `logging` speak through us: by default it would print tracebacks of many lines."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge())
