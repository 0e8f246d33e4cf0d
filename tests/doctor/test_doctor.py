"""What the doctor finds: on machines that are only files, and in configurations."""

import errno
import json
import socket
from pathlib import Path

import pytest

from tests.daemon_process import command
from tests.doctor.canned_machine import BARE, GUEST, HOST, KERNEL, machine_tree
from tests.fake_services import as_ordinary_user, hold, mux_server, open_folder
from vsockproxy.address.endpoint import CID_ANY
from vsockproxy.config.load import forward_config
from vsockproxy.config.settings import Config
from vsockproxy.doctor.examination import Attempts, examine
from vsockproxy.doctor.finding import Finding, problem
from vsockproxy.doctor.machine import Machine, look
from vsockproxy.doctor.report import lines_of, summary
from vsockproxy.doctor.sandbox import judge_process
from vsockproxy.doctor.transports import judge_transports, spell_cid, why_no_cid
from vsockproxy.errors import ConfigError

CONFINED: dict[str, str] = {"proc/self/status": "Uid:\t1 1 1 1\nSeccomp:\t2\nNoNewPrivs:\t1\n"}


def routes(*pairs: str, **tables: object) -> Config:
    return forward_config(list(zip(pairs[::2], pairs[1::2], strict=True)), tables)  # type: ignore[arg-type] # plain values


def vsock_findings(
    machine: Machine,
    config: Config | None = None,
    *,
    attempt: int | None = 0,
    cid: int | OSError | None = None,
) -> dict[str, Finding]:
    found = judge_transports(machine, config, attempt=attempt, cid=cid)
    return {finding.subject: finding for finding in found}


def process_findings(machine: Machine, config: Config | None = None) -> dict[str, Finding]:
    return {finding.subject: finding for finding in judge_process(machine, config)}


# --- facts --------------------------------------------------------------------------------


def test_the_facts_are_read_from_the_files_of_a_machine(tmp_path: Path) -> None:
    machine = look(machine_tree(tmp_path, HOST))
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


def test_a_machine_that_says_nothing_is_unknown_and_no_error(tmp_path: Path) -> None:
    assert look(tmp_path) == Machine()


def test_files_full_of_nonsense_are_no_error(tmp_path: Path) -> None:
    garbage = dict.fromkeys(HOST, "\x00�: :: 9" * 50 + "\n-1 -1\n")
    machine = look(machine_tree(tmp_path, garbage))
    list(judge_process(machine, None))
    list(judge_transports(machine, None, attempt=None, cid=None))


def test_folders_in_the_place_of_files_are_no_error(tmp_path: Path) -> None:
    for name in HOST:
        (tmp_path / name).mkdir(parents=True)
    assert look(tmp_path).has_vsock is None


def test_what_an_ordinary_user_may_not_read_is_unknown() -> None:
    with open_folder() as folder:
        machine_tree(folder, HOST)
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(0)
        with as_ordinary_user():
            machine = look(folder)
    assert machine.has_vsock is None
    assert machine.vsock.there
    assert not machine.vsock.usable


def test_a_built_in_module_counts_as_loaded(tmp_path: Path) -> None:
    files = BARE | {
        f"lib/modules/{KERNEL}/modules.builtin": "kernel/drivers/vhost/vhost_vsock.ko\n"
    }
    assert look(machine_tree(tmp_path, files)).has("vhost_vsock")


def test_a_kernel_without_modules_shows_its_transports_at_work(tmp_path: Path) -> None:
    (tmp_path / "sys/bus/virtio/drivers/vmw_vsock_virtio_transport").mkdir(parents=True)
    machine = look(machine_tree(tmp_path, {"proc/misc": "241 vhost-vsock\n258 vsock\n"}))
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
def test_a_container_is_told_by_what_its_manager_left(
    tmp_path: Path, files: dict[str, str], kind: str
) -> None:
    assert look(machine_tree(tmp_path, HOST | files)).container == kind


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
def test_a_vm_is_told_by_its_firmware(tmp_path: Path, vendor: str, product: str, kind: str) -> None:
    names = {"sys/class/dmi/id/sys_vendor": vendor, "sys/class/dmi/id/product_name": product}
    assert look(machine_tree(tmp_path, HOST | names)).vm == kind


