"""The declaration of a configuration key: its documentation and the kind of its value.

Owns: `Key`.  A key is declared once, at its field in `settings` or `schema`.  Made from that are
the models that read files, the names of environment variables, the tables of
docs/configuration.md, ``[defaults]`` of config/vsockproxy.toml and the man page.
Must not import pydantic: the data path imports `settings`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final, TypeVar, cast

from vsockproxy.config.kinds import Kind

_KEY: Final = "key"

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Key:
    """A declaration beside a field's own name, type and default.

    Attributes:
      text: the documentation, in Markdown, for an operator.
      kind: the kind of value; None where the field's annotation says it all (bool, Literal).
      group: the table of the documentation that lists the key, where its table has several.
      words: the kind in the docs' words, where neither ``kind`` nor the annotation gives them.
      default: the default in the docs' words, where the field's own says too little.
    """

    text: str
    kind: Kind | None = None
    group: str = ""
    words: str = ""
    default: str = ""

    def written(self, value: object) -> str:
        """Return a value of the key as an operator writes it, without quotes."""
        if self.kind is not None:
            return self.kind.written(value)
        return str(value).lower() if isinstance(value, bool) else str(value)


def key(
    default: _Value, text: str, kind: Kind | None = None, *, group: str = "", shown: str = ""
) -> _Value:
    """Return the field of a frozen dataclass that is a key of the configuration."""
    declared = Key(text, kind, group, default=shown)
    return cast(_Value, field(default=cast(Any, default), metadata={_KEY: declared}))


def declared_keys(settings: type) -> dict[str, Key]:
    """Return the declaration of each field of a dataclass whose fields are `key`."""
    return {one.name: one.metadata[_KEY] for one in fields(settings)}
