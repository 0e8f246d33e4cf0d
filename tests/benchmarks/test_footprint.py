"""The memory benchmark reads the log of the daemon that it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not a package
from footprint import wait_until_ready


def test_lines_that_are_not_events_are_skipped_until_the_daemon_is_ready() -> None:
    lines = iter(
        ["Warning: a library\n", "3\n", '{"event": "listening"}\n', '{"event": "ready"}\n', "x"]
    )
    wait_until_ready(lines)
    assert next(lines) == "x"


def test_a_daemon_that_ends_before_it_is_ready_is_an_error_with_its_output() -> None:
    with pytest.raises(SystemExit) as caught:
        wait_until_ready(["Traceback:\n", '{"event": "listening"}\n', "OSError: full\n"])
    assert str(caught.value) == (
        'the daemon ended before it was ready:\nTraceback:\n{"event": "listening"}\nOSError: full\n'
    )
