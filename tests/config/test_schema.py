"""The keys of a file, the page that explains them, and the files in config/: all agree."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.config.texts import toml
from vsockproxy.config.load import load_config
from vsockproxy.config.schema import TABLES, FileTables, PolicyKeys, RouteTable
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = ROOT / "config" / "minimal.toml"
EXAMPLES = sorted(set((ROOT / "config").glob("*.*ml")) - {MINIMAL})
FULL = ROOT / "config" / "vsockproxy.toml"
PAGE = ROOT / "docs" / "configuration.md"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_file_in_config_is_a_configuration(path: Path) -> None:
    assert load_config(path).routes


def test_the_minimal_file_has_no_route_until_a_comment_is_removed() -> None:
    with pytest.raises(ConfigError, match="has no route") as caught:
        load_config(MINIMAL)
    assert "\n" not in str(caught.value)
    without_comment = re.sub(r"(?m)^# (?=\d)", "", MINIMAL.read_text())
    assert [route.name for route in toml(without_comment).routes] == ["8080"]


def test_the_commented_settings_of_the_sample_are_valid(tmp_path: Path) -> None:
    text = re.sub(r"(?m)^#(?=\S)", "", FULL.read_text())
    users = tmp_path / "users"
    users.write_text(f"ann:$2y$05${'a' * 53}\n")
    text = text.replace("/etc/vsockproxy/users", str(users))
    assert len(toml(text).routes) > len(load_config(FULL).routes)


@pytest.mark.parametrize(
    ("page", "kinds"), [("by-name.md", {"sni", "mux"}), ("egress.md", {"proxy", None})]
)
def test_the_examples_of_a_page_are_one_configuration(page: str, kinds: set[str | None]) -> None:
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"(?ms)^```toml\n(.*?)^```$", text)
    assert {route.by for route in toml("\n".join(blocks)).routes} == kinds


def keys_of(model: type[BaseModel]) -> set[str]:
    own = set(model.model_fields)
    return own - set(PolicyKeys.model_fields) if model is RouteTable else own


def sections_of(text: str, heading: str) -> Iterator[tuple[str, str]]:
    """Return the text of each part of a file by its name, which is the group of ``pattern``."""
    parts = re.split(f"(?m)^{heading}.*$", text)
    return zip(parts[1::2], parts[2::2], strict=True)


def test_the_page_has_every_key_and_no_other() -> None:
    sections = dict(sections_of(PAGE.read_text(), r"## `\[+([a-z]+)\]+`"))
    assert {*sections, "include"} == set(FileTables.model_fields)
    assert "\n## `include`\n" in PAGE.read_text()
    for table, model in TABLES.items():
        text = sections[table].split("\n## ")[0]
        assert set(re.findall(r"(?m)^\| `(\w+)` \|", text)) == keys_of(model), table


def test_the_sample_has_every_key_and_no_other() -> None:
    found: dict[str, set[str]] = {}
    for name, text in sections_of(FULL.read_text(), r"\[+([a-z]+)(?:\.\w+)?\]+"):
        found.setdefault(name, set()).update(re.findall(r"(?m)^#?(\w+) = ", text))
    assert {*found, "include"} == set(FileTables.model_fields)
    assert "\n#include = [" in FULL.read_text().split("\n[")[0]
    for table, model in TABLES.items():
        extra = set(PolicyKeys.model_fields) if model is RouteTable else set()
        assert keys_of(model) <= found[table] <= keys_of(model) | extra, table


def test_the_page_has_the_defaults_of_the_policy() -> None:
    text = PAGE.read_text().split("\n## `[defaults]`")[1].split("\n## `[")[0]
    rows = re.findall(r"(?m)^\| `(\w+)` \| [^|]* \| `([^`|]+)` \|", text)
    told = {key: text for key, text in rows if key in PolicyKeys.model_fields}
    assert toml("forward.80 = '3:80'\n[defaults]\n" + "\n".join(map(" = ".join, told.items()))) == (
        toml("forward.80 = '3:80'")
    )
    assert set(told) == set(PolicyKeys.model_fields)


def test_the_sample_has_the_defaults_of_the_policy() -> None:
    shown = load_config(FULL).routes[0].policy
    assert shown == Policy()


def test_every_field_of_a_policy_has_a_key() -> None:
    assert {field.name for field in fields(Policy)} == set(PolicyKeys.model_fields)
    assert PolicyKeys().policy(PolicyKeys()) == Policy()
