"""Findings as people and programs read them.

Owns: the layout.  A line has the level, the subject and the text; the remedy is on the next
line.  What is to be pasted is never broken in two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any, Final

from vsockproxy.doctor.finding import Finding, Level
from vsockproxy.readable import count

_LEVEL: Final = 9
_SUBJECT: Final = 15
_NARROWEST: Final = 60
_WIDEST: Final = 110

COLOURS: Final[dict[Level, str]] = {"ok": "green", "note": "cyan", "problem": "red"}


def lines_of(finding: Finding, width: int = 80) -> Iterator[str]:
    """The lines of a finding; the first starts with its level."""
    start = _LEVEL + _SUBJECT
    width = min(max(width, _NARROWEST), _WIDEST)
    head = f"{finding.level:<{_LEVEL}}{finding.subject:<{_SUBJECT}}"
    text = _wrapped(finding.text, width - start)
    yield (
        f"{head.rstrip()} "
        if len(head) > start or not head.endswith(" ")
        else f"{head}{text.pop(0)}"
    )
    for line in text:
        yield f"{'':{start}}{line}"
    if finding.remedy:
        first, *rest = _wrapped(finding.remedy, width - start - 3)
        yield f"{'':{start}}-> {first}"
        for line in rest:
            yield f"{'':{start}}   {line}"


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def summary(findings: Iterable[Finding]) -> str:
    """The last line: how much is wrong."""
    levels = [finding.level for finding in findings]
    problems, notes = levels.count("problem"), levels.count("note")
    told = [count(problems, "problem") if problems else "nothing is wrong"]
    if notes:
        told.append(count(notes, "note"))
    return ", ".join(told)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings, for a program."""
    return {
        "problems": sum(finding.level == "problem" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
