"""The text and the JSON of findings.

Owns: the layout.  A line has the level, the subject and the text; the remedy is on the next
line.  Long words, such as commands to paste, are not broken.
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
    """Yield the lines of a finding; the first starts with its level."""
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
    """Return the last line: the number of problems and notes."""
    levels = [finding.level for finding in findings]
    problems, notes = levels.count("problem"), levels.count("note")
    parts = [count(problems, "problem") if problems else "no problems"]
    if notes:
        parts.append(count(notes, "note"))
    return ", ".join(parts)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all findings as JSON values."""
    return {
        "problems": sum(finding.level == "problem" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }
