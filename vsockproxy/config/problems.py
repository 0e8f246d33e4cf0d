"""Gathering all problems of a configuration, instead of stopping at the first one.

Owns: `Problems`, the error of a step of `load` that finds the problem of another key than its
own, and the error of a step that depends on a step with a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from vsockproxy.config.document import KeyPath, KeyProblem
from vsockproxy.errors import AddressError


class KeyProblemError(Exception):
    """A key has a problem."""

    def __init__(self, path: KeyPath, message: str) -> None:
        self.problem = KeyProblem(path, message)
        super().__init__(message)


class NotedError(Exception):
    """A step ends without a result: the reason is a problem that `Problems` already has."""


class Problems:
    """The problems found so far."""

    def __init__(self, found: Iterable[KeyProblem]) -> None:
        self.found = list(found)
        self._ended_steps = 0

    def add(self, path: KeyPath, message: str) -> None:
        """Add the problem of a key."""
        self.found.append(KeyProblem(path, message))

    def are_at(self, path: KeyPath) -> bool:
        """Return whether a problem is at a key or below it."""
        return any(problem.path[: len(path)] == path for problem in self.found)

    @contextmanager
    def collecting(self, path: KeyPath) -> Iterator[None]:
        """Add the problem that ends the block: an `AddressError` is one of the key at ``path``."""
        try:
            yield
        except (KeyProblemError, AddressError, NotedError) as error:
            self._ended_steps += 1
            if isinstance(error, KeyProblemError):
                self.found.append(error.problem)
            elif isinstance(error, AddressError):
                self.add(path, str(error))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run every `collecting` block in this block before the first problem has an effect.

        Raises:
          NotedError: after the block, if a problem ended one of them.
        """
        before = self._ended_steps
        yield
        if self._ended_steps > before:
            raise NotedError