# --- AF_VSOCK -----------------------------------------------------------------------------


def test_a_host_where_all_is_well_has_no_problem(tmp_path: Path) -> None:
    found = vsock_findings(look(machine_tree(tmp_path, HOST)), cid=2)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["own CID"].text == "2: a host of VMs, which reach it as CID 2"


def test_a_host_without_modules_is_told_what_to_load(tmp_path: Path) -> None:
    machine = look(machine_tree(tmp_path, BARE))
    found = vsock_findings(machine, routes("8080", "3:80"), attempt=errno.EAFNOSUPPORT)
    assert found["AF_VSOCK"].level == "problem"
    assert found["AF_VSOCK"].remedy.startswith("modprobe vsock;")
    assert found["to guests"].level == "problem"
    assert found["to guests"].remedy.startswith("modprobe vhost_vsock;")


def test_a_kernel_that_comes_without_the_module_is_named(tmp_path: Path) -> None:
    files = BARE | {f"lib/modules/{KERNEL}/modules.dep": "kernel/fs/ext4/ext4.ko:\n"}
    found = vsock_findings(look(machine_tree(tmp_path, files)), routes("8080", "3:80"))
    assert f"this kernel ({KERNEL}) comes without vhost_vsock" in found["to guests"].remedy


def test_what_no_route_needs_is_no_problem(tmp_path: Path) -> None:
    machine = look(machine_tree(tmp_path, BARE))
    config = routes("8080", "vsock-mux:/run/vm.sock:80")
    found = vsock_findings(machine, config, attempt=None)
    assert {finding.level for finding in found.values()} <= {"ok", "note"}


def test_a_route_to_cid_1_needs_the_loopback(tmp_path: Path) -> None:
    files = HOST | {"proc/modules": "vhost_vsock 1 0 - Live 0x0\nvsock 1 0 - Live 0x0\n"}
    found = vsock_findings(look(machine_tree(tmp_path, files)), routes("8080", "1:80"))
    assert found["loopback"].level == "problem"
    assert found["loopback"].remedy.startswith("modprobe vsock_loopback")


def test_a_vm_with_a_device_and_no_driver_is_told_so(tmp_path: Path) -> None:
    files = GUEST | {"proc/modules": "vsock 49152 1 - Live 0x0\n"}
    machine = look(machine_tree(tmp_path, files))
    assert vsock_findings(machine)["to the host"].level == "note"
    found = vsock_findings(machine, routes("8080", "2:80"))["to the host"]
    assert found.level == "problem"
    assert found.remedy.startswith("modprobe vmw_vsock_virtio_transport")


def test_a_route_to_the_hypervisor_needs_a_vm(tmp_path: Path) -> None:
    machine = look(machine_tree(tmp_path, HOST))
    config = routes("8080", "vsock:5:80,to_host")
    assert vsock_findings(machine, config)["to the host"].level == "problem"


def test_a_guest_whose_cid_is_looked_up_wants_what_any_guest_wants(tmp_path: Path) -> None:
    machine = look(machine_tree(tmp_path, BARE))
    for guest, is_vsock in (({"qmp": "/q"}, True), ({"mux": "/run/*/v"}, False)):
        config = routes("8080", "web:80", guests={"web": guest})
        found = vsock_findings(machine, config, attempt=errno.EAFNOSUPPORT)
        assert (found["to guests"].level == "problem") == is_vsock
        assert (found["AF_VSOCK"].level == "problem") == is_vsock


def test_a_guest_that_runs_no_vms_lacks_nothing(tmp_path: Path) -> None:
    found = vsock_findings(look(machine_tree(tmp_path, GUEST)), cid=5)
    assert not [one for one in found.values() if one.level == "problem"]
    assert found["own CID"].text == "5: a guest, which its host reaches as CID 5"


