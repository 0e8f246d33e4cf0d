"""The survey of this machine's VMs, by its processes and its sources, and the command."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon_process import command, daemon
from tests.guests.fake_hypervisors import (
    fake_answer,
    fake_busy_monitor,
    fake_incus,
    fake_machined,
    fake_server,
    instance,
)
from vsockproxy.config.guest import Cid, Mux, Qmp
from vsockproxy.config.load import forward_config
from vsockproxy.guests import survey as surveying
from vsockproxy.guests.survey import Places, guest_name, survey
from vsockproxy.guests.vmm_processes import VmmProcess, find_vmms


def process(proc: Path, number: int, words: list[str], folder: str = "/", root: str = "/") -> None:
    """Create a process in a fake /proc."""
    entry = proc / str(number)
    entry.mkdir(parents=True)
    (entry / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    (entry / "cwd").symlink_to(folder)
    (entry / "root").symlink_to(root)


QEMU = "/usr/bin/qemu-system-x86_64"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            f"{QEMU} -name web01,debug-threads=on -device vhost-vsock-pci,id=v,guest-cid=17",
            VmmProcess("qemu", "web01", Cid(17), Cid(17)),
        ),
        (
            f"{QEMU} -device vhost-vsock-pci,guest-cid=3 -qmp unix:q.sock,server=on,wait=off",
            VmmProcess("qemu", "vm-7", Qmp("/run/vm/q.sock"), Cid(3)),
        ),
        (
            'qemu-kvm -name guest=db -device {"driver":"vhost-vsock-pci","guest-cid":4}',
            VmmProcess("qemu", "db", Cid(4), Cid(4)),
        ),
        (
            "cloud-hypervisor --kernel k --vsock cid=3,socket=/tmp/ch.vsock",
            VmmProcess("cloud-hypervisor", "vm-7", Mux("/tmp/ch.vsock"), Mux("/tmp/ch.vsock")),
        ),
        (
            "vhost-device-vsock --guest-cid=4 --uds-path=4.vsock --socket=/tmp/vhost4",
            VmmProcess(
                "vhost-device-vsock", "vm-7", Mux("/run/vm/4.vsock"), Mux("/run/vm/4.vsock")
            ),
        ),
        (
            "vhost-device-vsock --vm guest-cid=3,uds-path=/tmp/vm3.vsock,socket=/tmp/vhost3",
            VmmProcess("vhost-device-vsock", "vm-7", Mux("/tmp/vm3.vsock"), Mux("/tmp/vm3.vsock")),
        ),
    ],
)
def test_a_vmms_command_line_gives_the_way_to_its_guest(
    tmp_path: Path, line: str, found: VmmProcess
) -> None:
    process(tmp_path, 7, line.split(" "), folder="/run/vm")
    assert find_vmms(tmp_path) == [found]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "/bin/sleep 10",
        f"{QEMU} -m 128",
        f"{QEMU} -device",
        f"{QEMU} -device vhost-vsock-pci,guest-cid=2",
        f"{QEMU} -device vhost-vsock-pci,guest-cid=x",
        f"{QEMU} -device vhost-user-vsock-pci,chardev=c",
        f'{QEMU} -device {{"driver":"vhost-vsock-pci"',
        f"{QEMU} -qmp unix:/q",
        "firecracker --api-sock /run/fc.sock",
        "firecracker --config-file /no/such/file",
        "cloud-hypervisor --vsock cid=3",
        "grep guest-cid=3 vhost-vsock-pci",
    ],
)
def test_a_process_that_is_not_a_vm_with_vsock_is_skipped(tmp_path: Path, line: str) -> None:
    process(tmp_path, 7, line.split(" "))
    (tmp_path / "8").mkdir()
    (tmp_path / "self").mkdir()
    assert find_vmms(tmp_path) == []


def test_a_system_without_proc_has_no_vms(tmp_path: Path) -> None:
    assert find_vmms(tmp_path / "proc") == []


@pytest.mark.parametrize("content", ["{", "[]", '{"vsock": null}', '{"vsock": {"uds_path": 3}}'])
def test_a_firecracker_with_a_malformed_file_is_skipped(tmp_path: Path, content: str) -> None:
    (tmp_path / "vm.json").write_text(content)
    process(tmp_path / "proc", 7, ["firecracker", "--config-file", f"{tmp_path}/vm.json"])
    assert find_vmms(tmp_path / "proc") == []


@pytest.mark.parametrize("name", ["/dev/zero", "fifo"])
def test_a_firecracker_whose_file_has_no_end_is_skipped(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    process(tmp_path / "proc", 7, ["firecracker", "--config-file", str(tmp_path / name)])
    assert find_vmms(tmp_path / "proc") == []


def test_a_command_line_with_deep_json_is_skipped(tmp_path: Path) -> None:
    deep = '{"vhost-vsock":' + "[" * 60_000
    process(tmp_path, 7, [QEMU, "-device", deep])
    assert find_vmms(tmp_path) == []


def test_a_jailed_firecrackers_socket_is_below_its_root(tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    jail.mkdir()
    (jail / "vm.json").write_text('{"vsock": {"guest_cid": 3, "uds_path": "v.sock"}}')
    words = ["/firecracker", "--id", "fc1", "--config-file", "/vm.json"]
    process(tmp_path / "proc", 9, words, folder=str(jail), root=str(jail))
    mux = Mux(f"{jail}/v.sock")
    assert find_vmms(tmp_path / "proc") == [VmmProcess("firecracker", "fc1", mux, mux)]


# ---- the sources ----


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Return the paths of sources that do not exist."""
    (tmp_path / "proc").mkdir()
    return Places(
        proc=tmp_path / "proc",
        libvirt=(),
        machined=(f"{tmp_path}/machined",),
        incus=(f"{tmp_path}/incus", f"{tmp_path}/lxd"),
    )


