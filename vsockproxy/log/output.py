"""The log's set-up: structlog, the standard error it writes to, throttles, the libraries' records.

Every event is one line, but for a traceback on a terminal.  The events are in the table of
`vsockproxy.log`; this module logs `log_lines_lost` and `library`.
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
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from vsockproxy.config.process import LogFormat, LogLevel, LogSettings
from vsockproxy.log import format as rendering
from vsockproxy.log.writer import LineWriter
from vsockproxy.systemd import is_journal

_PAUSE: Final = 10.0  # seconds between two equal warnings of a `Throttle`


def configure(
    settings: LogSettings,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    colors: bool | None = None,
    level: LogLevel | None = None,
    form: LogFormat | None = None,
) -> Output:
    """Send every event of this process to ``stream``, standard error by default.

    ``level`` and ``form`` win over every settings, those of a later `reconfigure` included.
    Lines for people have colours if ``colors`` is true; by default on a terminal.

    A line that cannot be written (a full disk, a closed pipe, a stalled reader) is dropped and
    counted; the daemon goes on.  A logger that has logged before keeps its old configuration.

    Returns: the output, which the caller closes; the stream stays the caller's.

    Raises:
      OSError: no descriptor is left for a duplicate of the stream's.
    """
    output = Output(sys.stderr if stream is None else stream, environ, colors)
    output.fix(level, form)
    output.use(settings)
    structlog.configure(
        processors=output.processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=output,
        cache_logger_on_first_use=True,
    )
    _bridge_libraries()
    return output


def reconfigure(settings: LogSettings) -> None:
    """Follow new settings from the next line on, where `configure` was called."""
    output = structlog.get_config()["logger_factory"]
    if isinstance(output, Output):
        output.use(settings)


def set_level(level: LogLevel | None) -> LogLevel:
    """Log from this level on until the process ends; None: from the configured one.

    Returns: the level that holds now.
    """
    output = structlog.get_config()["logger_factory"]
    if isinstance(output, Output):
        output.change_level(level)
    return current_level()


def current_level() -> LogLevel:
    """Return the level that holds now; that of the defaults where `configure` was not called."""
    output = structlog.get_config()["logger_factory"]
    return output.level if isinstance(output, Output) else LogSettings().level


def get_logger(**values: object) -> FilteringBoundLogger:
    """Return a logger that adds ``values`` to each of its events."""
    logger: FilteringBoundLogger = structlog.get_logger(**values)
    return logger


def lines_lost() -> int:
    """Return the number of lines dropped since `configure`."""
    output = structlog.get_config()["logger_factory"]
    return output.lost if isinstance(output, Output) else 0


class Output:
    """The destination of the lines, and structlog's logger and logger factory at once."""

    def __init__(
        self, stream: TextIO, environ: Mapping[str, str], colors: bool | None = None
    ) -> None:
        # Past the stream's buffer: Python would flush a line that a full disk refused again at
        # exit, fail again, and end with status 120.
        self._writer: LineWriter | None = None
        self._put: Callable[[str], object] = stream.write
        self._descriptor: int | None = None
        self._is_terminal = stream.isatty()
        self._colors = self._is_terminal if colors is None else colors
        self._environ = environ
        self._level: LogLevel | None = None
        self._form: LogFormat | None = None
        self._changed: LogLevel | None = None
        self._settings = LogSettings()
        # Loggers keep this list: it is changed in place.
        self.processors: list[Processor] = []
        try:
            self._descriptor = stream.fileno()
        except OSError:  # io.UnsupportedOperation: a stream in memory
            return
        # A file's lines are UTF-8 in every locale; a terminal gets what its locale can spell.
        encoding = stream.encoding if self._is_terminal else "utf-8"
        self._writer = LineWriter(self._descriptor, _report_lost, encoding)
        self._put = self._writer.put

    @property
    def level(self) -> LogLevel:
        """The level that holds now: an operator's, the command line's, or the configured one."""
        return self._changed or self._level or self._settings.level

    def fix(self, level: LogLevel | None, form: LogFormat | None) -> None:
        """Prefer a command line's level and format to those of `use`."""
        self._level, self._form = level, form

    def change_level(self, level: LogLevel | None) -> None:
        """Prefer an operator's level to every other one; None takes it back."""
        self._changed = level
        self.use(self._settings)

    def use(self, settings: LogSettings) -> None:
        """Have lines in this format and from this level on, unless others are fixed."""
        self._settings = settings
        self.processors[:] = [
            _dropped_below(self.level),
            *rendering.processors(
                self._form or settings.format,
                is_terminal=self._is_terminal,
                in_journal=self._is_journal(),
                colors=self._colors,
            ),
        ]

    @property
    def lost(self) -> int:
        """The number of lines dropped."""
        return self._writer.lost if self._writer else 0

    def _is_journal(self) -> bool:
        return self._descriptor is not None and is_journal(self._descriptor, self._environ)

    def close(self) -> None:
        """Write the queued lines, for a second at most; log nothing afterwards."""
        if self._writer:
            self._writer.close()

    def __call__(self, *_: object) -> Output:
        """Return this: structlog calls its factory for each logger."""
        return self

    def msg(self, line: str) -> None:
        """Queue a line; never blocks, never raises."""
        self._put(line + "\n")

    debug = info = warning = error = critical = msg


def _dropped_below(level: LogLevel) -> Processor:
    """Return a processor that drops the events of lower levels."""
    levels = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}
    least = levels[level]

    def processor(_logger: object, method: str, event: EventDict) -> EventDict:
        if levels[method] < least:
            raise structlog.DropEvent
        return event

    return processor


def _report_lost(lines: int) -> None:
    get_logger().warning("log_lines_lost", lines=lines)


class Throttle:
    """Log equal warnings once in ten seconds.

    Warnings are equal if their event and ``reason`` are.  The next line that is written has
    the number of suppressed ones as ``left_out``.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._suppression = _Suppression()

    def warning(
        self,
        event: str,
        names: Callable[[], Mapping[str, object]],
        *,
        reason: str,
        **values: object,
    ) -> None:
        """Log a warning or suppress it.

        ``names`` returns further keys; it is costly, so it is called only for a written line.
        """
        left_out = self._suppression.take(event, reason)
        if left_out is not None:
            self._log.warning(event, **names(), reason=reason, **values, left_out=left_out)


class _Suppression:
    """The time at which each kind of line may be written again, and the number suppressed."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}

    def take(self, event: str, reason: str) -> int | None:
        """Return the number suppressed before this line; None to suppress this one too."""
        due, left_out = self._kinds.get((event, reason), (-math.inf, 0))
        now = monotonic()
        is_due = now >= due
        self._kinds[event, reason] = (now + _PAUSE, 0) if is_due else (due, left_out + 1)
        return left_out if is_due else None


class _Bridge(logging.Handler):
    """Turn a record of `logging` into a `library` event; suppress repetitions."""

    def __init__(self) -> None:
        super().__init__()
        self._suppression = _Suppression()

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; never raises, as a library does not expect logging to fail."""
        try:
            self._log(record)
        except Exception:  # noqa: BLE001 - logging reports it
            self.handleError(record)

    def _log(self, record: logging.LogRecord) -> None:
        left_out = self._suppression.take(record.name, str(record.msg))
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
    """Route `logging` through structlog; by default it prints tracebacks of many lines."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge())
