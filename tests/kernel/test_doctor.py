"""What doctor, probe and cid say in a kernel that lacks its modules, and as they are loaded."""

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

# Each command's output, and its exit status on a line behind it; modules come in between.
SCRIPT: Final = """\
say() {{ "$@" 2>&1; echo "status $?"; }}
load() {{ insmod /usr/lib/uml/modules/$(uname -r)/kernel/net/vmw_vsock/$1.ko || exit; }}
say {program} doctor -c {file}
say {program} probe 1:80
say {program} cid
load vsock
say {program} doctor -c {file} --json
say {program} cid --json
load vmw_vsock_virtio_transport_common
load vsock_loopback
say {program} doctor -c {file} --json
say {program} probe --json 1:80
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command wrote, and its exit status."""

    output: str
    status: int

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        return {one["subject"]: one for one in json.loads(self.output)["findings"]}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[Said]:
    """Every command of the script, in one boot."""
    scratch = tmp_path_factory.mktemp("doctor")
    file = scratch / "c.toml"
    file.write_text(CONFIGURATION)
    script = SCRIPT.format(program=PROGRAM, file=shlex.quote(str(file)))
    completed = run_in_uml(["sh", "-c", script], scratch, modules=())
    found = re.findall(r"(.*?)^status (\d+)\n", completed.output, re.DOTALL | re.MULTILINE)
    assert len(found) == 7, completed.output
    return [Said(output, int(status)) for output, status in found]


def test_without_modules_every_command_says_what_to_load(said: list[Said]) -> None:
    doctor, probe, cid = said[:3]
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


def test_with_the_family_alone_the_transports_are_missing(said: list[Said]) -> None:
    doctor, cid = said[3:5]
    assert (doctor.status, cid.status) == (1, 1)
    found = doctor.findings
    assert found["AF_VSOCK"]["level"] == "ok"
    assert "this process may open it" in found["AF_VSOCK"]["text"]
    assert found["to guests"]["level"] == "problem"
    assert found["loopback"]["level"] == "problem"
    assert "modprobe vsock_loopback" in found["loopback"]["remedy"]
    told = json.loads(cid.output)
    assert told["cid"] is None
    assert "no transport" in told["meaning"]


def test_with_the_loopback_only_what_needs_vms_is_a_problem(said: list[Said]) -> None:
    doctor, probe = said[5:]
    assert (doctor.status, probe.status) == (1, 1)
    found = doctor.findings
    assert found["AF_VSOCK"]["level"] == "ok"
    assert found["loopback"]["level"] == "ok"
    assert found["to guests"]["level"] == "problem"
    assert "nothing listens on its port 80" in found["route 8080"]["text"]
    assert "no running VM owns CID 3" in found["route 8081"]["text"]
    assert json.loads(probe.output)["reason"] == "refused"
