"""One object for each run of trio, made at its first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class PerRun(Generic[T]):
    """Hold an object that the tasks of a run share."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Make the object by ``make``, in each run that asks for it."""
        self._make = make
        self._value: trio.lowlevel.RunVar[T] = trio.lowlevel.RunVar("vsockproxy")

    def get(self) -> T:
        """Return this run's object."""
        try:
            return self._value.get()
        except LookupError:
            self._value.set(self._make())
            return self._value.get()
