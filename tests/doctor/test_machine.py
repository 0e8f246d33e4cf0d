"""The facts that the doctor reads from a machine's files."""

from pathlib import Path

import pytest

from tests.doctor.canned_machine import BARE, HOST, KERNEL, machine_tree
from tests.fake_services import as_ordinary_user, open_folder
from vsockproxy.doctor.machine import Machine, read_machine
from vsockproxy.doctor.sandbox import judge_sandbox
from vsockproxy.doctor.transports import judge_transports


def test_the_facts_are_read_from_the_files_of_a_machine(tmp_path: Path) -> None:
    machine = read_machine(machine_tree(tmp_path, HOST))
    assert machine.kernel == KERNEL
    assert machine.has_vsock is True
    assert machine.has("vhost_vsock")
    assert not machine.has("hv_sock")
    assert machine.shipped is not None
    assert "vmw_vsock_virtio_transport" in machine.shipped
    assert machine.vsock.usable
    assert machine.user == 1000
    assert machine.descriptors == (1024, 524288)
    assert machine.first_port == 1024
    assert (machine.container, machine.vm) == ("", "")


def test_the_facts_of_an_empty_tree_are_unknown(tmp_path: Path) -> None:
    assert read_machine(tmp_path) == Machine()


def test_malformed_files_do_not_raise(tmp_path: Path) -> None:
    garbage = dict.fromkeys(HOST, "\x00�: :: 9" * 50 + "\n-1 -1\n")
    machine = read_machine(machine_tree(tmp_path, garbage))
    list(judge_sandbox(machine, None))
    list(judge_transports(machine, None, attempt=None, cid=None))


def test_folders_in_place_of_files_do_not_raise(tmp_path: Path) -> None:
    for name in HOST:
        (tmp_path / name).mkdir(parents=True)
    assert read_machine(tmp_path).has_vsock is None


def test_facts_in_unreadable_files_are_unknown() -> None:
    with open_folder() as folder:
        machine_tree(folder, HOST)
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(0)
        with as_ordinary_user():
            machine = read_machine(folder)
    assert machine.has_vsock is None
    assert machine.vsock.exists
    assert not machine.vsock.usable


def test_a_built_in_module_counts_as_loaded(tmp_path: Path) -> None:
    files = BARE | {
        f"lib/modules/{KERNEL}/modules.builtin": "kernel/drivers/vhost/vhost_vsock.ko\n"
    }
    assert read_machine(machine_tree(tmp_path, files)).has("vhost_vsock")


def test_built_in_transports_are_detected_by_their_drivers(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/virtio/drivers/vmw_vsock_virtio_transport").mkdir(parents=True)
    machine = read_machine(machine_tree(tmp_path, {"proc/misc": "241 vhost-vsock\n258 vsock\n"}))
    assert machine.loaded == frozenset({"vhost_vsock", "vmw_vsock_virtio_transport"})


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"run/systemd/container": "nspawn\n"}, "nspawn"),
        ({"proc/1/environ": "HOME=/\0container=lxc\0"}, "lxc"),
        ({".dockerenv": ""}, "docker"),
        ({"run/.containerenv": ""}, "podman"),
        ({"proc/1/environ": "KUBERNETES_SERVICE_HOST=10.0.0.1\0"}, "kubernetes"),
        ({"proc/1/cgroup": "0::/kubepods/besteffort/pod1\n"}, "kubepods"),
    ],
)
def test_the_kind_of_container_is_detected(
    tmp_path: Path, files: dict[str, str], kind: str
) -> None:
    assert read_machine(machine_tree(tmp_path, HOST | files)).container == kind


@pytest.mark.parametrize(
    ("vendor", "product", "kind"),
    [
        ("QEMU", "Standard PC", "qemu"),
        ("Amazon EC2", "m5.large", "amazon"),
        ("Amazon EC2", "m5.metal", ""),
        ("Microsoft Corporation", "Virtual Machine", "microsoft"),
        ("Microsoft Corporation", "Surface", ""),
        ("Dell Inc.", "PowerEdge", ""),
    ],
)
def test_the_kind_of_vm_is_detected_by_its_firmware(
    tmp_path: Path, vendor: str, product: str, kind: str
) -> None:
    names = {"sys/class/dmi/id/sys_vendor": vendor, "sys/class/dmi/id/product_name": product}
    assert read_machine(machine_tree(tmp_path, HOST | names)).vm == kind
