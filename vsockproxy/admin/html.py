"""HTML of the status page: elements, which escape every text in them, and the document around them.

Owns: the escaping, the style and the headers that forbid all else.  Knows nothing of the daemon.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Iterator
from typing import Final

from vsockproxy.readable import escape

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1b1f24; --dim: #59636e; --back: #fff; --line: #d6dbe0;
  --good: #116329; --warn: #7d4e00; --bad: #b3121d; --link: #0757ba; --head: #f3f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --dim: #9aa4af; --back: #0f1318; --line: #343b44;
    --good: #5bc873; --warn: #e0a93b; --bad: #ff8080; --link: #78b1ff; --head: #1a2027; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 110rem; color: var(--text);
  background: var(--back); font: 14px/1.4 system-ui, sans-serif; }
h1 { font-size: 1.2rem; margin: 0 0 .2rem; }
h2 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .2rem 0; overflow-wrap: anywhere; }
nav a, nav b, nav span { margin-right: 1rem; }
nav, form { margin: .5rem 0; }
a { color: var(--link); }
input, button { font: inherit; max-width: 100%; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; background: var(--head); font-weight: 600; white-space: nowrap; }
td[data-name=Client] { min-width: 11rem; }
th, td { padding: .3rem .5rem; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
td.number, th.number { text-align: right; overflow-wrap: normal; white-space: nowrap; }
td div { overflow-wrap: anywhere; }
tr.has-note td { border-bottom: 0; }
.dim { color: var(--dim); }
.good, .warn, .bad { font-weight: 600; white-space: nowrap; }
.good { color: var(--good); }
.warn { color: var(--warn); }
.bad { color: var(--bad); }
p.bad, p.warn, td.bad { font-weight: 400; white-space: normal; }
@media (max-width: 760px) {
  body { padding: .6rem; }
  thead { display: none; }
  table, tbody, tr, td, td.number { display: block; text-align: left; white-space: normal; }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0; }
  tr.has-note { border-bottom: 0; padding-bottom: 0; }
  td, td.number { border: 0; padding: .1rem 0 .1rem 7.5rem; min-height: 1.5rem;
    position: relative; }
  td[data-name]::before { content: attr(data-name); position: absolute; left: 0; width: 7rem;
    color: var(--dim); }
  td.note { padding-left: 0; }
  td:empty { display: none; }
  td.number div.dim { display: inline; margin-left: .6rem; }
}
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = (
    (
        "content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
)
"""Neither scripts nor anything from elsewhere, in no frame, and kept by no cache."""

_VOID: Final = frozenset({"input", "meta"})


class Markup(str):
    """HTML.  A text that is not `Markup` is escaped where it becomes part of an element."""

    __slots__ = ()


def element(name: str, *content: object, **attributes: object) -> Markup:
    """Return an element; an attribute ``class_`` is ``class``, ``data_name`` is ``data-name``."""
    words = [name]
    for key, value in attributes.items():
        words.append(f'{key.rstrip("_").replace("_", "-")}="{_escaped(value)}"')
    start = f"<{' '.join(words)}>"
    if name in _VOID:
        return Markup(start)
    return Markup(f"{start}{''.join(map(_escaped, content))}</{name}>")


def joined(pieces: Iterable[object], separator: object = "") -> Markup:
    """Return texts and elements in a row."""
    return Markup(_escaped(separator).join(map(_escaped, pieces)))


def document(title: str, body: Iterable[Markup], refresh: int | None) -> Iterator[bytes]:
    """Yield a page in pieces, one for each of its body's.

    Args:
      refresh: seconds after which a browser loads the page again; None is never.
    """
    again = [] if refresh is None else [element("meta", http_equiv="refresh", content=refresh)]
    head = joined(
        [
            element("meta", charset="utf-8"),
            element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            *again,
            element("title", title),
            element("style", Markup(_STYLE)),
        ]
    )
    yield f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n'.encode()
    for piece in body:
        yield f"{piece}\n".encode()
    yield b"</body></html>\n"


def _escaped(content: object) -> str:
    if isinstance(content, Markup):
        return content
    return html.escape(escape(str(content)))