@pytest.mark.parametrize(
    ("files", "code", "remedy"),
    [
        ({".dockerenv": ""}, errno.EPERM, "seccomp-vsock.json"),
        ({"proc/self/status": "Seccomp:\t2\n"}, errno.EAFNOSUPPORT, "RestrictAddressFamilies="),
        ({"proc/self/attr/current": "box (enforce)"}, errno.EACCES, "profile that allows"),
        ({}, errno.EPERM, "dmesg"),
    ],
)
def test_a_family_that_is_denied_has_the_remedy_of_who_denies_it(
    tmp_path: Path, files: dict[str, str], code: int, remedy: str
) -> None:
    machine = look(machine_tree(tmp_path, HOST | files))
    found = vsock_findings(machine, attempt=code)["AF_VSOCK"]
    assert found.level == "problem"
    assert errno.errorcode[code] in found.text
    assert remedy in found.remedy


def test_in_a_container_the_modules_are_the_machines_to_load(tmp_path: Path) -> None:
    machine = look(machine_tree(tmp_path, BARE | {".dockerenv": ""}))
    found = vsock_findings(machine, routes("8080", "3:80"))["to guests"]
    assert found.remedy == "on the machine that runs the container: modprobe vhost_vsock"


@pytest.mark.parametrize("mode", ["global", "local"])
def test_the_namespace_is_told_where_the_kernel_has_it(tmp_path: Path, mode: str) -> None:
    files = HOST | {"proc/sys/net/vsock/ns_mode": f"{mode}\n"}
    found = vsock_findings(look(machine_tree(tmp_path, files)))["namespace"]
    assert mode in found.text
    assert found.level == ("note" if mode == "local" else "ok")


def test_a_cid_is_spelt_or_why_there_is_none() -> None:
    assert spell_cid(3).startswith("3: a guest")
    assert "itself" in spell_cid(1)
    assert spell_cid(CID_ANY).startswith("none")
    assert "not there" in why_no_cid(FileNotFoundError(errno.ENOENT, "x"))
    assert "sudo" in why_no_cid(PermissionError(errno.EACCES, "x"))
    assert "ioctl" in why_no_cid(OSError(errno.ENOTTY, "ioctl"))


# --- the process --------------------------------------------------------------------------


def test_listening_below_the_first_port_needs_a_capability(tmp_path: Path) -> None:
    config = routes("443", "tcp:8443", "vsock::22", "tcp:8022", "8080", "tcp:8081")
    found = process_findings(look(machine_tree(tmp_path, HOST)), config)["low ports"]
    assert found.level == "problem"
    assert "tcp:443, vsock:any:22: " in found.text
    capable = HOST | {"proc/self/status": "CapEff:\t0000000000000400\n"}
    assert process_findings(look(machine_tree(tmp_path, capable)), config)["low ports"].level == (
        "ok"
    )


def test_the_sysctl_opens_low_ports_to_everybody(tmp_path: Path) -> None:
    files = HOST | {"proc/sys/net/ipv4/ip_unprivileged_port_start": "0\n"}
    found = process_findings(look(machine_tree(tmp_path, files)), routes("443", "tcp:8443"))
    assert found["low ports"].level == "ok"


def test_fewer_descriptors_than_connections_are_a_problem(tmp_path: Path) -> None:
    files = HOST | {"proc/self/limits": "Max open files            1024     2048     files\n"}
    machine = look(machine_tree(tmp_path, files))
    config = routes("8080", "tcp:81", limits={"max_connections": 5000})
    found = process_findings(machine, config)["descriptors"]
    assert found.level == "problem"
    assert "992 connections" in found.text
    assert "LimitNOFILE=10128" in found.remedy
    assert process_findings(machine)["descriptors"].level == "note"


def test_a_sandbox_is_noted(tmp_path: Path) -> None:
    found = process_findings(look(machine_tree(tmp_path, HOST | CONFINED)))["sandbox"]
    assert "seccomp" in found.text
    assert "privileges" in found.text


# --- the whole round ----------------------------------------------------------------------

NO_VSOCK = Attempts(open_vsock=lambda: 0, read_cid=lambda: 2)


async def findings(
    tmp_path: Path, config: Config | ConfigError | None, attempts: Attempts | None = NO_VSOCK
) -> list[Finding]:
    return await examine(config, machine=look(machine_tree(tmp_path, HOST)), attempts=attempts)


