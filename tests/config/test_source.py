"""The order in which a command looks for its configuration."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon_process import environment
from vsockproxy.config.source import NoSourceError, Source, find_source
from vsockproxy.errors import ConfigError

SETTINGS = {"VSOCKPROXY_FORWARD": "8080=3:80"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text('forward.80 = "3:80"')
    return file


def test_the_named_file_comes_before_the_usual_places(place: Path, tmp_path: Path) -> None:
    named = tmp_path / "named.toml"
    assert find_source(named, {}, [place]) == Source(named, {})


def test_without_a_named_file_the_first_existing_place_is_the_source(place: Path) -> None:
    source = find_source(None, {}, [place.with_name("missing.toml"), place])
    assert source.file == place
    assert [route.name for route in source.load().routes] == ["80"]


def test_without_a_file_the_environment_is_the_source() -> None:
    source = find_source(None, SETTINGS, [])
    assert source.file is None
    assert [route.name for route in source.load().routes] == ["8080"]


@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_together_with_settings_in_the_environment_is_an_error(
    place: Path, is_named: bool
) -> None:
    file, places = (place, []) if is_named else (None, [place])
    with pytest.raises(ConfigError, match=r"settings too \(VSOCKPROXY_FORWARD\)"):
        find_source(file, SETTINGS, places)


def test_without_any_configuration_the_error_names_the_unknown_variables() -> None:
    with pytest.raises(NoSourceError) as caught:
        find_source(None, {"VSOCKPROXY_FORWARDS": "8080=3:80"}, [])
    unknown, none, remedy = str(caught.value).split("\n")
    assert "did you mean VSOCKPROXY_FORWARD?" in unknown
    assert none.startswith("there is no configuration: ")
    assert "vsockproxy demo" in remedy


def test_a_table_is_the_same_unchecked_from_a_file_and_from_the_environment(
    place: Path,
) -> None:
    place.write_text('forward = 3\n[metrics]\nlisten = ["unix:/m"]\nno_key = 1\n')
    assert Source(place, {}).table("metrics") == {"listen": ["unix:/m"], "no_key": 1}
    assert Source(place, {}).table("forward") == Source(place, {}).table("admin") == {}
    environ = {"VSOCKPROXY_METRICS_LISTEN": " unix:/m ", "VSOCKPROXY_GUESTS_MY_VM_CID": "3"}
    assert Source(None, environ).table("metrics") == {"listen": ["unix:/m"]}
    assert Source(None, environ).table("guests") == {"my_vm": {"cid": 3}}


def test_only_settings_in_the_environment_load_pydantic() -> None:
    code = (
        "import os, sys; from pathlib import Path; from vsockproxy.config.source import *;"
        "find_source(Path('x'), os.environ); print('pydantic' in sys.modules)"
    )
    done = subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True)
    assert done == "False\n"


def test_the_file_of_a_source_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in other folders compare it with the daemon's."""
    monkeypatch.chdir(tmp_path)
    assert find_source(Path("x.toml"), {}).file == tmp_path / "x.toml"
