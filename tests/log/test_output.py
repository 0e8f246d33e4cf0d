"""The log's output: formats, levels, lost lines, throttles and the records of libraries."""

import io
import json
import logging
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import structlog
from trio.testing import MockClock

from tests.admin.fake_daemon import FakeDaemon
from vsockproxy.admin.registry import Registry
from vsockproxy.config.process import LogFormat, LogLevel, LogSettings
from vsockproxy.log import output as log

HOSTILE = 'a\nlevel=error event=forged\r\n\x1b[2J\x85\u2028"\ud800=\\'


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    handlers = logging.getLogger().handlers[:]
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def lines() -> Callable[..., list[str]]:
    def written(event: str, settings: LogSettings, **values: object) -> list[str]:
        stream = io.StringIO()
        log.configure(settings, stream)
        log.get_logger().info(event, **values)
        return stream.getvalue().splitlines()

    return written


Lines = Callable[..., list[str]]


def test_the_format_of_a_log_that_is_not_a_terminal_is_logfmt(lines: Lines) -> None:
    [line] = lines("ready", LogSettings(), routes=2, config="a b.toml", drained=True)
    fields = dict(field.split("=", 1) for field in shlex.split(line))
    assert list(fields) == ["time", "level", "event", "routes", "config", "drained"]
    assert (fields["event"], fields["config"]) == ("ready", "a b.toml")
    assert (fields["routes"], fields["drained"]) == ("2", "true")


def test_json_keeps_numbers_and_the_order_of_keys(lines: Lines) -> None:
    settings = LogSettings(format="json")
    [line] = lines("connection_closed", settings, upstream_bytes=7, seconds=0.25, dial_seconds=None)
    event = json.loads(line)
    assert list(event)[:3] == ["time", "level", "event"]
    assert (event["upstream_bytes"], event["seconds"], event["dial_seconds"]) == (7, 0.25, None)


@pytest.mark.parametrize("form", ["human", "logfmt", "json"])
def test_a_hostile_value_cannot_make_a_second_line(lines: Lines, form: LogFormat) -> None:
    [line] = lines("dial_failed", LogSettings(format=form), error=HOSTILE)
    assert line.isprintable()
    assert "forged" in line


@pytest.mark.parametrize("form", ["human", "logfmt", "json"])
def test_a_value_that_is_not_a_string_is_shown_as_its_text(lines: Lines, form: LogFormat) -> None:
    [line] = lines("listening", LogSettings(format=form), listen=Path("/run/x"))
    assert "/run/x" in line
    assert "Path" not in line


def _with_traceback(form: LogFormat) -> str:
    stream = io.StringIO()
    log.configure(LogSettings(format=form), stream)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.get_logger().exception("connection_error", route="web")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_a_traceback_is_one_line_in_logfmt_and_json(form: LogFormat) -> None:
    [line] = _with_traceback(form).splitlines()
    assert "ValueError" in line
    assert line.isprintable()


def test_a_traceback_in_the_human_format_has_lines_but_no_control_characters() -> None:
    lines = _with_traceback("human").split("\n")
    assert len(lines) > 3
    assert all(line.isprintable() for line in lines)
    assert "ValueError" in "".join(lines)


def test_events_below_the_configured_level_are_not_written() -> None:
    levels: list[LogLevel] = ["debug", "info", "warning", "error"]
    for least in levels:
        stream = io.StringIO()
        log.configure(LogSettings(level=least), stream)
        for level in levels:
            getattr(log.get_logger(), level)(level)
        written = [line.split("event=")[1] for line in stream.getvalue().splitlines()]
        assert written == levels[levels.index(least) :]


def test_values_bound_to_a_logger_are_in_each_event() -> None:
    stream = io.StringIO()
    log.configure(LogSettings(), stream)
    log.get_logger(route="web").info("listening")
    assert "route=web" in stream.getvalue()


def test_the_format_on_a_terminal_is_human() -> None:
    master, slave = pty.openpty()
    with (
        os.fdopen(slave, "w", encoding="utf-8") as terminal,
        closing(log.configure(LogSettings(), terminal)),
    ):
        log.get_logger().warning("dial_failed", route="web")
        line = os.read(master, 4096).decode()
    os.close(master)
    assert "\x1b[" in line
    assert "level=" not in line


def test_lines_lost_on_a_full_disk_are_counted_in_a_metric() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        output = log.configure(LogSettings(), full)
        log.get_logger().info("ready")
        output.close()
        assert output.lost == log.lines_lost() == 1
    registry = Registry(FakeDaemon())
    assert registry.get_sample_value("vsockproxy_log_lines_lost_total") == 1


