"""The command line: help, errors, `check`, and the choice of the configuration file."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn

import click
import pytest
import trustme
from click.testing import CliRunner

from tests.cli.conftest import Write
from tests.daemon_process import REPOSITORY, command, daemon, environment
from tests.fake_services import as_ordinary_user, open_folder
from vsockproxy import __version__
from vsockproxy.cli import app
from vsockproxy.cli.program import COMMANDS as TABLE
from vsockproxy.config.source import default_file
from vsockproxy.revision import REVISION

COMMANDS: Final = (
    *("run", "forward", "demo", "connect", "ssh-config", "check", "health", "version"),
    *("doctor", "probe", "cid", "guests"),
    *("status", "connections", "kill", "pause", "drain", "resume", "reload", "log-level"),
    "help",
)

CLI: Final = REPOSITORY / "vsockproxy" / "cli"


# --- words --------------------------------------------------------------------------------


def test_help_shows_examples_and_every_command() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "vsockproxy forward 8080 3:80 " in done.stdout
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "..." not in done.stdout.split("Commands:")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


def test_help_does_not_import_slow_modules() -> None:
    modules = imported("--help")
    assert "click" in modules
    assert not modules & {"trio", "pydantic", "structlog", "prometheus_client", "h11", "rich"}


MODULES: Final = {f"vsockproxy.cli.{module}" for module, _ in TABLE.values()}


PRINT_MODULES: Final = """
import atexit, sys
from vsockproxy.__main__ import main
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main()
"""


def imported(*arguments: str, environ: Mapping[str, str] | None = None) -> set[str]:
    """Return the modules that a command imports."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_MODULES, *arguments],
        env={**environment(), **(environ or {})},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def test_the_table_has_every_command_of_every_module() -> None:
    found = {
        str(value.name): name.rpartition(".")[2]
        for name in MODULES | {f"vsockproxy.cli.{file.stem}" for file in CLI.glob("[!_]*.py")}
        for value in vars(import_module(name)).values()
        if isinstance(value, click.Command) and not isinstance(value, click.Group)
    }
    assert found == {name: module for name, (module, _) in TABLE.items()}
    assert list(app.every_command()) == list(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_command_imports_its_own_module_and_no_other_commands(name: str) -> None:
    assert imported(name, "--help") & MODULES == {f"vsockproxy.cli.{TABLE[name][0]}"}


def test_the_help_and_the_completion_of_a_name_import_no_command() -> None:
    words = {
        "_VSOCKPROXY_COMPLETE": "bash_complete",
        "COMP_WORDS": "vsockproxy s",
        "COMP_CWORD": "1",
    }
    for modules in (imported("--help"), imported(environ=words)):
        assert "vsockproxy.cli.program" in modules
        assert not modules & (MODULES | {"vsockproxy.cli.shared", "vsockproxy.config.source"})


def test_the_help_of_a_command_lists_its_arguments() -> None:
    shown = command("route", "--help").stdout
    assert shown.startswith("Usage: vsockproxy route [OPTIONS] ACTION NAME [KEY=VALUE]...\n")
    section = shown.split("\nArguments:\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in section.splitlines()] == ["ACTION", "NAME", "KEY=VALUE"]
    assert "{LISTEN TARGET}..." in command("forward", "--help").stdout


def test_an_unknown_command_or_option_is_an_error_with_the_closest_name() -> None:
    for words, name in ((["statu"], "status"), (["status", "--wach"], "--watch")):
        done = command(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"Did you mean '{name}'?" in done.stderr


def test_ctrl_c_ends_a_command_with_status_130_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("vsockproxy.dial.vsock.read_local_cid", interrupted)
    done = CliRunner().invoke(app, ["cid"])
    assert (done.exit_code, done.output) == (130, "")


def test_version_shows_the_pump_and_the_reason() -> None:
    assert command("--version").stdout == f"vsockproxy {__version__}\n"
    assert command("-V").stdout == f"vsockproxy {__version__}\n"
    facts = json.loads(command("version", "--json").stdout)
    assert facts["version"] == __version__
    assert facts["revision"] == REVISION
    assert facts["pump"] in ("native", "portable")
    first, *revision, python, pump = command("version").stdout.splitlines()
    assert revision == [f"revision: {REVISION}"] * bool(REVISION)
    assert first == f"vsockproxy {__version__}"
    assert python.startswith("Python 3.")
    assert pump.startswith(("pump: native (", "pump: portable ("))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_with_a_command_shows_its_help(name: str) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["help", name], prog_name="vsockproxy")
    assert shown.exit_code == 0
    assert shown.output == runner.invoke(app, [name, "--help"], prog_name="vsockproxy").output


def test_help_without_a_command_is_the_programs_and_of_an_unknown_one_an_error() -> None:
    assert command("help").stdout == command("--help").stdout
    for words in (("chek",), ("run", "it")):
        done = command("help", *words)
        assert done.returncode == 2
        assert f"there is no command {words[-1]!r}" in done.stderr


@pytest.mark.parametrize(
    "words",
    ["connections --sort", "connections --limit", "demo --port", "status --color", "log-level"],
)
def test_an_error_of_an_argument_is_in_plain_words(words: str) -> None:
    done = command(*words.split(), "1x")
    assert done.returncode == 2
    assert re.search(
        r"Invalid value for '[a-z-]+': ('1x' is not one of|not a whole number)", done.stderr
    )


def test_json_and_watch_are_not_given_together() -> None:
    for name in ("status", "connections"):
        done = command(name, "--json", "--watch")
        assert (done.returncode, done.stdout) == (2, "")
        assert "--json prints once: leave --watch out" in done.stderr


# --- times --------------------------------------------------------------------------------

OTHERS: Final = {
    "connect": ("::",),
    "demo": ("-c", "/nonexistent.toml"),
    "forward": ("8080", "::"),
    "health": ("--url", "ftp://none"),
    "probe": ("::",),
    "ssh-config": (),
}
"""Arguments with which a command ends at once if its times are valid."""


def options() -> list[tuple[str, click.Option]]:
    """Return every option of the program, each with the name of its command."""
    return [
        (name, parameter)
        for name, command in app.every_command().items()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ]


TIMES: Final = [(name, option.opts[0]) for name, option in options() if option.metavar == "TIME"]


def test_every_option_with_the_name_of_a_time_takes_one() -> None:
    words = ("timeout", "wait", "delay", "interval", "every", "seconds", "age")
    named = [(name, opt) for name, each in options() for opt in each.opts if opt.endswith(words)]
    assert named == TIMES
    assert {name for name, _ in TIMES} == OTHERS.keys()


@pytest.mark.parametrize(("name", "option"), TIMES)
def test_an_option_takes_a_time_with_and_without_a_unit_and_an_error_names_it(
    name: str, option: str
) -> None:
    for time in ("3", "3s", "1.5", "1.5s"):
        done = CliRunner().invoke(app, [name, option, time, *OTHERS[name]])
        assert option not in done.stderr
    for time in ("3x", "", "-3", "off!"):
        done = CliRunner().invoke(app, [name, option, time, *OTHERS[name]])
        assert done.exit_code == 2
        assert f"vsockproxy: {option}: '{time}' is not a duration" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_the_commands(shell: str) -> None:
    words = {
        "_VSOCKPROXY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": "vsockproxy ",
        "COMP_CWORD": "" if shell == "fish" else "1",
    }
    done = command(environ=words)
    assert "forward" in done.stdout
    assert "demo" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("run", "--frobnicate"),
        ("check", "--frobnicate"),
        ("forward",),
        ("forward", "8080"),
        ("forward", "8080", "3:80", "8081"),
        ("demo", "--port", "many"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_with_status_2(arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "Usage: " in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (("forward", "8080", "x"), "'x'"),
        (("forward", "3:80", "8080"), "'3:80'"),
        (("forward", "8080", "3:80", "8080", "3:81"), "'8080'"),
        (("forward", "8080", "3:80", "--log-level", "loud"), "'loud'"),
        (("forward", "8080", "3:80", "--metrics", "vsock::9"), "'vsock::9'"),
        (("forward", "8080", "3:80", "--connect-timeout", "soon"), "'soon'"),
        (("forward", "8080", "3:80", "--half-close", "maybe"), "'maybe'"),
        (("demo", "--port", "65536"), "65536"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_address_or_setting_exits_with_status_2_and_is_quoted(
    arguments: tuple[str, ...], quoted: str
) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert quoted in done.stderr
    assert all(line.startswith("vsockproxy: ") for line in done.stderr.splitlines())


# --- check --------------------------------------------------------------------------------


def test_check_shows_each_route_on_one_line_without_a_terminal(
    write: Write, tmp_path: Path
) -> None:
    path = f"/run/{'x' * 80}"
    more = (
        f'"127.0.0.1:81" = "vsock-mux:{path}:80"\n"[::]:82" = "3:80"\n'
        '[[route]]\nname = "db"\nlisten = "5432"\ntarget = "tcp:db.lan:5432"\nidle_timeout = "1h"\n'
        '[metrics]\nlisten = "9490"\n'
    )
    done = command("check", write(more))
    assert (done.returncode, done.stderr) == (0, "")
    head, _, *routes, summary, not_direct = done.stdout.splitlines()
    assert head.split() == ["route", "listen", "target", "settings"]
    assert [line.split() for line in routes] == [
        ["fd:web", "fd:web", f"unix:{tmp_path}/target"],
        ["127.0.0.1:81", "tcp:127.0.0.1:81", f"vsock-mux:{path}:80"],
        ["[::]:82", "tcp:[::]:82", "vsock:3:80"],
        ["db", "tcp:5432", "tcp:db.lan:5432", "idle_timeout=1h"],
    ]
    assert summary == "4 routes; metrics: tcp:9490"
    assert not_direct == "not direct: db: the target's host name is resolved at each dial"


def test_a_quiet_check_prints_nothing_but_problems(write: Write) -> None:
    done = command("check", "--quiet", write())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = command("check", "-q", write("[logs]\n"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "logs" in done.stderr


def test_check_as_json_has_the_configuration_as_the_api_shows_it(write: Write) -> None:
    file = write('[log]\nlevel = "debug"')
    done = command("check", "--json", file)
    shown = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert (shown["source"], shown["problems"], shown["warnings"]) == (str(file), [], [])
    assert [route["listen"] for route in shown["configuration"]["routes"]] == ["fd:web"]
    assert shown["configuration"]["log"]["level"] == "debug"


def test_check_as_json_has_each_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("forward:\n  8080: 3:99999999999\nlogs: {}\n")
    done = command("check", "--json", file)
    shown = json.loads(done.stdout)
    assert (done.returncode, done.stderr, shown["configuration"]) == (2, "", None)
    places = [(one["source"], one["path"], one["line"]) for one in shown["problems"]]
    assert places == [(str(file), 'forward."8080"', 2), (str(file), "logs", 3)]
    missing = json.loads(command("check", "--json", "/none.toml").stdout)
    assert missing["problems"][0]["message"] == "no such file"


@pytest.mark.parametrize(
    "text",
    [
        '# a comment\n[forward]\n8080 = "3:80"\n',
        'forward."8080" = "3:80"',
        "\ufeff# a comment\n\nforward:\n  8080: 3:80\n",
        '{"forward": {"8080": "3:80"}}',
        "---\nforward:\n  8080: 3:80\n",
    ],
)
def test_check_reads_toml_yaml_and_json_from_standard_input(text: str) -> None:
    for arguments in (("-",), ("-c", "-")):
        done = CliRunner().invoke(app, ["check", *arguments], input=text)
        assert done.exit_code == 0, done.stderr
        assert "vsock:3:80" in done.stdout


def test_a_problem_of_standard_input_names_it_and_the_line() -> None:
    done = CliRunner().invoke(app, ["check", "-"], input="forward:\n  8080: 3:x\n")
    assert done.exit_code == 2
    assert "vsockproxy: standard input:2:3: " in done.stderr
    assert "standard input: is empty" in CliRunner().invoke(app, ["check", "-"]).stderr


@pytest.mark.parametrize("name", ["status", "doctor", "health"])
def test_a_command_that_cannot_read_standard_input_says_so(name: str) -> None:
    done = command(name, "-c", "-")
    words = "standard input: only check and run read the configuration there: name a file"
    assert words in done.stderr + " ".join(done.stdout.split())


def test_check_fits_a_terminal_of_80_columns(write: Write) -> None:
    name = "a-guest-with-quite-a-long-name-for-its-socket"
    file = write(f'[[route]]\nlisten = "81"\ntarget = "vsock-mux:/run/{name}/v.sock:80"\n')
    shown = on_a_terminal("check", str(file))
    assert max(map(len, shown.splitlines())) <= 80
    assert name in "".join(shown.split())


def on_a_terminal(*arguments: str) -> str:
    """Return the output of a command on a terminal of 80 columns."""
    master, slave = os.openpty()
    try:
        environ = {"TERM": "dumb", "COLUMNS": "80"}
        assert command(*arguments, environ=environ, stdout=slave).returncode == 0
        return os.read(master, 65536).decode()
    finally:
        os.close(slave)
        os.close(master)


def test_check_shows_every_error_and_no_route(write: Write) -> None:
    done = command("check", write('8080 = "3:99999999999"\n81 = "missing:80"\n[logs]\n'))
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("vsockproxy: ") and "config.toml" in line for line in lines)
    for quoted in ("99999999999", "missing", "logs"):
        assert quoted in done.stderr


@pytest.mark.parametrize("name", ["check", "run"])
@pytest.mark.parametrize("key", ["certificate", "key", "client_ca"])
def test_a_missing_certificate_or_key_is_an_error_with_status_2(
    write: Write, tmp_path: Path, name: str, key: str
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    authority.cert_pem.write_to_path(tmp_path / "client_ca")
    (tmp_path / key).unlink()
    files = "".join(f'{one} = "{tmp_path}/{one}"\n' for one in ("certificate", "key", "client_ca"))
    file = write(
        f'"unix:{tmp_path}/web" = "3:80"\n[metrics]\nlisten = "unix:{tmp_path}/metrics"\n{files}'
    )
    done = command(name, "-c", file)
    assert done.returncode == 2
    assert str(tmp_path / key) in done.stderr
    assert "No such file" in done.stderr


def test_a_missing_file_exits_with_status_2() -> None:
    for name in ("check", "run"):
        option = ("--config",) if name == "run" else ()
        done = command(name, *option, "/nowhere/at-all.toml")
        assert done.returncode == 2
        assert "/nowhere/at-all.toml" in done.stderr


CONFIGURATIONS: Final = sorted(
    file
    for file in (REPOSITORY / "config").glob("*.*ml")
    if file.name != "minimal.toml"  # it has no route yet: tests/config/test_schema.py
)


@pytest.mark.parametrize("file", CONFIGURATIONS, ids=lambda f: f.name)
def test_every_file_in_config_passes_check(file: Path) -> None:
    assert command("check", file).returncode == 0


def test_standard_output_on_a_full_disk_is_an_error_without_a_traceback(
    write: Write, full: int
) -> None:
    for arguments in (("version",), ("--help",), ("check", write())):
        done = command(*arguments, stdout=full)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr


def test_a_closed_pipe_as_standard_output_is_status_1_without_a_traceback(write: Write) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = command("check", write(), stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [("version",), ("check", "config/demo.toml")])
def test_closed_standard_streams_are_not_an_error(arguments: tuple[str, ...]) -> None:
    shell = ["sh", "-c", 'exec "$0" -m vsockproxy "$@" >&- 2>&-', sys.executable, *arguments]
    assert subprocess.run(shell, env=environment(), cwd=REPOSITORY, check=False).returncode == 0


# --- which file ---------------------------------------------------------------------------


def test_run_without_a_file_names_every_place_of_a_configuration() -> None:
    done = command("run")
    assert done.returncode == 2
    variables = ("$VSOCKPROXY_CONFIG", "$VSOCKPROXY_FORWARD")
    for place in ("-c", *variables, "/etc/vsockproxy/config.toml", "config.yaml"):
        assert place in done.stderr


def test_check_without_a_file_uses_the_configuration_of_run(write: Write) -> None:
    named = command("check", environ={"VSOCKPROXY_CONFIG": str(write())})
    asked = command("check", "-c", write())
    assert named.stdout == asked.stdout == command("check", write()).stdout
    settings = command("check", environ={"VSOCKPROXY_FORWARD": "8080=3:80"})
    assert "vsock:3:80" in settings.stdout
    assert command("check").stderr == command("run").stderr


def test_an_unreadable_file_is_an_error_with_a_remedy() -> None:
    with open_folder() as folder:
        file = folder / "x.toml"
        file.touch()
        for arguments in (("check", str(file)), ("run", "-c", str(file))):
            file.chmod(0o644)
            CliRunner().invoke(
                app, arguments
            )  # imports the modules, which an ordinary user cannot read
            file.chmod(0o000)
            with as_ordinary_user():
                done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 2
            assert "x.toml: permission denied: check the mode of the file" in done.stderr


def test_a_configuration_file_is_examined_by_its_reader_only(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # of the real user, as click asks
    file = str(write())
    for arguments in (["check", file], ["check", "-c", file]):
        assert CliRunner().invoke(app, arguments).exit_code == 0


def test_the_first_existing_default_file_is_used(tmp_path: Path) -> None:
    toml, yaml = tmp_path / "config.toml", tmp_path / "config.yaml"
    yaml.touch()
    assert default_file((toml, yaml)) == yaml
    toml.touch()
    assert default_file((toml, yaml)) == toml
    toml.unlink()
    yaml.unlink()
    assert default_file((toml, yaml)) is None


async def test_run_takes_a_file_as_check_does_before_that_of_the_environment(
    write: Write, tcp: socket.socket
) -> None:
    file, environ = write(), {"VSOCKPROXY_CONFIG": "/nonexistent.toml"}
    assert command("check", file, environ=environ).returncode == 0
    async with daemon("run", file, sockets={"web": tcp}, environ=environ) as running:
        ready = await running.wait_for("ready")
        assert ready["config"] == str(file)
        assert await running.stop() == 0


@pytest.mark.parametrize("verb", ["run", "check"])
def test_two_files_are_an_error(verb: str, write: Write) -> None:
    done = command(verb, "-c", write(), "other.toml")
    assert done.returncode == 2
    assert done.stderr == "vsockproxy: both FILE and --config name a configuration: omit one\n"


async def test_the_environment_names_the_file(write: Write, tcp: socket.socket) -> None:
    environ = {"VSOCKPROXY_CONFIG": str(write())}
    async with daemon("run", sockets={"web": tcp}, environ=environ) as running:
        ready = await running.wait_for("ready")
        assert ready["config"] == environ["VSOCKPROXY_CONFIG"]
        assert await running.stop() == 0
