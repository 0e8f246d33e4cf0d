"""Configuration by environment variables: equal to a file's, and errors that name the variable."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.config.texts import toml
from tests.daemon_process import PATIENCE, REPOSITORY, command, daemon
from tests.fake_services import mux_server, says
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint, VsockEndpoint
from vsockproxy.config.environment import (
    environment_config,
    known_settings,
    variables,
)
from vsockproxy.config.schema import TABLES, FileTables
from vsockproxy.config.settings import Config
from vsockproxy.config.source import settings
from vsockproxy.errors import ConfigError

PAGE: Final = REPOSITORY / "docs" / "containers.md"


def config(**texts: str) -> Config:
    """Return the configuration of ``VSOCKPROXY_`` variables, named without their prefix."""
    return environment_config({f"VSOCKPROXY_{name}": text for name, text in texts.items()})


def errors(**texts: str) -> list[str]:
    """Return the lines of the error for wrong variables, without prefixes."""
    with pytest.raises(ConfigError) as caught:
        config(**texts)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("environment: VSOCKPROXY_") for line in lines), lines
    return [line.removeprefix("environment: VSOCKPROXY_") for line in lines]


def same(file: str, **texts: str) -> bool:
    """Return whether a TOML file and variables give the same configuration."""
    return replace(toml(file), source="environment") == config(**texts)


# --- what they mean -----------------------------------------------------------------------


def test_one_variable_has_all_short_routes() -> None:
    made = config(FORWARD="8080=3:80, 0.0.0.0:8443=web:443", GUESTS_WEB_MUX="/run/vm.sock")
    assert [(route.listen, route.target) for route in made.routes] == [
        (TcpEndpoint(None, 8080), VsockEndpoint(3, 80)),
        (TcpEndpoint("0.0.0.0", 8443), MuxEndpoint("/run/vm.sock", 443)),
    ]


def test_a_handshake_option_belongs_to_the_address_before_the_comma() -> None:
    [first, _] = config(FORWARD="8080=vsock-mux:/v:80,handshake=none,8081=3:81").routes
    assert first.target == MuxEndpoint("/v", 80, "none")


def test_routes_can_be_separated_by_newlines() -> None:
    assert config(FORWARD="\n8080=3:80\n8081=3:81,\n").routes == (
        config(FORWARD="8080=3:80,8081=3:81").routes
    )


def test_a_to_host_option_belongs_to_the_address_before_the_comma() -> None:
    first, second = config(FORWARD="8080=vsock:5:80,to_host,8081=3:81").routes
    assert first.target == VsockEndpoint(5, 80, to_host=True)
    assert second.target == VsockEndpoint(3, 81)


def test_metrics_at_several_addresses_are_read_as_in_a_file() -> None:
    file = 'forward.8080 = "3:80"\nmetrics.listen = ["0.0.0.0:9490", "[::]:9490"]'
    assert same(file, FORWARD="8080=3:80", METRICS_LISTEN="0.0.0.0:9490, [::]:9490")


def test_every_kind_of_value_is_read_as_in_a_file() -> None:
    file = """
        forward.8080 = "web:80"
        guests.web = { cid = 3, to_host = true }
        defaults = { connect_timeout = 1.5, idle_timeout = "1h", backlog = 7, access_log = false }
        metrics.listen = 9490
        log = { level = "debug", format = "json" }
        pump = { choice = "portable", threads = 2 }
    """
    assert same(
        file,
        FORWARD="8080=web:80",
        GUESTS_WEB_CID="3",
        GUESTS_WEB_TO_HOST="true",
        DEFAULTS_CONNECT_TIMEOUT="1.5",
        DEFAULTS_IDLE_TIMEOUT="1h",
        DEFAULTS_BACKLOG="7",
        DEFAULTS_ACCESS_LOG="false",
        METRICS_LISTEN="9490",
        LOG_LEVEL="debug",
        LOG_FORMAT="json",
        PUMP_CHOICE="portable",
        PUMP_THREADS="2",
    )


def test_the_variables_of_a_long_route_contain_its_name() -> None:
    file = """
        [[route]]
        name = "my_db"
        listen = "5432"
        target = "3:5432"
        half_close_timeout = "1m"
        [[route]]
        name = "The Web"
        listen = "80"
        target = "3:80"
    """
    assert same(
        file,
        ROUTE_MY_DB_LISTEN="5432",
        ROUTE_MY_DB_TARGET="3:5432",
        ROUTE_MY_DB_HALF_CLOSE_TIMEOUT="1m",
        ROUTE_WEB_LISTEN="80",
        ROUTE_WEB_TARGET="3:80",
        ROUTE_WEB_NAME="The Web",
    )


def test_a_list_is_separated_by_commas_and_a_mode_stays_a_text() -> None:
    file = """
        forward."unix:/a" = "3:80"
        [[route]]
        name = "web"
        listen = "80"
        target = "3:80"
        allow = ["10.0.0.0/8", "192.0.2.1"]
        [[route]]
        name = "x"
        listen = "81"
        target = "3:81"
        allow = "off"
        [defaults]
        mode = "0660"
        buffer_size = "256KiB"
    """
    assert same(
        file,
        FORWARD="unix:/a=3:80",
        ROUTE_WEB_LISTEN="80",
        ROUTE_WEB_TARGET="3:80",
        ROUTE_WEB_ALLOW="10.0.0.0/8, 192.0.2.1",
        ROUTE_X_LISTEN="81",
        ROUTE_X_TARGET="3:81",
        ROUTE_X_ALLOW="off",
        DEFAULTS_MODE="0660",
        DEFAULTS_BUFFER_SIZE="256KiB",
    )


def test_an_empty_variable_counts_as_unset() -> None:
    assert config(FORWARD="8080=3:80", METRICS_LISTEN="", LOG_LEVEL=" ") == (
        config(FORWARD="8080=3:80")
    )


def test_the_source_of_the_configuration_is_the_environment() -> None:
    assert config(FORWARD="8080=3:80").source == "environment"


def test_service_variables_of_kubernetes_are_not_settings() -> None:
    about_services = {
        "VSOCKPROXY_SERVICE_HOST": "10.0.0.1",
        "VSOCKPROXY_SERVICE_PORT": "80",
        "VSOCKPROXY_SERVICE_PORT_HTTP": "80",
        "VSOCKPROXY_PORT": "tcp://10.0.0.1:80",
        "VSOCKPROXY_PORT_80_TCP": "tcp://10.0.0.1:80",
        "VSOCKPROXY_PORT_80_TCP_PROTO": "tcp",
        "VSOCKPROXY_METRICS_SERVICE_HOST": "10.0.0.2",
        "VSOCKPROXY_METRICS_PORT_9490_TCP_ADDR": "10.0.0.2",
    }
    assert settings({**about_services, "VSOCKPROXY_CONFIG": "x", "PATH": "y"}) == {}
    assert list(settings({"VSOCKPROXY_PORT": "8080"})) == ["VSOCKPROXY_PORT"]


def test_a_variable_is_a_setting_only_if_a_key_has_its_name() -> None:
    environ = {"VSOCKPROXY_LOG_LEVEL": "info", "VSOCKPROXY_LOGLEVEL": "info"}
    assert list(settings(environ)) == sorted(environ)
    assert known_settings(environ) == ["VSOCKPROXY_LOG_LEVEL"]


# --- what is wrong ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("FOWARD", "FORWARD"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("DEFAULT_CONNECT_TIMEOUT", "DEFAULTS_CONNECT_TIMEOUT"),
        ("GUESTS_WEB_MXU", "GUESTS_WEB_MUX"),
        ("GUEST_MY_WEB_MUX", "GUESTS_MY_WEB_MUX"),
        ("ROUTE_MY_DB_TARGTE", "ROUTE_MY_DB_TARGET"),
        ("GUESTS_web_MUX", "GUESTS_WEB_MUX"),
    ],
)
def test_an_unknown_variable_is_an_error_with_the_nearest_one(written: str, meant: str) -> None:
    line = errors(**{written: "x", "METRICS_LISTEN": "9490"})[0]
    if written.upper() == meant:
        assert line.startswith(f"{written}: unknown variable: ")
    else:
        assert line == f"{written}: unknown variable: did you mean VSOCKPROXY_{meant}?"


def test_an_unknown_variable_without_a_near_one_explains_the_names() -> None:
    line, _ = errors(HOST="x")
    assert line.startswith("HOST: unknown variable: the name is a key's path in capitals")


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        ({"FORWARD": "8080"}, "FORWARD: '8080' has no target: write LISTEN=TARGET"),
        ({"FORWARD": "8080=3:80,8080=4:80"}, "FORWARD: '8080' is defined twice"),
        ({"FORWARD": "8080=x"}, "FORWARD: 'x' is not a target"),
        ({"FORWARD": "8080=web:80"}, "FORWARD: 'web:80': no guest 'web'"),
        ({"METRICS_LISTEN": "9490"}, "FORWARD: has no route: write one"),
        ({"FORWARD": ","}, "FORWARD: has no route: write one"),
        ({"METRICS_LISTEN": "vsock::9"}, "METRICS_LISTEN: 'vsock::9' cannot serve metrics"),
        ({"METRICS_LISTEN": "80", "FORWARD": "80=3:80"}, "FORWARD: '80' is already in use"),
        (
            {"DEFAULTS_CONNECT_TIMEOUT": "soon"},
            "DEFAULTS_CONNECT_TIMEOUT: 'soon' is not a duration",
        ),
        ({"DEFAULTS_ACCESS_LOG": "no"}, "DEFAULTS_ACCESS_LOG: 'no' is not a boolean"),
        ({"PUMP_THREADS": "many"}, "PUMP_THREADS: 'many' is not a whole number"),
        ({"PUMP_THREADS": "65"}, "PUMP_THREADS: 65 is out of range"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: 'loud' is not valid"),
        ({"GUESTS_WEB_CID": "-1"}, "GUESTS_WEB_CID: -1 is too small"),
        ({"GUESTS_WEB_CID": "3", "GUESTS_WEB_MUX": "/a"}, "GUESTS_WEB_*: has cid and mux"),
        ({"GUESTS_WEB_TO_HOST": "true"}, "GUESTS_WEB_*: has no address"),
        ({"GUESTS_3_CID": "3"}, "GUESTS_3_*: '3' is not a guest's name"),
        ({"ROUTE_DB_LISTEN": "80"}, "ROUTE_DB_TARGET: is missing"),
        ({"ROUTE_DB_BACKLOG": "0"}, "ROUTE_DB_BACKLOG: 0 is out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_error_names_the_variable(texts: dict[str, str], line: str) -> None:
    assert [told for told in errors(**texts) if told.startswith(line)]


def test_all_errors_are_reported_at_once() -> None:
    assert len(errors(FORWARD="8080=x,81", LOG_LEVEL="loud", LOGLEVEL="info")) == 4


NAMES: Final = st.sampled_from(
    [name.replace("<NAME>", own) for name in variables() for own in ("A", "B_C", "9", "to")]
    + ["VSOCKPROXY_", "VSOCKPROXY__", "VSOCKPROXY_ROUTE_", "VSOCKPROXY_ROUTE_A", "VSOCKPROXY_X"]
)
TEXTS: Final = st.sampled_from(
    ["80=3:80", "80", "3:80", "=", ",=,", "true", "0660", "1.5", "-1", "9" * 5000, "\udcff", "/a"]
) | st.text(st.characters(exclude_characters="\0"), max_size=5)


@given(st.dictionaries(NAMES, TEXTS, max_size=6))
def test_every_environment_is_read_or_an_error_that_names_a_variable(
    environ: dict[str, str],
) -> None:
    try:
        environment_config(environ)
    except ConfigError as error:
        for problem in error.problems:
            assert problem.path.startswith(("VSOCKPROXY_", '"VSOCKPROXY_')), problem


# --- the page -----------------------------------------------------------------------------


def test_every_key_of_a_file_has_its_variable() -> None:
    names = set(variables())
    for table, model in TABLES.items():
        own = "<NAME>_" if table in ("guests", "route") else ""
        for key in model.model_fields:
            assert f"VSOCKPROXY_{table.upper()}_{own}{key.upper()}" in names
    assert len(names) == sum(len(model.model_fields) for model in TABLES.values()) + 1
    of_files_only = {"include"}
    assert set(FileTables.model_fields) == {*TABLES, "forward", *of_files_only}


def test_the_page_lists_every_variable_and_no_other() -> None:
    told = re.findall(r"VSOCKPROXY_[A-Z_]+(?:<NAME>[A-Z_]+)?", listing(PAGE.read_text()))
    assert sorted(told) == sorted(variables())


def listing(text: str) -> str:
    """Return the page's list of variables."""
    return text.split("\n## Every variable\n")[1].split("\n## ", maxsplit=1)[0]


