"""What can go wrong, as types, and the words an operator can act on.

Owns: the exception tree; messages that quote files and peers have printable characters only.
The sentences and remedies of failed sockets are rows of `reasons`.
Knows nothing of sockets, trio or configuration.

The tree splits by the party that must act:

* `AddressError`, `ConfigError`: the operator, because what is written has no meaning.
* `SocketError` (`DialError`, `ListenError`): somewhere outside this process.
"""

from __future__ import annotations

import errno as _errno
from dataclasses import dataclass
from typing import Self

from vsockproxy.readable import escape
from vsockproxy.reasons import Addressed, Cause, Operation, Reason, explain


class VsockproxyError(Exception):
    """The root of every exception that this package raises on purpose."""


class AddressError(VsockproxyError, ValueError):
    """A text is not an address, or an address is not valid in that position."""


class OrderError(VsockproxyError):
    """An operator's order cannot be carried out: nothing has changed.

    Attributes:
      remedy: what to do, in one sentence.
    """

    def __init__(self, sentence: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(sentence)


class MissingError(OrderError):
    """An operator's order is about something that does not exist."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error in a configuration file.

    ``path`` is the key path (``route[2].listen``), empty for the file as a whole; ``line`` and
    ``column`` count from 1 and are None where there is no text, as for variables. ``source`` is the
    included file that has the problem; empty: the configuration itself.
    """

    path: str
    message: str
    line: int | None = None
    column: int | None = None
    source: str = ""


class ConfigError(VsockproxyError):
    """A configuration file has errors: all of them, in the file's order."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        self.source = source
        self.problems = problems
        lines = (f"{self.place_of(problem)}: {escape(problem.message)}" for problem in problems)
        super().__init__("\n".join(lines))

    def place_of(self, problem: Problem) -> str:
        """Return the file, line, column and key of one of the problems, in one line."""
        place = problem.source or self.source
        if problem.line is not None:
            place += f":{problem.line}"
            if problem.column is not None:
                place += f":{problem.column}"
        if problem.path:
            place += f": {problem.path}"
        return escape(place)


class SocketError(VsockproxyError):
    """An operation on an endpoint failed.

    Attributes:
      operation: ``dial`` or ``listen``.
      endpoint: the target or the listener.
      reason: one of `Reason`; a metric label.
      explanation: what happened, in one sentence.
      remedy: what to do about it, in one sentence; empty where there is nothing to do.
      summary: what failed and why, without the remedy.
      errno: the kernel's number, or None where no system call failed.
    """

    operation: Operation

    def __init__(
        self,
        endpoint: Addressed,
        reason: Reason,
        explanation: str,
        errno: int | None = None,
        *,
        remedy: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.reason: Reason = reason
        self.explanation = escape(explanation)
        self.remedy = escape(remedy)
        self.errno = errno
        code = "" if errno is None else f" [{_errno.errorcode.get(errno, errno)}]"
        self.summary = f"cannot {self.operation} {escape(str(endpoint))}: {self.explanation}{code}"
        super().__init__(f"{self.summary}; {self.remedy}" if remedy else self.summary)

    def with_context(self, words: str) -> Self:
        """Return a copy without a traceback whose sentence ends with ``words``, if any.

        A raised error keeps the frames that it passed alive: store or raise a copy instead.
        """
        sentence = f"{self.explanation}; {words}" if words else self.explanation
        return type(self)(self.endpoint, self.reason, sentence, self.errno, remedy=self.remedy)


class DialError(SocketError):
    """A target could not be reached."""

    operation = "dial"


class ListenError(SocketError):
    """A listener could not be opened."""

    operation = "listen"


def dial_error(
    endpoint: Addressed, cause: Cause, detail: object = "", *, errno: int | None = None
) -> DialError:
    """Return the `DialError` for an errno, or for another cause of the table in `reasons`.

    Args:
      cause: an errno of socket(2), connect(2) or SO_ERROR, or a name of the table.
      detail: what the sentence quotes, where the row has a place for it.
      errno: the kernel's number behind a named cause, if there is one.
    """
    reason, sentence, remedy = explain("dial", endpoint, cause, detail)
    return DialError(endpoint, reason, sentence, errno or _number(cause), remedy=remedy)


def listen_error(endpoint: Addressed, cause: Cause) -> ListenError:
    """Return the `ListenError` for an errno of socket(2), bind(2) or listen(2), or a name."""
    reason, sentence, remedy = explain("listen", endpoint, cause)
    return ListenError(endpoint, reason, sentence, _number(cause), remedy=remedy)


def _number(cause: Cause) -> int | None:
    return cause if isinstance(cause, int) else None


def first_of(error: BaseException) -> BaseException:
    """Return an error, or the first one in a group of any depth."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def sentences(error: BaseException) -> list[str]:
    """Return the message of an error, or of each error of a group of any depth.

    Its notes (`BaseException.add_note`) name its subject and come first:
    ``route web: cannot ...``.
    """
    if isinstance(error, BaseExceptionGroup):
        return [sentence for inner in error.exceptions for sentence in sentences(inner)]
    return [": ".join([*getattr(error, "__notes__", ()), str(error)])]
