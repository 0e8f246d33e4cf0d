"""`LineWriter`: it never blocks its callers, keeps the order, and counts the lines it drops."""

import fcntl
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vsockproxy.log import writer as lines
from vsockproxy.log.writer import LineWriter

PIPE_SIZE = 4096  # the smallest that Linux allows


def ignore(lost: int) -> None:
    """Ignore the number of dropped lines."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Yield the ends of a small pipe, which the test may close."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


def read_lines(reader: int) -> list[str]:
    """Return the lines in a pipe; wait for the first, and for the end of the last."""
    text = ""
    while not text.endswith("\n"):
        text += os.read(reader, 65536).decode()
    return text.splitlines()


def read_up_to(reader: int, last: str) -> list[str]:
    """Return the lines of a pipe up to ``last``."""
    found: list[str] = []
    while last not in found:
        found += read_lines(reader)
    return found


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Limit the size of files in bytes, which has the effect of a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_lines_are_written_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    with closing(LineWriter(end, ignore)) as writer:
        for number in range(2000):
            writer.put(f"line {number}\n")
        assert read_up_to(reader, "line 1999") == [f"line {number}" for number in range(2000)]


def test_a_full_pipe_does_not_block_put_and_dropped_lines_are_counted_and_reported(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, end = pipe
    monkeypatch.setattr(lines, "MOST", 10_000)
    put = 5000

    with closing(LineWriter(end, lambda lost: writer.put(f"lost {lost}\n"))) as writer:
        for number in range(put):  # each would hang if `put` blocked
            writer.put(f"line {number}\n")
        lost = unreported = writer.lost
        written = []
        while unreported:
            for line in read_lines(reader):
                name, value = line.split()
                unreported -= int(value) if name == "lost" else 0
                written += [int(value)] if name == "line" else []
    assert lost > 0
    assert len(written) == put - lost
    assert written == sorted(written)


def test_the_open_file_stays_blocking_for_other_processes(pipe: tuple[int, int]) -> None:
    _, end = pipe
    with closing(LineWriter(end, ignore)):
        assert os.get_blocking(end)


def test_a_full_non_blocking_pipe_loses_no_line(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    os.set_blocking(end, False)
    with closing(LineWriter(end, ignore)) as writer:
        for number in range(2000):
            writer.put(f"line {number}\n")
        assert len(read_up_to(reader, "line 1999")) == 2000
    assert writer.lost == 0


def test_a_line_longer_than_the_pipe_is_written_whole(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    with closing(LineWriter(end, ignore)) as writer:
        writer.put("x" * 100_000 + "\n")
        writer.put("end\n")
        assert read_up_to(reader, "end") == ["x" * 100_000, "end"]


def test_lines_to_a_pipe_without_a_reader_are_counted_as_lost(pipe: tuple[int, int]) -> None:
    reader, end = pipe
    os.close(reader)
    writer = LineWriter(end, ignore)
    for _ in range(3):
        writer.put("line\n")
    writer.close()
    assert writer.lost == 3


def test_a_line_truncated_by_a_full_disk_is_ended_before_the_next_one(tmp_path: Path) -> None:
    log = tmp_path / "log"
    reported: list[int] = []
    with log.open("a") as file:
        writer = LineWriter(file.fileno(), reported.append)
        with file_limit(8):
            writer.put("first line\n")
            while not writer.lost:
                os.sched_yield()
        writer.put("next line\n")
        writer.close()
    assert log.read_text() == "first li\nnext line\n"
    assert reported == [1]


def test_close_writes_what_fits_and_does_not_wait_for_a_stalled_reader(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CLOSING", 0.05)
    reader, end = pipe
    writer = LineWriter(end, ignore)
    for number in range(1000):
        writer.put(f"line {number}\n")
    writer.close()
    assert os.read(reader, 65536).startswith(b"line 0\nline 1\n")


def test_a_thread_blocked_past_close_does_not_write_into_a_file_that_reuses_the_descriptor(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lines, "_CLOSING", 0.05)
    reader, end = pipe
    log = tmp_path / "other"
    writer = LineWriter(end, ignore)
    for number in range(2000):
        writer.put(f"line {number}\n")
    writer.close()
    assert writer._thread.is_alive()

    with log.open("wb") as other:
        os.dup2(other.fileno(), end, inheritable=False)
        assert read_up_to(reader, "line 1999") == [f"line {number}" for number in range(2000)]
        writer._thread.join()
    assert log.read_bytes() == b""


def test_the_duplicate_of_the_descriptor_is_closed_when_a_blocked_thread_ends(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CLOSING", 0.05)
    reader, end = pipe
    writer = LineWriter(end, ignore)
    for number in range(2000):
        writer.put(f"line {number}\n")
    writer.close()
    assert writer._thread.is_alive()

    os.close(end)
    while os.read(reader, 65536):  # the end of the file: no descriptor of the writing end is left
        continue
    writer._thread.join()
