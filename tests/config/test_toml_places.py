"""The lines and columns of TOML: every key and every item has one, whatever is around it."""

import json
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.daemon_process import REPOSITORY
from vsockproxy.config.document import Document, KeyPath, key_paths
from vsockproxy.config.file import parse_document, read_document

HARD: Final = r"""# "a" = [
'its' = 1
"q\"u.\u00e9" . b = '''
[not.a.table] # "
key = 1 \''''
c = @ "" \"" @""
[ t . "u" ] # ]
times = [ 1979-05-27 07:32:00.5, 1.5e-3, # ]
  [ "],", {} ], { a.b = [1], "c" = "}" },
]
[[list]]
[[list]]
k = true
[list.sub]
deep = "#"
[[list.more]]
[[list.more]]
x = ''
""".replace("@", '"""')


def toml(text: str) -> Document:
    return parse_document(text.encode(), "x.toml", ".toml")


def test_every_key_and_item_of_a_hard_text_has_its_place() -> None:
    document = toml(HARD)
    assert set(document.places) == set(key_paths(document.tree))
    lines = HARD.split("\n")
    found = {path: lines[line - 1][column - 1 :] for path, (line, column) in places_of(document)}
    starts: dict[KeyPath, str] = {
        ("its",): "'its'",
        ('q"u.é', "b"): "b =",
        ("c",): "c =",
        ("t", "u"): '"u" ]',
        ("t", "u", "times", 0): "1979",
        ("t", "u", "times", 1): "1.5e-3",
        ("t", "u", "times", 2, 1): "{}",
        ("t", "u", "times", 3, "a", "b", 0): "1]",
        ("t", "u", "times", 3, "c"): '"c"',
        ("list", 1): "list]]",
        ("list", 1, "sub", "deep"): "deep",
        ("list", 1, "more", 1, "x"): "x =",
    }
    for path, start in starts.items():
        assert found[path].startswith(start), path
    assert document.places["list", 1][0] == document.places["list", 0][0] + 1


def places_of(document: Document) -> list[tuple[KeyPath, tuple[int, int]]]:
    return list(document.places.items())


SAMPLES: Final = sorted((REPOSITORY / "config").rglob("*.toml"))


@pytest.mark.parametrize("file", SAMPLES, ids=lambda file: file.name)
def test_every_key_of_a_sample_has_a_place(file: Path) -> None:
    document = read_document(file)
    assert set(document.places) == set(key_paths(document.tree))


TEXTS: Final = st.text(st.sampled_from("a\"'\\\n#[]{}=,. é"), max_size=6)
SCALARS: Final = st.one_of(TEXTS, st.integers(), st.booleans(), st.floats(-9.5, 9.5))
VALUES: Final = st.recursive(
    SCALARS,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(TEXTS, some, max_size=3),
    max_leaves=6,
)


def written(value: object) -> str:
    """Return a value as TOML."""
    match value:
        case dict():
            pairs = (f"{quoted(key)}={written(one)}" for key, one in value.items())
            return f"{{{', '.join(pairs)}}}"
        case list():
            return "[\n" + ",\n".join(map(written, value)) + "]"
        case str() if "'" not in value and not value.startswith("\n"):
            return f"'''{value}'''"
    return quoted(value)


def quoted(value: object) -> str:
    return json.dumps(value)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_every_key_of_any_text_has_a_place(tree: dict[str, object]) -> None:
    document = toml("#\n" + "".join(f"{quoted(key)} = {written(tree[key])}\n" for key in tree))
    assert set(document.places) == set(key_paths(document.tree))
