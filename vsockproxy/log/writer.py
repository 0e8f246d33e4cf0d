"""Lines of text, written to a descriptor that may be slow, full or broken.

Owns: `LineWriter`, a bounded queue and the thread that empties it, and the count of dropped
lines.  Does not know the lines' format.

The thread is needed because no other non-blocking write works everywhere: O_NONBLOCK belongs
to the open file description, which a shell or a sibling process shares, and poll(2) always
reports a file on disk as writable.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

MOST: Final = 4 << 20
"""Characters that may be queued for the thread; lines beyond that are dropped."""

_PIECE: Final = 4096  # PIPE_BUF: writes up to this size never interleave with another process's
_GATHER: Final = 0.005  # seconds; under load, one switch of threads then carries many lines
_CLOSING: Final = 1.0  # seconds for which `close` waits for a slow reader


class LineWriter:
    """Write lines to a descriptor in order, and never block the callers.

    Attributes:
      lost: the number of lines dropped so far.

    *Resource handling*: the writer uses a duplicate of the descriptor, which its thread closes
    when it ends.  The caller may therefore close the original at any time; a thread that is
    still blocked after `close` cannot write into another file that reuses the number.
    """

    def __init__(
        self, descriptor: int, resumed: Callable[[int], object], encoding: str = "utf-8"
    ) -> None:
        """Start the thread.

        Args:
          descriptor: the file to write to; it stays the caller's and keeps its mode.
          resumed: called in the thread with the number of lines dropped since its last call,
            as soon as a line could be written again.  A line that it puts is never dropped.
          encoding: the lines'; a character that it does not have is written as an escape.

        Raises:
          OSError: no descriptor is left for the duplicate.
        """
        self.lost = 0
        self._reported = 0
        self._descriptor = os.dup(descriptor)
        self._resumed = resumed
        self._encoding = encoding
        self._lines: list[str] = []
        self._size = 0
        self._is_torn = False
        self._is_closing = False
        # Reentrant: a finaliser that the garbage collector runs inside `put` may log.
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._pause = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line, which includes its newline; drop and count it when the queue is full."""
        with self._lock:
            if self._size > MOST and threading.current_thread() is not self._thread:
                self.lost += 1
                return
            self._lines.append(line)
            self._size += len(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write the queued lines, and wait for that at most a second.

        Call `put` no more.  Lines that a slow reader has not taken by then are still written
        if it reads before the process ends.
        """
        self._is_closing = True
        self._pause.set()
        self._wake.set()
        self._thread.join(_CLOSING)

    def _run(self) -> None:
        try:
            while not self._is_closing or self._lines:
                self._wake.wait()
                self._wake.clear()
                written = [self._write(piece) for piece in _pieces(self._take(), self._encoding)]
                if written and written[-1]:
                    self._report_lost()
                self._pause.wait(_GATHER)
        finally:
            os.close(self._descriptor)

    def _take(self) -> list[str]:
        with self._lock:
            lines, self._lines = self._lines, []
            self._size = 0
        return lines

    def _write(self, piece: bytes) -> bool:
        """Write whole lines; return False, and count them as lost, if that fails.

        A line that a full disk truncated is ended before the next one begins.
        """
        rest = b"\n" + piece if self._is_torn else piece
        try:
            while rest:
                rest = rest[self._write_some(rest) :]
                self._is_torn = bool(rest)
        except OSError:
            with self._lock:
                self.lost += min(rest.count(b"\n"), piece.count(b"\n"))
            return False
        return True

    def _write_some(self, rest: bytes) -> int:
        try:
            return os.write(self._descriptor, rest)
        except BlockingIOError:  # a process that shares the open file made it non-blocking
            ready = select.poll()
            ready.register(self._descriptor, select.POLLOUT)
            ready.poll()
            return 0

    def _report_lost(self) -> None:
        with self._lock:
            lost, self._reported = self.lost - self._reported, self.lost
        if lost:
            self._resumed(lost)


def _pieces(lines: Sequence[str], encoding: str) -> Iterator[bytes]:
    """Join the lines to pieces of whole lines, at most PIPE_BUF long unless one line is longer."""
    piece = b""
    for line in lines:
        data = line.encode(encoding, "backslashreplace")
        if piece and len(piece) + len(data) > _PIECE:
            yield piece
            piece = b""
        piece += data
    if piece:
        yield piece
