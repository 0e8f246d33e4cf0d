"""One result of the doctor's checks, as a value.

Owns: `Finding`.  Knows neither the checks nor the output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]
"""``note`` is information, not a fault; ``problem`` prevents something from working."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about a subject, and the remedy, which every problem has."""

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.remedy or self.level != "problem", self.text


def ok(subject: str, text: str) -> Finding:
    """Return a finding for a check that passed."""
    return Finding("ok", subject, text)


def note(subject: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that is information."""
    return Finding("note", subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    """Return a finding about a fault."""
    return Finding("problem", subject, text, remedy)
