"""One thing that the doctor has to say, as a value.

Owns: `Finding`.  Knows neither where it comes from nor how it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]
"""``note`` is worth knowing and no fault; ``problem`` keeps something from working."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about a subject, and for a problem what to do about it."""

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.remedy or self.level != "problem", self.text


def ok(subject: str, text: str) -> Finding:
    """Something that is as it should be."""
    return Finding("ok", subject, text)


def note(subject: str, text: str, remedy: str = "") -> Finding:
    """Something worth knowing."""
    return Finding("note", subject, text, remedy)


def problem(subject: str, text: str, remedy: str) -> Finding:
    """Something that keeps the proxy from doing what it should."""
    return Finding("problem", subject, text, remedy)
