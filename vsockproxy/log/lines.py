"""Lines of text to a descriptor that may be slow, full or dead.

Owns: `LineWriter`, a bounded queue and the thread that empties it, and the count of what was
lost.  Knows nothing of what the lines say.

A thread, since the other ways of not waiting do not hold everywhere: O_NONBLOCK belongs to
the open file, which a shell or a sibling shares with us; and poll(2) calls a disk ready.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

MOST: Final = 4 << 20
"""Characters that may wait for the thread; what comes then is lost."""

_PIECE: Final = 4096  # PIPE_BUF: whole lines up to here never mix with another process's
_GATHER: Final = 0.005  # seconds; under load, a switch of threads carries many lines
_CLOSING: Final = 1.0  # seconds that the end waits for a slow reader


class LineWriter:
    """Writes lines to a descriptor in order, and never keeps its callers waiting.

    ``resumed`` is called in the thread, with how many lines were lost since it last was, once
    a line could be written again; what it puts always has room.

    Attributes:
      lost: how many lines could not be written so far.
    """

    def __init__(self, descriptor: int, resumed: Callable[[int], object]) -> None:
        """Start the thread; ``descriptor`` stays the caller's, and blocking if it was."""
        self.lost = 0
        self._told = 0
        self._descriptor = descriptor
        self._resumed = resumed
        self._lines: list[str] = []
        self._size = 0
        self._is_torn = False
        self._is_closing = False
        # Reentrant: what the garbage collector finalises in the middle of `put` may log.
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._pause = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Have a line written, its end included; or counted, if too much waits already."""
        with self._lock:
            if self._size > MOST and threading.current_thread() is not self._thread:
                self.lost += 1
                return
            self._lines.append(line)
            self._size += len(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what waits, for a second at most; nothing may be put any more."""
        self._is_closing = True
        self._pause.set()
        self._wake.set()
        self._thread.join(_CLOSING)

    def _run(self) -> None:
        while not self._is_closing or self._lines:
            self._wake.wait()
            self._wake.clear()
            written = [self._write(piece) for piece in _pieces(self._take())]
            if written and written[-1]:
                self._tell()
            self._pause.wait(_GATHER)

    def _take(self) -> list[str]:
        with self._lock:
            lines, self._lines = self._lines, []
            self._size = 0
        return lines

    def _write(self, piece: bytes) -> bool:
        """Write whole lines, if possible; what a full disk cut is ended before the next."""
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
        except BlockingIOError:  # somebody who shares the open file made it so
            ready = select.poll()
            ready.register(self._descriptor, select.POLLOUT)
            ready.poll()
            return 0

    def _tell(self) -> None:
        with self._lock:
            lost, self._told = self.lost - self._told, self.lost
        if lost:
            self._resumed(lost)


def _pieces(lines: Sequence[str]) -> Iterator[bytes]:
    """The lines joined to pieces of whole lines, none above PIPE_BUF unless one line is."""
    piece = b""
    for line in lines:
        data = line.encode(errors="backslashreplace")
        if piece and len(piece) + len(data) > _PIECE:
            yield piece
            piece = b""
        piece += data
    if piece:
        yield piece
