"""Files as trees: values, their lines and columns, and files that cannot be read."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsockproxy.config.document import Document, KeyPath, KeyProblem, write_path
from vsockproxy.config.file import MAX_BYTES, parse_document, read_document
from vsockproxy.errors import ConfigError


def yaml(text: str) -> Document:
    return parse_document(text.encode(), "x.yaml", ".yaml")


def toml(text: str) -> Document:
    return parse_document(text.encode(), "x.toml", ".toml")


def report(document: Document) -> str:
    return str(document.error(document.problems))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("8080: 3:22", {"8080": "3:22"}),
        ("8080: 3:22:59", {"8080": "3:22:59"}),
        ("0x1F: 1", {"0x1F": 1}),
        ("on: off", {"on": "off"}),
        ("yes: no", {"yes": "no"}),
        ("y: n", {"y": "n"}),
        ("a: true", {"a": True}),
        ("a: 010", {"a": 10}),
        ("a: 0o10", {"a": 8}),
        ("a: 1.5", {"a": 1.5}),
        ("a: 1e3", {"a": 1000.0}),
        ("a: '5'", {"a": "5"}),
        ("a: 2001-12-14", {"a": "2001-12-14"}),
        ("a: =", {"a": "="}),
        ("<<: {a: b}", {"<<": {"a": "b"}}),
        ("a: !!str 5", {"a": "5"}),
        ("a: [1, {b: c}]", {"a": [1, {"b": "c"}]}),
        ("%YAML 1.2\n---\na: 1", {"a": 1}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("# nothing\n", {}),
    ],
)
def test_yaml_is_read_as_1_2(text: str, tree: dict[str, Any]) -> None:
    document = yaml(text)
    assert document.problems == ()
    assert repr(document.tree) == repr(tree)  # 1 == 1.0 == True would not tell


def test_toml_is_read_as_a_plain_tree() -> None:
    document = toml('\ufeffa = 1\r\n[b]\nc = [true, 1.5, "x"]\nd = 1979-05-27\n')
    assert document.tree == {"a": 1, "b": {"c": [True, 1.5, "x"], "d": "1979-05-27"}}


def test_yaml_keys_have_lines_and_columns_from_one() -> None:
    places = yaml("a: 1\nb:\n  c:\n    - d: 2\n    -   3\n").places
    assert places == {
        ("a",): (1, 1),
        ("b",): (2, 1),
        ("b", "c"): (3, 3),
        ("b", "c", 0): (4, 7),
        ("b", "c", 0, "d"): (4, 7),
        ("b", "c", 1): (5, 9),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3:1: a: is defined twice: first on line 1"),
        ('8080: a\n"8080": b', 'x.yaml:2:1: "8080": is defined twice: first on line 1'),
        ("a:\n", "x.yaml:1:1: a: has no value: add one or remove the key"),
        ("a: ~\n", "x.yaml:1:1: a: has no value: add one or remove the key"),
        (
            "a: &x 1\n",
            "x.yaml:1:1: a: anchors (&) and aliases (*) are not supported: write the value out",
        ),
        ("a: !foo 1\n", "x.yaml:1:1: a: the tag '!foo' is not supported: remove it"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "x.yaml:1:1: a: the tag 'python/object/apply:os.system' is not supported: remove it",
        ),
        ("a: !!map x\n", "x.yaml:1:1: a: the tag 'map' is not supported: remove it"),
        ("a: !!int x\n", "x.yaml:1:1: a: is not a number"),
        (f"a: {'9' * 5000}\n", "x.yaml:1:1: a: is not a number"),
        ("? [a]\n: 1\n", "x.yaml:1:3: a table or a list cannot be a key"),
        (
            "- a\n",
            "x.yaml:1:1: is not a table: write `forward:`, and below it, indented, `8080: 3:80`",
        ),
        (
            "a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}",
            "x.yaml:1:33: a.b.c.d.e.f.g.h.i: is nested more than 8 levels deep: no key is",
        ),
    ],
)
def test_unsupported_yaml_is_a_problem_with_its_place(text: str, problem: str) -> None:
    assert report(yaml(text)) == problem


def test_an_anchor_that_is_used_twice_is_two_problems_and_no_warning() -> None:
    places = [line.split(" ")[0] for line in report(yaml("a: &x 1\nb: &x 2\n")).split("\n")]
    assert places == ["x.yaml:1:1:", "x.yaml:2:1:"]


def test_problems_are_reported_in_the_order_of_the_file() -> None:
    lines = report(yaml("a: 1\nb:\na: 2\nc: !x y\n")).split("\n")
    assert [line.split(" ")[0] for line in lines] == ["x.yaml:2:1:", "x.yaml:3:1:", "x.yaml:4:1:"]


def test_a_yaml_bomb_is_an_error_before_it_expands() -> None:
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    assert "anchors" in report(yaml(f"a0: &a0 [x]\n{levels}"))
    assert "anchors" in report(yaml("&a [*a]"))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a:\n\tb: 1", "x.yaml:2:1: the line is indented with a tab: indent with spaces"),
        ("a: 1\n---\nb: 1", "x.yaml:2:1: a second document (---) begins here: only one is allowed"),
        ("ab: 1\nc: \x01", "x.yaml:2:4: control character 0x01: remove it"),
        (
            "a: 1\n b: 2",
            "x.yaml:2:3: not valid YAML: check the indentation, and quote a text that contains ["
            " or :",
        ),
        ("a: *x", "x.yaml:1:4: * begins an alias, which is not allowed here: quote the text"),
        (
            "[::]:80: 3:80",
            "x.yaml:1:5: not valid YAML: check the indentation, and quote a text that contains ["
            " or :",
        ),
        (
            "# v\n%YAML 1.1\n---\na: on",
            "x.yaml:2:1: remove the % line: the file is read as YAML 1.2",
        ),
        ("[" * 5000, "x.yaml: is nested more than 8 levels deep: no key is"),
    ],
)
def test_invalid_yaml_is_an_error_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        yaml(text)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[forward]\n127.0.0.1:80 = '3:80'",
            "x.toml:2:10: the key is not followed by =: put an address in quotes, as in"
            ' "127.0.0.1:8080" = "3:80"',
        ),
        (
            "8080 = 3:80",
            "x.toml:1:9: there is text after the value: put an address in quotes, as in 8080 ="
            ' "3:80"',
        ),
        (
            "8080 = web:80",
            'x.toml:1:8: not a valid value: put a text in quotes, as in "web:80"',
        ),
        ("[a]\n[a]", "x.toml:2:3: the table [a] is defined twice"),
        ("a = 1\na = 2", "x.toml:2:5: the key a, or a part of it, is defined twice"),
        (
            "'1:80' = 1\n '1:80'  = '='",
            "x.toml:2:14: the key '1:80', or a part of it, is defined twice",
        ),
        ("a = 1\na = [\n]", "x.toml:3:1: this key, or a part of it, is defined twice"),
        ("a = {b = 1}\na.c = 2", "x.toml:2:7: the key a is defined twice"),
        ("a = 'x", "x.toml:1:6: the text has no closing quote"),
        ('a = "x\ny = 1', "x.toml:1:7: the text has no closing quote"),
        ("a = [1 2]", "x.toml:1:8: the array is not closed: a comma or its ] is missing"),
        (
            "x = 1\na = [1,\n  2,\n\n",
            "x.toml:2:5: the array is not closed: a comma or its ] is missing",
        ),
        (f"a = {'9' * 5000}", "x.toml: a number has too many digits"),
        ("a = " + "[" * 5000, "x.toml: is nested more than 8 levels deep: no key is"),
        ("#\na" + ".a" * 100000 + "= 1", "x.toml:2:1: the line has more than 1000 dots"),
        (
            "a.b.c.d.e.f.g.h.i = 1",
            "x.toml:1:15: a.b.c.d.e.f.g.h: is nested more than 8 levels deep: no key is",
        ),
    ],
)
def test_invalid_toml_is_an_error_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toml(text)
    assert str(caught.value) == problem


@given(st.binary(max_size=200), st.sampled_from([".toml", ".yaml"]))
def test_random_bytes_are_read_or_a_config_error(data: bytes, suffix: str) -> None:
    try:
        parse_document(data, "x" + suffix, suffix)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - raising is allowed, not demanded


PIECES = st.one_of(
    st.sampled_from("a8:-[]{}='\"?|>#%~_. \n\t\x85"),
    st.sampled_from(
        ["8080: 3:22\n", "\n  ", ": ", "- ", "---\n", "...", "<<", "true", "&a ", "*a"]
    ),
    st.sampled_from(
        ["!x ", "!!int ", "!!binary ", "!!set ", "!!timestamp ", "!!float ", "!!bool "]
    ),
    st.sampled_from(["1e9", ".inf", "0b", "0o9", '"\\ud800"', '"\\U00110000"']),
)


@given(st.lists(PIECES, max_size=25).map("".join), st.sampled_from([".toml", ".yaml"]))
def test_no_text_is_a_crash(text: str, suffix: str) -> None:
    try:
        document = parse_document(text.encode(), "x" + suffix, suffix)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - raising is allowed, not demanded
    else:
        report(document).encode()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("route", 2, "listen"), "route[2].listen"),
        (("forward", "8080"), 'forward."8080"'),
        (("forward", "a b"), 'forward."a b"'),
        (("forward", 'a"\n'), 'forward."a\\"\\n"'),
        (("forward", "bücher"), 'forward."bücher"'),
        (("forward", "\ud800"), 'forward."\\ud800"'),
        (("guests", "x-y_1"), "guests.x-y_1"),
    ],
)
def test_a_key_path_prints_as_an_operator_writes_it(path: KeyPath, text: str) -> None:
    assert write_path(path) == text


def test_problems_follow_the_order_of_a_toml_file() -> None:
    document = toml("[b]\nx = 1\ny = 2\n[a]\nz = 3\n")
    paths: list[KeyPath] = [("a", "z"), ("b", "y"), (), ("b", "x"), ("b", "missing")]
    error = document.error([KeyProblem(path, "m") for path in paths])
    assert [p.path for p in error.problems] == ["", "b.missing", "b.x", "b.y", "a.z"]
    assert [p.line for p in error.problems] == [None, 1, 2, 3, 5]


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_file_is_read_by_its_suffix(tmp_path: Path) -> None:
    for name, text in {
        "a.toml": "8080 = '3:80'",
        "a.yaml": "8080: 3:80",
        "a.yml": "8080: 3:80",
    }.items():
        (tmp_path / name).write_text(text)
        assert read_document(tmp_path / name).tree == {"8080": "3:80"}


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.toml") == "no such file"
    (tmp_path / "b").write_text("")
    assert "a part of the path is not a folder" in refused(tmp_path / "b" / "a.toml")


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    assert refused(tmp_path) == "is a directory: name a file"


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("a.toml", "# routes\nforward:\n  8080: 3:80\n", "looks like YAML"),
        ("a.yaml", '[forward]\n8080 = "3:80"\n', "looks like TOML"),
        ("a.toml", "[forward]\n127.0.0.1:80 = '3:80'", "the key is not followed by ="),
        ("a.yaml", "forward:\n  8080: [3:80", "not valid YAML"),
    ],
)
def test_a_file_in_another_format_than_its_suffix_says_is_told_to_be_that(
    tmp_path: Path, name: str, text: str, hint: str
) -> None:
    (tmp_path / name).write_text(text)
    assert hint in refused(tmp_path / name)


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    assert refused(tmp_path / "a.toml") == "is not a regular file"


@pytest.fixture
def an_ordinary_user() -> Iterator[None]:
    """Run as the user ``nobody`` if root runs the tests: root can read every file."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_an_unreadable_file_is_an_error(tmp_path: Path, an_ordinary_user: None) -> None:
    path = tmp_path / "a.toml"
    if os.access(tmp_path, os.W_OK, effective_ids=True):
        path.touch(mode=0)
    assert refused(path).startswith("permission denied")