async def test_every_vm_has_a_line_for_the_configuration(places: Places, tmp_path: Path) -> None:
    process(places.proc, 7, ["cloud-hypervisor", "--vsock", "cid=3,socket=/tmp/c h"])
    machines = fake_machined({"web 01": {"vSockCid": 8}, "box": {}, "3": {"vSockCid": 9}})
    instances = [
        instance("web", "41"),
        instance("old", "42", status="Stopped"),
        instance("other", "43") | {"project": "p"},
    ]
    with fake_incus(tmp_path / "incus", instances):
        async with fake_server(tmp_path / "machined", machines):
            vms, errors = await survey(places)
    assert [(vm.source, vm.line, str(vm.at)) for vm in vms] == [
        ("cloud-hypervisor", 'vm-7 = { mux = "/tmp/c h" }', 'mux = "/tmp/c h"'),
        ("machined", 'web-01 = { machine = "web 01" }', "cid = 8"),
        ("machined", 'vm-3 = { machine = "3" }', "cid = 9"),
        ("incus", 'web = { incus = "web" }', "cid = 41"),
        ("incus", 'p-other = { incus = "p/other" }', "cid = 43"),
    ]
    assert errors == []


async def test_a_source_that_cannot_be_examined_hides_no_vm(places: Places, tmp_path: Path) -> None:
    for name in ("machined", "incus", "libvirt"):
        (tmp_path / name).symlink_to("x" * 300)  # stat(2) fails for every user
    process(places.proc, 7, [QEMU, "-device", "vhost-vsock-pci,guest-cid=3"])
    vms, errors = await survey(replace(places, libvirt=(f"{tmp_path}/libvirt",)))
    assert [vm.line for vm in vms] == ["vm-7 = { cid = 3 }"]
    assert errors == []


