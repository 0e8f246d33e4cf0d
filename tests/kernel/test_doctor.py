"""The output of doctor, probe and cid without the vsock modules, and as they are loaded."""

import json
import re
import shlex
import sys
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.kernel.uml import run_in_uml

pytestmark = pytest.mark.kernel

PROGRAM: Final = f"{shlex.quote(sys.executable)} -m vsockproxy"

CONFIGURATION: Final = """\
[forward]
8080 = "1:80"
8081 = "3:80"
"""

# Each command prints its output and then its exit status; modules are loaded in between.
SCRIPT: Final = """\
run_command() {{ "$@" 2>&1; echo "status $?"; }}
load() {{ insmod /usr/lib/uml/modules/$(uname -r)/kernel/net/vmw_vsock/$1.ko || exit; }}
run_command {program} doctor -c {file}
run_command {program} probe 1:80
run_command {program} cid
load vsock
run_command {program} doctor -c {file} --json
run_command {program} cid --json
load vmw_vsock_virtio_transport_common
load vsock_loopback
run_command {program} doctor -c {file} --json
run_command {program} probe --json 1:80
"""


@dataclass(frozen=True, slots=True)
class Result:
    """A command's output and its exit status."""

    output: str
    status: int

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        return {one["subject"]: one for one in json.loads(self.output)["findings"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """The results of the script's commands, from one boot."""
    scratch = tmp_path_factory.mktemp("doctor")
    file = scratch / "c.toml"
    file.write_text(CONFIGURATION)
    script = SCRIPT.format(program=PROGRAM, file=shlex.quote(str(file)))
    completed = run_in_uml(["sh", "-c", script], scratch, modules=())
    found = re.findall(r"(.*?)^status (\d+)\n", completed.output, re.DOTALL | re.MULTILINE)
    assert len(found) == 7, completed.output
    return [Result(output, int(status)) for output, status in found]


def test_without_modules_every_command_names_the_module_to_load(results: list[Result]) -> None:
    doctor, probe, cid = results[:3]
    assert (doctor.status, probe.status, cid.status) == (1, 1, 1)
    page = " ".join(doctor.output.split())
    assert "problem AF_VSOCK it is not in the kernel (EAFNOSUPPORT) ->" in page
    assert "modprobe vsock" in page
    assert "problem to guests vhost_vsock is not loaded" in page
    assert "modprobe vhost_vsock" in page
    assert "problem loopback vsock_loopback is not loaded" in page
    assert "problem route 8080 vsock:1:80: this kernel has no AF_VSOCK" in page
    assert "a VM (uml)" in page
    assert "/dev/vsock is not there" in page
    assert "modprobe vsock" in probe.output
    assert "/dev/vsock is not there" in cid.output


def test_with_vsock_alone_doctor_reports_the_missing_transports(results: list[Result]) -> None:
    doctor, cid = results[3:5]
    assert (doctor.status, cid.status) == (1, 1)
    found = doctor.findings
    assert found["AF_VSOCK"]["level"] == "ok"
    assert "this process may open it" in found["AF_VSOCK"]["text"]
    assert found["to guests"]["level"] == "problem"
    assert found["loopback"]["level"] == "problem"
    assert "modprobe vsock_loopback" in found["loopback"]["remedy"]
    answer = json.loads(cid.output)
    assert answer["cid"] is None
    assert "no transport" in answer["meaning"]


def test_with_the_loopback_doctor_reports_only_what_needs_vms(results: list[Result]) -> None:
    doctor, probe = results[5:]
    assert (doctor.status, probe.status) == (1, 1)
    found = doctor.findings
    assert found["AF_VSOCK"]["level"] == "ok"
    assert found["loopback"]["level"] == "ok"
    assert found["to guests"]["level"] == "problem"
    assert "nothing listens on its port 80" in found["route 8080"]["text"]
    assert "no running VM owns CID 3" in found["route 8081"]["text"]
    assert json.loads(probe.output)["reason"] == "refused"
