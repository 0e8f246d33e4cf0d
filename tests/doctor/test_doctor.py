"""The whole examination, the layout of its findings, and the command."""

import json
import socket
from pathlib import Path

import pytest

from tests.config.texts import toml
from tests.daemon_process import command
from tests.doctor.canned_machine import BARE, CONFINED, HOST, machine_tree, routes
from tests.fake_services import hold, mux_server
from vsockproxy.config.settings import Config
from vsockproxy.doctor.examination import Attempts, examine
from vsockproxy.doctor.finding import Finding, problem
from vsockproxy.doctor.machine import read_machine
from vsockproxy.doctor.report import lines_of, summary
from vsockproxy.errors import ConfigError

NO_VSOCK = Attempts(open_vsock=lambda: 0, read_cid=lambda: 2, bind=lambda _: None)


async def findings(
    tmp_path: Path, config: Config | ConfigError | None, attempts: Attempts | None = NO_VSOCK
) -> list[Finding]:
    return await examine(
        config, machine=read_machine(machine_tree(tmp_path, HOST)), attempts=attempts
    )


async def test_only_the_route_to_a_broken_guest_is_a_problem(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with mux_server(tmp_path / "well", {80: hold}):
            found = await findings(
                tmp_path,
                routes(
                    *("8080", f"vsock-mux:{tmp_path}/well:80"),
                    *("8081", f"vsock-mux:{tmp_path}/broken:80"),
                    *("8082", f"127.0.0.1:{port}", "8083", f"127.0.0.1:{port}"),
                ),
            )
    found_by_subject = {one.subject: one for one in found}
    assert found_by_subject["route 8080"].level == "ok"
    assert found_by_subject["route 8081"].level == "problem"
    assert "start the VM" in found_by_subject["route 8081"].remedy
    assert found_by_subject["route 8082 and 1 more"].level == "ok"
    assert summary(found).startswith("1 problem")


async def test_the_targets_of_a_route_by_name_are_dialled_as_far_as_no_client_chooses_them(
    tmp_path: Path,
) -> None:
    config = toml(f"""
[[route]]
name = "in"
listen = "unix:{tmp_path}/in"
by = "http-host"
to = [
  {{ name = "gone.vm", target = "gone:80" }},
  {{ name = "up.vm", target = "vsock-mux:{tmp_path}/up:80" }},
  {{ name = "*.vm", target = "go{{1}}:80" }},
  {{ name = "any.vm", target = "gone:{{port}}" }},
]
[guests]
gone = {{ mux = "{tmp_path}/gone" }}
""")
    async with mux_server(tmp_path / "up", {80: hold}):
        found = await findings(tmp_path, config)
    dialled = {one.text.partition(": ")[0]: one for one in found if one.subject == "route in"}
    assert dialled[f"vsock-mux:{tmp_path}/up:80"].level == "ok"
    assert dialled[f"vsock-mux:{tmp_path}/gone:80"].level == "problem"
    assert len(dialled) == 2
    [unchecked] = [one.text for one in found if one.subject == "not checked"]
    assert "what clients of in ask for beyond the targets above" in unchecked


async def test_every_error_of_a_configuration_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        routes("8080", "3:99999999999", "8081", "missing:80")
    found = await findings(tmp_path, caught.value)
    wrong = [one.text for one in found if one.subject == "configuration"]
    assert len(wrong) == 2
    assert "99999999999" in wrong[0]


async def test_a_guest_by_name_is_shown_with_its_address_or_error(tmp_path: Path) -> None:
    guests = {
        "up": {"mux": f"{tmp_path}/up-*.sock"},
        "down": {"mux": f"{tmp_path}/down-*.sock"},
    }
    async with mux_server(tmp_path / "up-1.sock", {80: hold}):
        found = await findings(tmp_path, routes("8080", "up:80", guests=guests))
    found_by_subject = {one.subject: one for one in found}
    assert found_by_subject["route 8080"].level == "ok"
    assert found_by_subject["guest up"].text == f"is at {tmp_path}/up-1.sock"
    assert found_by_subject["guest down"].level == "note"
    assert "down-*.sock" in found_by_subject["guest down"].text


@pytest.mark.parametrize("confined", [True, False])
async def test_without_a_configuration_a_socket_is_opened_only_in_a_sandbox(
    tmp_path: Path, *, confined: bool
) -> None:
    tried: list[bool] = []

    def try_it() -> int:
        tried.append(True)
        return 0

    attempts = Attempts(open_vsock=try_it, read_cid=lambda: 2)
    machine = read_machine(machine_tree(tmp_path, HOST | (CONFINED if confined else {})))
    await examine(None, machine=machine, attempts=attempts)
    assert tried == [True] * confined


async def test_no_socket_is_opened_for_a_configuration_without_vsock(tmp_path: Path) -> None:
    def never() -> int:
        pytest.fail("no route needs AF_VSOCK")

    attempts = Attempts(open_vsock=never, read_cid=lambda: 2)
    await findings(tmp_path, routes("8080", f"unix:{tmp_path}/s"), attempts)


async def test_another_machines_files_are_judged_without_dialling(tmp_path: Path) -> None:
    found = await findings(tmp_path, routes("8080", f"unix:{tmp_path}/s"), None)
    assert not [one for one in found if one.subject.startswith(("route", "pump", "own"))]


def test_a_finding_fits_80_columns_and_its_remedy_has_its_own_line() -> None:
    found = problem("route with-a-long-name", " ".join(["word"] * 40), "modprobe vhost_vsock")
    lines = list(lines_of(found))
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("problem  route with-a-long-name")
    assert lines[-1].strip() == "-> modprobe vhost_vsock"


# --- the command ---


def test_doctor_with_problems_exits_with_status_1(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[forward]\n8080 = "3:80"\n')
    root = machine_tree(tmp_path / "machine", BARE)
    done = command("doctor", "-c", file, "--root", root)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("2 problems")
    assert max(len(line) for line in done.stdout.splitlines() if str(file) not in line) <= 80
    printed = json.loads(command("doctor", "-c", file, "--root", root, "--json").stdout)
    assert printed["problems"] == 2
    assert {"level", "subject", "text", "remedy"} == set(printed["findings"][0])


def test_doctor_without_problems_exits_with_status_0(tmp_path: Path) -> None:
    done = command("doctor", "--root", machine_tree(tmp_path, HOST))
    assert done.returncode == 0
    assert "no problems" in done.stdout


def test_doctor_examines_this_machine_and_dials_the_targets(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[forward]\n8080 = "unix:{tmp_path}/gone"\n')
    done = command("doctor", "-c", file)
    assert done.returncode == 1
    assert "does not exist" in done.stdout
    assert "pump" in done.stdout
