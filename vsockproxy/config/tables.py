"""Reading a document's tree by the models of `schema`.

Owns: the sentence for each key that does not fit its model; the rest of the tree is still read.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from vsockproxy.config.document import KeyPath, KeyProblem, Plain
from vsockproxy.config.schema import TABLES, FileTables
from vsockproxy.config.value import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def read_tables(tree: dict[str, Plain]) -> tuple[FileTables, list[KeyProblem]]:
    """Return the tables in a tree without the keys that do not fit, and those keys' problems."""
    try:
        return FileTables.model_validate(tree), []
    except ValidationError as error:
        details = error.errors(include_url=False)
    fitting = copy.deepcopy(tree)
    for detail in details:
        _remove(fitting, detail["loc"])
    problems = [KeyProblem(detail["loc"], _sentence(detail)) for detail in details]
    return FileTables.model_validate(fitting), problems


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean ...?`` with the known word closest to ``word``, or an empty text."""
    close = get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""


_SENTENCES: Final = {
    "string_type": "{read} is not a text: put it in quotes",
    "string_unicode": "{read} is not valid UTF-8",
    "int_type": "{read} is not a whole number",
    "int_parsing": "{read} is not a whole number",
    "int_parsing_size": "{read} has too many digits",
    "bool_type": "{read} is not a boolean: expected true or false",
    "bool_parsing": "{read} is not a boolean: expected true or false",
    "json_invalid": "is not JSON: {error}",
    "extra_forbidden": "unknown key",
    "model_type": "{read} is not a table: expected keys with values below it",
    "dict_type": "{read} is not a table: expected keys with values below it",
    "list_type": "{read} is not a list: write [[route]] above each route (in YAML, a - before it)",
    "literal_error": "{read} is not valid: expected {expected}",
    "greater_than_equal": "{read} is too small: the minimum is {ge}",
    "less_than_equal": "{read} is too large: the maximum is {le}",
    "value_error": "{error}",
}
"""The sentence for each type of pydantic error that the models can raise."""


def _sentence(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"], detail["input"])
    if detail["type"] == "dict_type" and detail["loc"] == ("forward",):
        return f"{shown(detail['input'])} is not a table: {_SHORT_FORM}"
    return sentence_of(detail)


def sentence_of(detail: ErrorDetails) -> str:
    """Return what is wrong with a value, of the kinds in `_SENTENCES`."""
    sentence = _SENTENCES.get(detail["type"], "{read} is not valid here")
    return sentence.format(read=shown(detail["input"]), **detail.get("ctx", {}))


_SHORT_FORM: Final = (
    'write each route on its own line, as in 8080 = "3:80" (TOML) or 8080: 3:80'
    " (YAML: indented, a space after the colon, and no - in front)"
)


_LISTENER: Final = re.compile(r"[0-9]|.*:")


def _unknown_key(path: KeyPath, value: Any) -> str:
    if len(path) == 1 and _LISTENER.match(str(path[0])):
        return "unknown key: write routes under forward"
    if len(path) == 1 and isinstance(value, dict) and any(map(_LISTENER.match, map(str, value))):
        return "unknown key: did you mean forward?"
    model = FileTables if len(path) == 1 else TABLES[str(path[0])]
    known = list(model.model_fields)
    return "unknown key: " + (nearest(str(path[-1]), known) or f"known keys are {', '.join(known)}")


def _remove(tree: Any, path: KeyPath) -> None:
    """Remove a key; an item of a list becomes an empty table: the others keep their index."""
    *above, last = path
    for key in above:
        tree = tree[key]
    if isinstance(last, int):
        tree[last] = {}
    else:
        tree.pop(last, None)