# --- the program --------------------------------------------------------------------------


async def test_run_reads_the_environment_without_a_file(tmp_path: Path) -> None:
    environ = {
        "VSOCKPROXY_FORWARD": f"unix:{tmp_path}/front=web:80",
        "VSOCKPROXY_GUESTS_WEB_MUX": f"{tmp_path}/guest",
        "VSOCKPROXY_LOG_FORMAT": "logfmt",
    }
    guest = mux_server(tmp_path / "guest", {80: says(b"hello")})
    async with guest, daemon("run", environ=environ) as running:
        assert (await running.wait_for("ready"))["config"] == "environment"
        with trio.fail_after(PATIENCE):
            async with await trio.open_unix_socket(tmp_path / "front") as client:
                assert await client.receive_some() == b"hello"
        await running.wait_for("connection_closed")
        assert await running.stop() == 0


def test_wrong_variables_are_status_2_and_named() -> None:
    done = command("run", environ={"VSOCKPROXY_FORWARD": "80=x", "VSOCKPROXY_LOGLEVEL": "info"})
    assert done.returncode == 2
    assert "vsockproxy: environment: VSOCKPROXY_FORWARD: 'x' is not a target" in done.stderr
    assert "did you mean VSOCKPROXY_LOG_LEVEL?" in done.stderr


def test_a_misspelled_variable_alone_is_reported_with_the_nearest_one() -> None:
    done = command("run", environ={"VSOCKPROXY_FOWARD": "8080=3:80"})
    assert done.returncode == 2
    assert "VSOCKPROXY_FOWARD: unknown variable: did you mean VSOCKPROXY_FORWARD?" in done.stderr
    assert "there is no configuration" in done.stderr


@pytest.mark.parametrize("named", ["option", "variable"])
def test_a_file_and_the_environment_at_once_are_status_2(tmp_path: Path, named: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text('forward.8080 = "3:80"')
    environ = {"VSOCKPROXY_FORWARD": "80=3:80", "VSOCKPROXY_METRICS_LISTEN": "9100"}
    environ |= {"VSOCKPROXY_CONFIG": str(file)} if named == "variable" else {}
    done = command("run", *(("-c", file) if named == "option" else ()), environ=environ)
    assert done.returncode == 2
    assert (
        f"{file}: the environment has settings too (VSOCKPROXY_FORWARD, VSOCKPROXY_METRICS_LISTEN)"
        in (done.stderr)
    )
