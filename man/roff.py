"""Markdown, as far as our own pages use it, to the roff of a man page (groff_man(7)).

Owns: the escapes, and a block for each of: heading, paragraph, list, table, code.  A table
becomes a list of terms, because a man page has 80 columns: its first column is the term,
the one that explains it the text, and of the rest each is said after its head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

_ESCAPES: Final = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
)
_SPAN: Final = re.compile(r"`([^`]+)`|\[((?:[^\]`]|`[^`]*`)+)\]\([^)]*\)|\*\*([^*]+)\*\*")
_TEXTS: Final = ("meaning", "means", "it means", "does")
"""The heads of a column that explains the first one."""

_LITERAL: Final = str.maketrans({"\\": r"\e", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"})


_ITEM: Final = re.compile(r"^(-|[0-9]+\.) ", re.MULTILINE)


def page(name: str, section: int, summary: str, version: str, body: Iterable[str]) -> str:
    """A whole page, from its title on."""
    head = [
        '.\\" Made by `make man`; edit what it is made from.',
        f'.TH {name.upper()} {section} "" "{version}"',
        *heading("Name"),
        f"{literal(name)} \\- {plain(summary)}",
    ]
    return "\n".join([*head, *body]) + "\n"


def heading(text: str, level: int = 2) -> Iterator[str]:
    """A section's heading, or one below a section's."""
    if level == 2 and "`" not in text:
        yield f'.SH "{literal(text.upper())}"'
    else:  # a key keeps its case
        yield f'.{"SH" if level == 2 else "SS"} "{literal(text.replace("`", ""))}"'


def term(name: str, *text: str) -> Iterator[str]:
    """A term, already roff, and its paragraphs."""
    yield ".TP"
    yield name
    first, *rest = text
    yield _safe(first)
    for more in rest:
        yield ".IP"
        yield _safe(more)


def code(lines: Iterable[str]) -> Iterator[str]:
    """Lines as they stand."""
    yield from (".PP", ".RS 4", ".nf")
    yield from (_safe(literal(line)) for line in lines)
    yield from (".fi", ".RE")


def paragraph(text: str) -> Iterator[str]:
    """A paragraph of Markdown."""
    yield ".PP"
    yield _safe(inline(text))


def inline(text: str) -> str:
    """Markdown's spans: code and bold are bold here, a link is its text."""
    pieces: list[str] = []
    position = 0
    for match in _SPAN.finditer(text):
        pieces.append(plain(text[position : match.start()]))
        quoted, link, strong = match.groups()
        pieces.append(inline(link) if link else bold(quoted or strong))
        position = match.end()
    return "".join([*pieces, plain(text[position:])])


def bold(text: str) -> str:
    """What is typed as it stands."""
    return rf"\fB{literal(text)}\fR"


def italic(text: str) -> str:
    """What stands for something else."""
    return rf"\fI{literal(text)}\fR"


def literal(text: str) -> str:
    """Text to be copied: every sign is itself."""
    return text.translate(_ESCAPES)


def plain(text: str) -> str:
    """Text to be read: a hyphen may stay one."""
    return text.translate(_LITERAL)


def blocks(markdown: str) -> Iterator[str]:
    """The roff of a page, or of a part of one."""
    for block in re.split(r"\n{2,}", markdown.strip("\n")):
        yield from _block(block)


def _block(block: str) -> Iterator[str]:
    lines = [line for line in block.splitlines() if not line.startswith("<!--")]
    marks = re.match(r"(#{2,3}) (.*)", lines[0])
    if marks:
        yield from heading(marks[2], len(marks[1]))
        if lines[1:]:
            yield from _block("\n".join(lines[1:]))
    elif all(line.startswith("    ") for line in lines):
        yield from code(line[4:] for line in lines)
    elif lines[0].startswith("```"):
        yield from code(lines[1:-1])
    elif lines[0].startswith("|"):
        yield from _table([_cells(line) for line in lines])
    elif items := _items(block):
        for mark, item in items:
            yield from term(r"\(bu" if mark == "-" else mark, inline(" ".join(item.split())))
    else:
        yield from paragraph(" ".join(lines))


def _items(block: str) -> list[tuple[str, str]]:
    """The items of a list, each behind its mark: ``-``, or a number and a full stop."""
    if not _ITEM.match(block):
        return []
    marks, texts = _ITEM.findall(block), _ITEM.split(block)[2::2]
    return list(zip(marks, texts, strict=True))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _table(rows: list[list[str]]) -> Iterator[str]:
    heads, _, *body = rows
    text = next((heads.index(head) for head in _TEXTS if head in heads), None)
    for cells in body:
        about = "; ".join(
            f"{head}: {cell}"
            for column, (head, cell) in enumerate(zip(heads, cells, strict=True))
            if column not in (0, text) and cell not in ("-", "")
        )
        said = [] if text is None else [cells[text]]
        yield from term(inline(cells[0]), *map(inline, [*said, *filter(None, [about])]))


def _safe(line: str) -> str:
    """A line that is no request, though it begins like one."""
    return rf"\&{line}" if line.startswith((".", "'")) else line