async def test_a_source_with_a_defect_hides_no_vm(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(_path: str) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(surveying, "_from_incus", defect)
    (tmp_path / "incus").touch()
    process(places.proc, 7, [QEMU, "-device", "vhost-vsock-pci,guest-cid=3"])
    vms, errors = await survey(places)
    assert [vm.line for vm in vms] == ["vm-7 = { cid = 3 }"]
    assert errors == [f"{tmp_path}/incus cannot be asked: MemoryError: no memory"]


async def test_a_source_that_does_not_answer_hides_no_other_source(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveying, "_TIMEOUT", 0.5)
    process(places.proc, 7, [QEMU, "-device", "vhost-vsock-pci,guest-cid=3"])
    stuck = fake_server(tmp_path / "machined", fake_busy_monitor)
    async with stuck, fake_server(tmp_path / "incus", fake_answer(b"SSH-2.0\r\n")):
        vms, errors = await survey(places)
    assert [vm.line for vm in vms] == ["vm-7 = { cid = 3 }"]
    assert len(errors) == 2
    assert errors[0].startswith(f"{tmp_path}/incus cannot be asked")
    assert errors[1] == f"{tmp_path}/machined did not answer within 0.5 s"


@pytest.mark.parametrize("name", ["web", "web 01", "3", "host", "vsock-mux", "", "-x", "ä", "a/b"])
def test_every_vm_gets_a_name_that_the_configuration_accepts(name: str) -> None:
    routes = forward_config(
        [("1", f"{guest_name(name)}:1")], {"guests": {guest_name(name): {"cid": 3}}}
    )
    assert len(routes.routes) == 1


# ---- the command ----


def test_the_command_shows_each_guests_address_or_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "cid").write_text("17\n")
    (tmp_path / "c.toml").write_text(
        f"""
forward.80 = "web:80"
[guests]
web = {{ file = "{tmp_path}/cid" }}
db = {{ file = "{tmp_path}/none" }}
fixed = {{ cid = 3 }}
"""
    )
    done = command("guests", "-c", f"{tmp_path}/c.toml")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "Guests of the configuration:",
        f'  web    file = "{tmp_path}/cid"',
        "         -> cid = 17",
        f'  db     file = "{tmp_path}/none"',
        f"         -> not found: the file {tmp_path}/none does not exist: is the VM running?",
        "  fixed  cid = 3",
    ]
    done = command("guests", "--json", "-c", f"{tmp_path}/c.toml")
    web, db, fixed = json.loads(done.stdout)["guests"]
    assert (web["at"], web["error"]) == ("cid = 17", None)
    assert (db["at"], db["error"][:8]) == (None, "the file")
    assert fixed == {
        "name": "fixed",
        "locator": "cid = 3",
        "at": "cid = 3",
        "error": None,
        "is_added": False,
    }


async def test_the_command_shows_guests_added_at_run_time_beside_those_of_the_file(
    tmp_path: Path,
) -> None:
    file, admin = tmp_path / "c.toml", tmp_path / "admin"
    file.write_text(
        f"""
admin.socket = "{admin}"
forward."unix:{tmp_path}/front" = "unix:{tmp_path}/back"
guests.fixed = {{ cid = 3 }}
"""
    )
    async with daemon("run", "-c", file) as running:
        await running.wait_for("ready")
        (tmp_path / "cid").write_text("17\n")
        for entry in (f"file={tmp_path}/cid", "cid=4 to_host=true"):
            name = "found" if "file" in entry else "passed"
            done = command("guest", "add", name, *entry.split(), "-c", file)
            assert done.returncode == 0, done.stderr
        by_file = command("guests", "-c", file)
        assert by_file.stdout.splitlines()[:7] == [
            "Guests of the configuration:",
            "  fixed  cid = 3",
            "",
            "Guests added at run time:",
            f'  found   file = "{tmp_path}/cid"',
            "          -> cid = 17",
            "  passed  cid = 4, to_host = true",
        ]
        by_socket = command("guests", environ={"VSOCKPROXY_ADMIN": str(admin)})
        assert (by_socket.stdout, by_socket.stderr) == (by_file.stdout, "")
        answer = json.loads(command("guests", "--json", "-c", file).stdout)
        assert [(one["name"], one["is_added"]) for one in answer["guests"]] == [
            ("fixed", False),
            ("found", True),
            ("passed", True),
        ]
        assert await running.stop() == 0
    assert command("guests", "-c", file).stdout.splitlines()[:3] == by_file.stdout.splitlines()[:3]


def test_the_command_without_configuration_and_daemon_says_so() -> None:
    done = command("guests")
    assert done.returncode == 0
    assert "no configuration was read, and no daemon found" in done.stderr


def test_a_wrong_configuration_is_an_error_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("guests.web = {}")
    done = command("guests", "-c", f"{tmp_path}/c.toml")
    assert done.returncode == 2
    assert "guests.web: has no address" in done.stderr
