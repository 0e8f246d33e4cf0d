"""The judgement of AF_VSOCK on machines that are only files."""

import errno
from pathlib import Path

import pytest

from tests.doctor.canned_machine import BARE, GUEST, HOST, KERNEL, machine_tree, routes
from vsockproxy.address.endpoint import CID_ANY
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding
from vsockproxy.doctor.machine import Machine, read_machine
from vsockproxy.doctor.transports import describe_cid, describe_cid_error, judge_transports


def vsock_findings(
    machine: Machine,
    config: Config | None = None,
    *,
    attempt: int | None = 0,
    cid: int | OSError | None = None,
) -> dict[str, Finding]:
    found = judge_transports(machine, config, attempt=attempt, cid=cid)
    return {finding.subject: finding for finding in found}


def test_a_complete_host_has_no_problem(tmp_path: Path) -> None:
    found = vsock_findings(read_machine(machine_tree(tmp_path, HOST)), cid=2)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["own CID"].text == "2: this machine is a host; its VMs reach it as CID 2"


def test_missing_modules_are_problems_with_modprobe_as_remedy(tmp_path: Path) -> None:
    machine = read_machine(machine_tree(tmp_path, BARE))
    found = vsock_findings(machine, routes("8080", "3:80"), attempt=errno.EAFNOSUPPORT)
    assert found["AF_VSOCK"].level == "problem"
    assert found["AF_VSOCK"].remedy.startswith("modprobe vsock;")
    assert found["to guests"].level == "problem"
    assert found["to guests"].remedy.startswith("modprobe vhost_vsock;")


def test_a_kernel_package_without_the_module_is_named(tmp_path: Path) -> None:
    files = BARE | {f"lib/modules/{KERNEL}/modules.dep": "kernel/fs/ext4/ext4.ko:\n"}
    found = vsock_findings(read_machine(machine_tree(tmp_path, files)), routes("8080", "3:80"))
    assert f"this kernel ({KERNEL}) lacks vhost_vsock" in found["to guests"].remedy


def test_missing_modules_that_no_route_needs_are_not_problems(tmp_path: Path) -> None:
    machine = read_machine(machine_tree(tmp_path, BARE))
    config = routes("8080", "vsock-mux:/run/vm.sock:80")
    found = vsock_findings(machine, config, attempt=None)
    assert {finding.level for finding in found.values()} <= {"ok", "note"}


def test_a_route_to_cid_1_needs_the_loopback(tmp_path: Path) -> None:
    files = HOST | {"proc/modules": "vhost_vsock 1 0 - Live 0x0\nvsock 1 0 - Live 0x0\n"}
    found = vsock_findings(read_machine(machine_tree(tmp_path, files)), routes("8080", "1:80"))
    assert found["loopback"].level == "problem"
    assert found["loopback"].remedy.startswith("modprobe vsock_loopback")


def test_a_vm_with_a_device_but_no_driver_has_a_remedy(tmp_path: Path) -> None:
    files = GUEST | {"proc/modules": "vsock 49152 1 - Live 0x0\n"}
    machine = read_machine(machine_tree(tmp_path, files))
    assert vsock_findings(machine)["to the host"].level == "note"
    found = vsock_findings(machine, routes("8080", "2:80"))["to the host"]
    assert found.level == "problem"
    assert found.remedy.startswith("modprobe vmw_vsock_virtio_transport")


def test_a_route_to_the_hypervisor_needs_a_vm(tmp_path: Path) -> None:
    machine = read_machine(machine_tree(tmp_path, HOST))
    config = routes("8080", "vsock:5:80,to_host")
    assert vsock_findings(machine, config)["to the host"].level == "problem"


def test_a_route_to_a_looked_up_cid_needs_vhost_vsock(tmp_path: Path) -> None:
    machine = read_machine(machine_tree(tmp_path, BARE))
    for guest, is_vsock in (({"qmp": "/q"}, True), ({"mux": "/run/*/v"}, False)):
        config = routes("8080", "web:80", guests={"web": guest})
        found = vsock_findings(machine, config, attempt=errno.EAFNOSUPPORT)
        assert (found["to guests"].level == "problem") == is_vsock
        assert (found["AF_VSOCK"].level == "problem") == is_vsock


def test_a_guest_without_vms_has_no_problem(tmp_path: Path) -> None:
    found = vsock_findings(read_machine(machine_tree(tmp_path, GUEST)), cid=5)
    assert not [one for one in found.values() if one.level == "problem"]
    assert found["own CID"].text == "5: this machine is a guest; its host reaches it as CID 5"


@pytest.mark.parametrize(
    ("files", "code", "remedy"),
    [
        ({".dockerenv": ""}, errno.EPERM, "seccomp-vsock.json"),
        ({"proc/self/status": "Seccomp:\t2\n"}, errno.EAFNOSUPPORT, "RestrictAddressFamilies="),
        ({"proc/self/attr/current": "box (enforce)"}, errno.EACCES, "profile that allows"),
        ({}, errno.EPERM, "dmesg"),
    ],
)
def test_a_denied_family_has_the_remedy_for_its_sandbox(
    tmp_path: Path, files: dict[str, str], code: int, remedy: str
) -> None:
    machine = read_machine(machine_tree(tmp_path, HOST | files))
    found = vsock_findings(machine, attempt=code)["AF_VSOCK"]
    assert found.level == "problem"
    assert errno.errorcode[code] in found.text
    assert remedy in found.remedy


def test_a_missing_module_in_a_container_is_loaded_on_its_host(tmp_path: Path) -> None:
    machine = read_machine(machine_tree(tmp_path, BARE | {".dockerenv": ""}))
    found = vsock_findings(machine, routes("8080", "3:80"))["to guests"]
    assert found.remedy == "on the container's host: modprobe vhost_vsock"


@pytest.mark.parametrize("mode", ["global", "local"])
def test_the_mode_of_the_network_namespace_is_shown(tmp_path: Path, mode: str) -> None:
    files = HOST | {"proc/sys/net/vsock/ns_mode": f"{mode}\n"}
    found = vsock_findings(read_machine(machine_tree(tmp_path, files)))["namespace"]
    assert mode in found.text
    assert found.level == ("note" if mode == "local" else "ok")


def test_a_cid_and_the_error_of_reading_it_are_explained() -> None:
    assert describe_cid(3).startswith("3: this machine is a guest")
    assert "itself" in describe_cid(1)
    assert describe_cid(CID_ANY).startswith("none")
    assert "does not exist" in describe_cid_error(FileNotFoundError(errno.ENOENT, "x"))
    assert "sudo" in describe_cid_error(PermissionError(errno.EACCES, "x"))
    assert "ioctl" in describe_cid_error(OSError(errno.ENOTTY, "ioctl"))
