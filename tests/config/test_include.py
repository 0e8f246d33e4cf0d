"""``include``: a configuration in several files, and the errors that name them."""

from pathlib import Path

import pytest

from vsockproxy.config.include import TABLES
from vsockproxy.config.load import load_config
from vsockproxy.config.schema import FileTables
from vsockproxy.config.settings import Config
from vsockproxy.config.source import Source
from vsockproxy.errors import ConfigError

MAIN = 'include = ["conf.d/*.toml", "conf.d/*.yaml"]\n'
ROUTE = '[[route]]\nname = "{0}"\nlisten = {1}\ntarget = "{0}:80"\n[guests]\n{0} = {{cid = {2}}}\n'


@pytest.fixture
def main(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    return write(tmp_path, "config.toml", MAIN)


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def names(config: Config) -> list[str]:
    return [route.name for route in config.routes]


def problems(main: Path) -> list[str]:
    """Return the lines of the error, with paths relative to the main file's folder."""
    with pytest.raises(ConfigError) as caught:
        load_config(main)
    return str(caught.value).replace(f"{main.parent}/", "").splitlines()


def test_included_files_are_read_in_the_order_of_patterns_and_names(main: Path) -> None:
    write(main.parent, "config.toml", MAIN + '[forward]\n8000 = "9:80"\n')
    write(main.parent, "conf.d/b.toml", ROUTE.format("b", 8002, 4))
    write(main.parent, "conf.d/a.toml", ROUTE.format("a", 8001, 3))
    write(main.parent, "conf.d/0.yaml", "forward: {8003: c:80}\nguests: {c: {cid: 5}}")
    config = load_config(main)
    assert names(config) == ["8000", "8003", "a", "b"]  # the short form comes first
    assert [guest.name for guest in config.guests] == ["a", "b", "c"]


def test_an_included_route_has_the_defaults_of_the_main_file(main: Path) -> None:
    write(main.parent, "config.toml", MAIN + "[defaults]\nbacklog = 7\n")
    write(main.parent, "conf.d/a.toml", ROUTE.format("a", 8001, 3))
    assert load_config(main).routes[0].policy.backlog == 7


def test_a_guest_of_one_file_is_a_target_in_another(main: Path) -> None:
    write(main.parent, "conf.d/a.toml", '[forward]\n8001 = "b:80"\n')
    write(main.parent, "conf.d/b.toml", "[guests]\nb = {cid = 4}\n")
    assert str(load_config(main).routes[0].target) == "vsock:4:80"


@pytest.mark.parametrize("pattern", ["conf.d/*.toml", "missing/*.toml", "*.none"])
def test_a_pattern_without_a_match_is_no_error_and_needs_no_route(main: Path, pattern: str) -> None:
    write(main.parent, "config.toml", f'include = ["{pattern}"]\n')
    assert load_config(main).routes == ()


def test_a_file_named_without_wildcards_must_exist(main: Path) -> None:
    write(main.parent, "config.toml", 'include = ["conf.d/web.toml"]\n')
    assert problems(main) == ["conf.d/web.toml: no such file"]


def test_hidden_files_and_the_main_file_are_not_included(main: Path) -> None:
    write(main.parent, "config.toml", 'include = ["conf.d/*", "*.toml"]\n[forward]\n1 = "3:1"\n')
    write(main.parent, "conf.d/.a.toml.swp", "broken")
    assert names(load_config(main)) == ["1"]


def test_a_file_that_two_patterns_match_is_read_once(main: Path) -> None:
    write(main.parent, "config.toml", 'include = ["conf.d/a*", "conf.d/*.toml"]\n')
    write(main.parent, "conf.d/a.toml", ROUTE.format("a", 8001, 3))
    assert names(load_config(main)) == ["a"]


def test_wildcards_in_a_folders_name_are_an_error(main: Path) -> None:
    write(main.parent, "config.toml", 'include = ["*/a.toml"]\n')
    (problem,) = problems(main)
    assert problem.startswith("config.toml:1:1: include: '*/a.toml' is not a pattern of files: ")


def test_a_folder_that_cannot_be_listed_is_an_error(main: Path) -> None:
    write(main.parent, "config.toml", 'include = ["config.toml/*.toml"]\n')
    (problem,) = problems(main)
    assert problem.startswith("config.toml:1:1: include: 'config.toml/*.toml': cannot list ")
    assert "Not a directory; check that it is a folder" in problem


def test_include_that_is_not_a_list_is_an_error(main: Path) -> None:
    write(main.parent, "config.toml", 'include = "conf.d/*.toml"\n[forward]\n1 = "3:1"\n')
    (problem,) = problems(main)
    assert problem.startswith("config.toml:1:1: include: 'conf.d/*.toml' is not a list of files: ")


@pytest.mark.parametrize("key", sorted(FileTables.model_fields.keys() - set(TABLES)))
def test_a_table_for_the_main_file_is_an_error_in_an_included_one(main: Path, key: str) -> None:
    write(main.parent, "conf.d/a.yaml", f"forward: {{8001: 3:1}}\n{key}: {{}}\n")
    (problem,) = problems(main)
    where = f"conf.d/a.yaml:2:1: {key}: cannot stand in an included file: move it to "
    assert problem == f"{where}config.toml"


def test_every_broken_file_is_reported_with_its_line(main: Path) -> None:
    write(main.parent, "conf.d/a.toml", "[forward]\n8001 = \n")
    write(main.parent, "conf.d/b.yaml", "forward:\n\t8001: 3:1\n")
    assert [line.partition(": ")[0] for line in problems(main)] == [
        "conf.d/a.toml:2:8",
        "conf.d/b.yaml:2:1",
    ]


def test_a_value_that_does_not_fit_is_reported_with_its_file_line_and_own_index(main: Path) -> None:
    write(main.parent, "conf.d/a.yaml", "route:\n- {listen: 8001, target: 3:1}\n")
    write(
        main.parent,
        "conf.d/b.yaml",
        "route:\n- {listen: 8002, target: 3:1}\n- listen: 8003\n  target: 3:1\n  backlog: x\n",
    )
    (problem,) = problems(main)
    assert problem.startswith("conf.d/b.yaml:5:3: route[1].backlog: ")


@pytest.mark.parametrize("table", ["route: {a: 1}", "guests: [1]", "forward: [1]"])
def test_a_table_of_the_wrong_type_is_reported_with_its_file(main: Path, table: str) -> None:
    write(main.parent, "conf.d/a.yaml", table)
    (problem,) = problems(main)
    assert problem.startswith(f"conf.d/a.yaml:1:1: {table.partition(':')[0]}: ")


def test_a_problem_of_the_text_keeps_its_place(main: Path) -> None:
    write(main.parent, "conf.d/a.yaml", "route:\n- {listen: 8001, target: 3:1, listen: 8002}\n")
    (problem,) = problems(main)
    assert problem.startswith("conf.d/a.yaml:2:31: route[0].listen: is defined twice")


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ("guests: {web: {cid: 3}}", "guests: {web: {cid: 4}}", "'web' is in conf.d/a.yaml too: "),
        ("forward: {8001: 3:1}", "forward: {8001: 4:1}", "'8001' is in conf.d/a.yaml too: "),
        (
            "route: [{name: web, listen: 8001, target: 3:1}]",
            "route: [{name: web, listen: 8002, target: 3:1}]",
            "'web' is the name of another route in conf.d/a.yaml: ",
        ),
        (
            "route: [{name: web, listen: 8001, target: 3:1}]",
            "route: [{name: db, listen: 8001, target: 3:1}]",
            "'8001' is already in use by the route 'web' in conf.d/a.yaml: ",
        ),
    ],
)
def test_a_clash_between_two_files_names_both(main: Path, one: str, other: str, says: str) -> None:
    write(main.parent, "conf.d/a.yaml", one)
    write(main.parent, "conf.d/b.yaml", other)
    (problem,) = problems(main)
    assert problem.startswith("conf.d/b.yaml:1:")
    assert says in problem


