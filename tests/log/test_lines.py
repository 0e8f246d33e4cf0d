"""The writer of the log's lines: it never waits, loses in order, and says how many it lost."""

import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vsockproxy.log import lines
from vsockproxy.log.lines import LineWriter

PIPE_SIZE = 4096  # the least that Linux has


def ignore(lost: int) -> None:
    """For writers whose losses nobody wants told."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that is soon full; the test may close its ends."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


def read_lines(reader: int) -> list[str]:
    """The lines that are in a pipe, whole ones, once there are some."""
    text = ""
    while not text.endswith("\n"):
        text += os.read(reader, 65536).decode()
    return text.splitlines()


def read_up_to(reader: int, last: str) -> list[str]:
    """The lines of a pipe up to one."""
    found: list[str] = []
    while last not in found:
        found += read_lines(reader)
    return found


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """No file may be longer than this: a disk that is full after so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_lines_come_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    with closing(LineWriter(end, ignore)) as writer:
        for number in range(2000):
            writer.put(f"line {number}\n")
        assert read_up_to(reader, "line 1999") == [f"line {number}" for number in range(2000)]


def test_nobody_waits_for_a_full_pipe_and_the_lost_are_counted_and_told(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, end = pipe
    monkeypatch.setattr(lines, "MOST", 10_000)
    put = 5000

    with closing(LineWriter(end, lambda lost: writer.put(f"lost {lost}\n"))) as writer:
        for number in range(put):  # each of them would hang if it waited
            writer.put(f"line {number}\n")
        lost = told = writer.lost
        written = []
        while told:
            for line in read_lines(reader):
                name, value = line.split()
                told -= int(value) if name == "lost" else 0
                written += [int(value)] if name == "line" else []
    assert lost > 0
    assert len(written) == put - lost
    assert written == sorted(written)


def test_the_open_file_stays_blocking_for_those_who_share_it(pipe: tuple[int, int]) -> None:
    _, end = pipe
    with closing(LineWriter(end, ignore)):
        assert os.get_blocking(end)


def test_a_full_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    os.set_blocking(end, False)
    with closing(LineWriter(end, ignore)) as writer:
        for number in range(2000):
            writer.put(f"line {number}\n")
        assert len(read_up_to(reader, "line 1999")) == 2000
    assert writer.lost == 0


def test_a_line_longer_than_the_pipe_goes_through(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    with closing(LineWriter(end, ignore)) as writer:
        writer.put("x" * 100_000 + "\n")
        writer.put("end\n")
        assert read_up_to(reader, "end") == ["x" * 100_000, "end"]


def test_a_pipe_without_a_reader_loses_lines_and_counts_them(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    os.close(reader)
    writer = LineWriter(end, ignore)
    for _ in range(3):
        writer.put("line\n")
    writer.close()
    assert writer.lost == 3


def test_what_a_full_disk_cut_does_not_run_into_the_next_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    told: list[int] = []
    with log.open("a") as file:
        writer = LineWriter(file.fileno(), told.append)
        with file_limit(8):
            writer.put("first line\n")
            while not writer.lost:
                os.sched_yield()
        writer.put("next line\n")
        writer.close()
    assert log.read_text() == "first li\nnext line\n"
    assert told == [1]


def test_the_end_waits_for_what_is_written_and_not_for_a_reader_that_never_reads(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CLOSING", 0.05)
    reader, end = pipe
    writer = LineWriter(end, ignore)
    for number in range(1000):
        writer.put(f"line {number}\n")
    writer.close()
    assert os.read(reader, 65536).startswith(b"line 0\nline 1\n")