def test_an_impossible_file_name_is_an_error(tmp_path: Path) -> None:
    assert "is not a file name" in refused(Path("a\0.toml"))
    assert "too long" in refused(tmp_path / ("x" * 300 + ".toml"))
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    assert "symbolic links" in refused(tmp_path / "loop.toml")


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert refused(tmp_path / "a.json") == ("has the suffix '.json': expected .toml, .yaml or .yml")
    (tmp_path / "a").write_text("{}")
    assert refused(tmp_path / "a") == "has no suffix: expected .toml, .yaml or .yml"


def test_an_empty_file_says_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "a.toml").touch()
    assert refused(tmp_path / "a.toml").startswith("is empty: write at least one route")


def test_bytes_that_are_not_utf_8_have_a_place() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(b"a = 1\nb = '\xff'\n", "x.toml", ".toml")
    assert str(caught.value) == "x.toml:2:6: byte 0xff is not UTF-8: save the file as UTF-8"


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse; far more than fits in memory
    assert refused(path) == "is larger than 1 MiB: is this the right file?"


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("a = 1\n#" + "x" * (MAX_BYTES - 7))
    assert read_document(path).tree == {"a": 1}
    path.write_text("a = 1\n#" + "x" * (MAX_BYTES - 6))
    assert re.match("is larger", refused(path))
