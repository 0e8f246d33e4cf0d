"""The shipped systemd units: valid commands, systemd-analyze, and consistency."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.daemon_process import REPOSITORY, command
from tests.kernel.boot import require
from vsockproxy.address.endpoint import FdEndpoint, TcpEndpoint, VsockEndpoint
from vsockproxy.address.grammar import parse_listen, parse_target
from vsockproxy.config.source import PLACES

UNITS: Final = REPOSITORY / "systemd"
SERVICES: Final = [UNITS / "vsockproxy.service", UNITS / "vsockproxy@.service"]
SOCKETS: Final = [UNITS / "vsockproxy.socket", UNITS / "vsockproxy-guests.socket"]
DROP_INS: Final = sorted((UNITS / "drop-ins").glob("*.conf"))
GUEST: Final = sorted((UNITS / "guest").iterdir())
WORST_EXPOSURE: Final = 15  # tenths


def settings(file: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", file.read_text(), re.MULTILINE)


def lines(file: Path) -> list[str]:
    """Return the lines of a unit that systemd reads."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the units, whose commands are this program."""
    program = Path(sys.executable).with_name("vsockproxy")
    for unit in (*SERVICES, *SOCKETS):
        text = unit.read_text().replace("=vsockproxy ", f"={program} ")
        (tmp_path / unit.name.replace("@.", "@edge.")).write_text(text)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    require(**{"systemd-analyze": "systemd"})
    line = ["systemd-analyze", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_units_commands_and_options_exist(unit: Path) -> None:
    commands = [*settings(unit, "ExecStart"), *settings(unit, "ExecReload")]
    ours = [shlex.split(line) for line in commands if line.startswith("vsockproxy ")]
    assert [words[1] for words in ours] == ["run", "check"]
    for _, *words in ours:
        done = command(*words, "--help")  # an unknown option is an error despite --help
        assert done.returncode == 0, done.stderr


def test_the_services_configuration_file_is_a_default_one() -> None:
    [variable] = settings(SERVICES[0], "Environment")
    assert variable == f"VSOCKPROXY_CONFIG={PLACES[0]}"


def test_an_instance_differs_from_the_service_only_in_its_file_and_folder() -> None:
    service, instance = (lines(unit) for unit in SERVICES)
    assert [line for line in instance if line not in service] == [
        "Description=Relay of byte streams between TCP and vsock (%i)",
        "Environment=VSOCKPROXY_CONFIG=/etc/vsockproxy/%i.toml",
        "RuntimeDirectory=vsockproxy-%i",
    ]
    assert len(instance) == len(service)


@pytest.mark.parametrize("unit", SOCKETS, ids=lambda unit: unit.name)
def test_a_socket_units_addresses_and_name_are_valid_in_a_route(unit: Path) -> None:
    [name] = settings(unit, "FileDescriptorName")
    assert FdEndpoint(name)
    assert f'`listen = "fd:{name}"`' in unit.read_text()
    for address in settings(unit, "ListenStream"):
        assert parse_listen(address)


def test_every_socket_unit_starts_the_service() -> None:
    for unit in SOCKETS:
        assert unit.stem == "vsockproxy" or settings(unit, "Service") == ["vsockproxy.service"]


@pytest.mark.parametrize("name", ["vsockproxy.service", "vsockproxy@edge.service"])
def test_systemd_rates_the_exposure_as_low(installed: Path, name: str) -> None:
    line = ("security", "--offline=true", f"--threshold={WORST_EXPOSURE}", f"./{name}")
    done = analyze(*line, folder=installed)
    assert done.returncode == 0, done.stdout


def test_systemd_accepts_the_units(installed: Path) -> None:
    names = [unit.name.replace("@.", "@edge.") for unit in (*SERVICES, *SOCKETS)]
    done = analyze("verify", *(f"./{name}" for name in names), folder=installed)
    assert (done.returncode, messages(done)) == (0, [])


def test_systemd_accepts_the_guests_units(tmp_path: Path) -> None:
    require(socat="socat")
    program = Path(sys.executable).with_name("vsockproxy")
    names = [unit.name.replace("@.", "@80.") for unit in GUEST]
    for unit, name in zip(GUEST, names, strict=True):
        (tmp_path / name).write_text(unit.read_text().replace("=vsockproxy ", f"={program} "))
    done = analyze("verify", *(f"./{name}" for name in names), folder=tmp_path)
    ours = [line for line in done.stderr.splitlines() if "vsock-port" in line]
    assert (done.returncode, ours) == (0, [])


def test_a_guests_unit_runs_a_valid_command() -> None:
    [line] = settings(UNITS / "guest" / "vsock-port@.service", "ExecStart")
    _, command_name, listen, target = shlex.split(line.replace("%i", "80"))
    assert command_name == "forward"
    assert parse_listen(listen) == VsockEndpoint(port=80)
    assert parse_target(target) == TcpEndpoint("127.0.0.1", 80)


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda file: file.stem)
def test_systemd_accepts_a_drop_in(installed: Path, drop_in: Path) -> None:
    if drop_in.stem == "notify-reload" and version(installed) < 253:
        pytest.skip("this systemd has no Type=notify-reload; 253 has")
    folder = installed / "vsockproxy.service.d"
    folder.mkdir()
    shutil.copy(drop_in, folder)
    done = analyze("verify", "./vsockproxy.service", folder=installed)
    assert (done.returncode, messages(done)) == (0, [])


def test_systemd_rejects_a_wrong_unit(installed: Path) -> None:
    with (installed / "vsockproxy.service").open("a") as unit:
        unit.write("[Service]\nNoSuchSetting=yes\n")
    assert messages(analyze("verify", "./vsockproxy.service", folder=installed))


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda file: file.stem)
def test_a_drop_in_names_its_folder(drop_in: Path) -> None:
    place = f"# /etc/systemd/system/vsockproxy.service.d/{drop_in.name}\n"
    assert drop_in.read_text().startswith(place)


def messages(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the messages about these units, without those about the machine's own."""
    return [line for line in done.stderr.splitlines() if "vsockproxy" in line]


def version(folder: Path) -> int:
    found = re.search(r"systemd (\d+)", analyze("--version", folder=folder).stdout)
    assert found is not None
    return int(found[1])