def test_a_clash_with_the_main_file_names_both(main: Path) -> None:
    write(main.parent, "config.toml", MAIN + "[guests]\nweb = {cid = 3}\n")
    write(main.parent, "conf.d/a.yaml", "guests: {web: {cid: 4}}")
    (problem,) = problems(main)
    assert problem.startswith("conf.d/a.yaml:1:10: guests.web: 'web' is in config.toml too: ")


def test_problems_are_in_the_order_of_the_files(main: Path) -> None:
    write(main.parent, "config.toml", MAIN + '[forward]\nx = "3:1"\n')
    write(main.parent, "conf.d/a.yaml", "forward: {y: 3:1}")
    write(main.parent, "conf.d/b.yaml", "forward: {z: 3:1}")
    assert [line.split(":")[0] for line in problems(main)] == [
        "config.toml",
        "conf.d/a.yaml",
        "conf.d/b.yaml",
    ]


def test_the_fingerprint_changes_with_an_included_file(main: Path) -> None:
    before = load_config(main).fingerprint
    write(main.parent, "conf.d/a.toml", ROUTE.format("a", 8001, 3))
    assert load_config(main).fingerprint != before


def test_commands_find_the_guests_of_included_files(main: Path) -> None:
    write(main.parent, "conf.d/a.toml", ROUTE.format("a", 8001, 3))
    assert Source(main, {}).table("guests") == {"a": {"cid": 3}}


def test_a_link_without_its_file_is_an_error(main: Path) -> None:
    (main.parent / "conf.d/a.toml").symlink_to("gone.toml")
    assert problems(main) == ["conf.d/a.toml: no such file"]