def test_the_number_of_lost_lines_is_logged_when_the_reader_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vsockproxy.log.writer.MOST", 100_000)
    reader, writer = os.pipe()
    with (
        os.fdopen(writer, "w", encoding="utf-8") as pipe,
        os.fdopen(reader, encoding="utf-8") as read,
        closing(log.configure(LogSettings(), pipe)) as output,
    ):
        while not output.lost:
            log.get_logger().info("connection_closed")
        reported = next(line for line in read if "event=log_lines_lost" in line)
        assert "level=warning" in reported
        assert "lines=1" in reported


@pytest.mark.parametrize("form", ["logfmt", "json", "human"])
def test_each_line_in_the_journal_begins_with_its_priority(form: LogFormat) -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    with os.fdopen(reader, encoding="utf-8") as read:
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            output = log.configure(LogSettings("debug", form), pipe, environ)
            logger = log.get_logger()
            for level in ("debug", "info", "warning", "error"):
                getattr(logger, level)(level)
            try:
                raise ValueError
            except ValueError:
                logger.exception("connection_error")
            output.close()
        lines = read.readlines()
    assert [line[:3] for line in lines[:4]] == ["<7>", "<6>", "<4>", "<3>"]
    assert {line[:3] for line in lines[4:]} == {"<3>"}


def test_a_file_beside_the_journal_gets_no_priorities(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as file:
        output = log.configure(LogSettings(), file, {"JOURNAL_STREAM": "8:4711"})
        log.get_logger().info("ready")
        output.close()
    assert path.read_text().startswith("time=")


# ---- floods ----


def test_equal_warnings_are_logged_once_in_ten_seconds_with_the_number_suppressed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = MockClock()
    monkeypatch.setattr(log, "monotonic", clock.current_time)
    with structlog.testing.capture_logs() as written:
        throttle = log.Throttle(log.get_logger())
        for seconds in (0, 1, 8, 2):
            clock.jump(seconds)
            for number in range(3):
                throttle.warning("dial_failed", partial(dict, number=number), reason="refused")
    assert [(line["number"], line["left_out"]) for line in written] == [(0, 0), (0, 8)]


def test_warnings_that_differ_in_event_or_reason_are_throttled_separately() -> None:
    with structlog.testing.capture_logs() as written:
        throttle = log.Throttle(log.get_logger())
        for event in ("dial_failed", "client_rejected", "dial_failed"):
            for reason in ("refused", "timeout"):
                throttle.warning(event, dict, reason=reason, error="no")
    assert len(written) == 4


def test_a_line_is_written_when_no_descriptor_is_free() -> None:
    code = """
import os, resource, sys
from vsockproxy.log import output as log
from vsockproxy.config.settings import LogSettings
output = log.configure(LogSettings())
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
log.get_logger().warning("dial_failed", error="no\\x1bway")
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
output.close()
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr
    assert r"error=no\x1bway" in ran.stderr


# ---- libraries ----


def test_a_record_of_a_library_becomes_one_library_event() -> None:
    stream = io.StringIO()
    log.configure(LogSettings(), stream)
    log.configure(LogSettings(), stream)  # a second call must not double the lines
    try:
        raise OSError("boom")
    except OSError:
        logging.getLogger("trio.serve_listeners").error("accept said %s", "no", exc_info=True)
    [line] = stream.getvalue().splitlines()
    assert 'event=library logger=trio.serve_listeners message="accept said no"' in line
    assert "OSError: boom" in line


def test_equal_records_of_a_library_are_logged_once_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = MockClock()
    monkeypatch.setattr(log, "monotonic", clock.current_time)
    stream = io.StringIO()
    log.configure(LogSettings(), stream)
    for seconds in (0, 1, 1, 60):
        clock.jump(seconds)
        logging.getLogger("trio.serve_listeners").error("accept said %s", seconds)
    lines = stream.getvalue().splitlines()
    assert [line.split("left_out=")[1] for line in lines] == ["0", "2"]


def test_a_malformed_record_of_a_library_is_reported_by_logging(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure(LogSettings(), io.StringIO())
    del logging.getLogger().handlers[:-1]  # pytest's handlers would raise the error
    logging.getLogger("h2").error("%d streams", "many")
    assert "streams" in capsys.readouterr().err  # the report of `logging`


def test_the_daemon_imports_nothing_that_draws_on_a_terminal() -> None:
    code = "import sys, vsockproxy.daemon.signals; print(*sys.modules); import rich.console"
    done = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "structlog" in done.split()
    assert not {"rich", "rich.console", "pygments"} & set(done.split())