async def test_a_broken_guest_is_a_problem_and_the_one_beside_it_is_not(tmp_path: Path) -> None:
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
    told = {one.subject: one for one in found}
    assert told["route 8080"].level == "ok"
    assert told["route 8081"].level == "problem"
    assert "start the VM" in told["route 8081"].remedy
    assert told["route 8082 (+1)"].level == "ok"
    assert summary(found).startswith("1 problem")


async def test_every_error_of_a_configuration_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        routes("8080", "3:99999999999", "8081", "nobody:80")
    found = await findings(tmp_path, caught.value)
    wrong = [one.text for one in found if one.subject == "configuration"]
    assert len(wrong) == 2
    assert "99999999999" in wrong[0]


async def test_a_guest_by_name_says_where_it_is_or_why_it_is_not_found(tmp_path: Path) -> None:
    guests = {
        "up": {"mux": f"{tmp_path}/up-*.sock"},
        "down": {"mux": f"{tmp_path}/down-*.sock"},
    }
    async with mux_server(tmp_path / "up-1.sock", {80: hold}):
        found = await findings(tmp_path, routes("8080", "up:80", guests=guests))
    told = {one.subject: one for one in found}
    assert told["route 8080"].level == "ok"
    assert told["guest up"].text == f"is at {tmp_path}/up-1.sock"
    assert told["guest down"].level == "note"
    assert "down-*.sock" in told["guest down"].text


@pytest.mark.parametrize("confined", [True, False])
async def test_without_a_configuration_a_socket_is_tried_where_something_may_deny_it(
    tmp_path: Path, *, confined: bool
) -> None:
    tried: list[bool] = []

    def try_it() -> int:
        tried.append(True)
        return 0

    attempts = Attempts(open_vsock=try_it, read_cid=lambda: 2)
    machine = look(machine_tree(tmp_path, HOST | (CONFINED if confined else {})))
    await examine(None, machine=machine, attempts=attempts)
    assert tried == [True] * confined


async def test_no_socket_is_tried_for_a_configuration_without_vsock(tmp_path: Path) -> None:
    def never() -> int:
        pytest.fail("nobody needs it")

    attempts = Attempts(open_vsock=never, read_cid=lambda: 2)
    await findings(tmp_path, routes("8080", f"unix:{tmp_path}/s"), attempts)


async def test_another_machines_files_are_judged_without_dialling(tmp_path: Path) -> None:
    found = await findings(tmp_path, routes("8080", f"unix:{tmp_path}/s"), None)
    assert not [one for one in found if one.subject.startswith(("route", "pump", "own"))]


def test_a_finding_fits_80_columns_and_its_remedy_is_on_a_line_of_its_own() -> None:
    found = problem("route with-a-long-name", " ".join(["word"] * 40), "modprobe vhost_vsock")
    lines = list(lines_of(found))
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("problem  route with-a-long-name")
    assert lines[-1].strip() == "-> modprobe vhost_vsock"


# --- the command --------------------------------------------------------------------------


def test_doctor_is_status_1_with_problems(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[forward]\n8080 = "3:80"\n')
    root = machine_tree(tmp_path / "machine", BARE)
    done = command("doctor", "-c", file, "--root", root)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("2 problems")
    assert max(len(line) for line in done.stdout.splitlines() if str(file) not in line) <= 80
    told = json.loads(command("doctor", "-c", file, "--root", root, "--json").stdout)
    assert told["problems"] == 2
    assert {"level", "subject", "text", "remedy"} == set(told["findings"][0])


def test_doctor_is_status_0_when_nothing_is_wrong(tmp_path: Path) -> None:
    done = command("doctor", "--root", machine_tree(tmp_path, HOST))
    assert done.returncode == 0
    assert "nothing is wrong" in done.stdout


def test_doctor_asks_this_machine_and_dials_its_targets(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[forward]\n8080 = "unix:{tmp_path}/gone"\n')
    done = command("doctor", "-c", file)
    assert done.returncode == 1
    assert "does not exist" in done.stdout
    assert "pump" in done.stdout
