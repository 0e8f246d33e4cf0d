"""The tables of docs/configuration.md and the sample file, from the declaration of the keys.

Owns: how a key, its kind and its default are written there.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from vsockproxy.config.key import Key
from vsockproxy.config.schema import TABLES, PolicyKeys, RouteTable

_ROOT: Final = Path(__file__).parent.parent
_PAGE: Final = _ROOT / "docs" / "configuration.md"
_SAMPLE: Final = _ROOT / "config" / "vsockproxy.toml"

_MARKED: Final = re.compile(r"(?m)^<!-- keys of (\w+)(?:, (\w+))? -->\n(?:\|.*\n)*")
_DEFAULTS: Final = re.compile(r"(?ms)^\[defaults\]\n.*?\n(?=\n# )")
_WIDTH: Final = 96


def made() -> dict[Path, str]:
    """Return the text of each file, with what is made from the declaration."""
    page = _MARKED.sub(_with_table, _PAGE.read_text())
    sample = _DEFAULTS.sub(lambda _: _defaults(), _SAMPLE.read_text())
    return {_PAGE: page, _SAMPLE: sample}


def _with_table(marked: re.Match[str]) -> str:
    marker = marked[0].partition("\n")[0]
    return f"{marker}\n{_table(*marked.groups(''))}"


def _table(table: str, group: str) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field, key in _keys(table):
        if key.group == group:
            default = key.default or _coded(_default(field, key))
            rows.append(f"| `{name}` | {_type(field, key)} | {default} | {key.text} |")
    return "\n".join(rows) + "\n"


def _keys(table: str) -> Iterator[tuple[str, FieldInfo, Key]]:
    model = TABLES[table]
    for name, field in model.model_fields.items():
        if model is not RouteTable or name not in PolicyKeys.model_fields:
            [key] = (one for one in field.metadata if isinstance(one, Key))
            yield name, field, key


def _type(field: FieldInfo, key: Key) -> str:
    words = key.words or (key.kind.words if key.kind else ", ".join(_words(field.annotation)))
    return re.sub(r'"[\w-]+"', lambda quoted: f"`{quoted[0]}`", words)


def _words(annotation: object) -> list[str]:
    """Return the values of a boolean or a Literal, optional or not, as a file has them."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [f'"{value}"' for value in get_args(annotation)]
    return [word for one in get_args(annotation) for word in _words(one)]


def _default(field: FieldInfo, key: Key) -> str:
    """Return a default in TOML; ``-`` where a key can be left out but has no word for that."""
    value = field.default
    if isinstance(value, tuple):
        return "[]"
    if value is None and key.kind is None:
        return "-"
    written = key.written(value)
    is_bare = isinstance(value, bool) or (isinstance(value, int) and written == str(value))
    return written if is_bare else f'"{written}"'


def _coded(default: str) -> str:
    return default if default == "-" else f"`{default}`"


def _defaults() -> str:
    lines = ["[defaults]"]
    for name, field, key in _keys("defaults"):
        lines += [
            f"# {line}" for line in textwrap.wrap(_comment(key.text, _type(field, key)), _WIDTH)
        ]
        lines.append(f"{name} = {_default(field, key)}")
    return "\n".join(lines) + "\n"


def _comment(text: str, kind: str) -> str:
    """Return a key's text without Markdown; the words that the key takes are in quotes."""
    words = re.findall(r'"(\w+)"', kind)
    plain = re.sub(r"`(\w+)`", lambda code: f'"{code[1]}"' if code[1] in words else code[1], text)
    return plain.replace("`", "") + "."
