"""Gathering all problems of a configuration, instead of stopping at the first one.

Owns: `Problems`, and the error by which a step of `load` reports the problem of another key
than its own.
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


class Problems:
    """The problems found so far."""

    def __init__(self, found: Iterable[KeyProblem]) -> None:
        self.found = list(found)

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
        except KeyProblemError as error:
            self.found.append(error.problem)
        except AddressError as error:
            self.add(path, str(error))
