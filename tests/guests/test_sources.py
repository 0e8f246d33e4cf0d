"""What each source says of a guest, and the words for what it cannot say."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import get_args

import pytest
import trio

from tests.daemon_process import REPOSITORY
from tests.fake_services import as_ordinary_user, dead_unix_socket, open_folder, says
from tests.guests.fake_hypervisors import Monitor, Talk, instance, says_nothing, says_once, talking
from tests.guests.fake_hypervisors import incus as serves_instances
from tests.guests.fake_hypervisors import machined as serves_machines
from tests.kernel.boot import skip_or_fail
from vsockproxy.config.guest import (
    Cid,
    CidFile,
    Command,
    DynamicWay,
    Incus,
    Libvirt,
    Machine,
    Mux,
    MuxGlob,
    Qmp,
    StaticWay,
)
from vsockproxy.config.load import load_config
from vsockproxy.guests import incus, machined
from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.sources import look_up

UNREACHABLE = "x" * 300
"""No name of a file is as long: stat(2) of a link to it fails, whoever asks."""


async def find(way: DynamicWay) -> Cid | Mux:
    with trio.fail_after(30):
        return await look_up(way, trio.CapacityLimiter(1))


async def complaint(way: DynamicWay) -> str:
    with pytest.raises(GuestError) as caught:
        await find(way)
    return str(caught.value)


# ---- what is a CID ----


@pytest.mark.parametrize("answer", [3, "3", " 3\n", 4294967294, "4294967294"])
def test_a_guests_cid_is_a_number_or_its_digits(answer: object) -> None:
    assert checked_cid(answer, "it") == int(str(answer))


@pytest.mark.parametrize(
    "answer",
    ["", "web", "-3", "3.0", "0x3", "\u0663", "3 4", True, None, 3.0, [], "1" * 5000, -3],
)
def test_what_is_no_number_is_no_cid(answer: object) -> None:
    with pytest.raises(GuestError, match=r"^it says .* which is no CID$"):
        checked_cid(answer, "it")


@pytest.mark.parametrize("answer", [0, 1, 2, 4294967295, 4294967296, 10**19])
def test_the_hosts_own_numbers_and_any_are_no_guests(answer: int) -> None:
    with pytest.raises(GuestError, match=r"no guest's CID: 3 to 4294967294$"):
        checked_cid(answer, "it")


# ---- files ----


async def test_a_cid_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "cid").write_text("17\n")
    assert await find(CidFile(f"{tmp_path}/cid")) == Cid(17)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: is the VM running?"),
        (b"\n", "is empty: is the VM running?"),
        (b"CID=3", "says 'CID=3', which is no CID"),
        (b"\xff\xfe", "which is no CID"),
        (b"2", "says 2, which is no guest's CID: 3 to 4294967294"),
        (b"3" * 4096, "which is no CID"),
    ],
)
async def test_a_file_that_has_no_cid_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "cid").write_bytes(content)
    assert words in await complaint(CidFile(f"{tmp_path}/cid"))


async def test_a_file_that_is_not_there_or_not_ours_is_told_apart(tmp_path: Path) -> None:
    assert "does not exist: is the VM running?" in await complaint(CidFile(f"{tmp_path}/cid"))
    assert "Is a directory" in await complaint(CidFile(f"{tmp_path}"))
    with open_folder() as folder:
        (folder / "cid").write_text("3")
        (folder / "cid").chmod(0)
        with as_ordinary_user():
            assert "Permission denied" in await complaint(CidFile(f"{folder}/cid"))


async def test_a_fifo_that_nobody_writes_to_is_empty_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cid")
    assert "is empty" in await complaint(CidFile(f"{tmp_path}/cid"))


async def test_a_pattern_wants_one_socket(tmp_path: Path) -> None:
    pattern = MuxGlob(f"{tmp_path}/vm-*", "none")
    (tmp_path / "vm-log").write_text("not a socket")
    assert "no socket matches" in await complaint(pattern)
    dead_unix_socket(tmp_path / "vm-1")
    assert await find(pattern) == Mux(f"{tmp_path}/vm-1", "none")
    for name in ("vm-2", "vm-3", "vm-4"):
        dead_unix_socket(tmp_path / name)
    words = await complaint(pattern)
    assert words.startswith(f"4 sockets match {tmp_path}/vm-*, one is wanted: {tmp_path}/vm-1, ")
    assert words.endswith(", ...")


async def test_a_match_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    (tmp_path / "vm-1").symlink_to(UNREACHABLE)
    words = await complaint(MuxGlob(f"{tmp_path}/vm-*", "none"))
    assert words == f"{tmp_path}/vm-1 cannot be looked at: File name too long"


# ---- commands ----


def python(code: str) -> Command:
    return Command((sys.executable, "-S", "-c", code))


async def test_a_cid_is_what_a_command_prints_and_no_shell_reads_it() -> None:
    assert await find(Command(("/bin/echo", "21"))) == Cid(21)
    assert "says '$((1+2))'" in await complaint(Command(("/bin/echo", "$((1+2))")))


async def test_a_command_gets_nothing_but_a_path_and_a_language(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "s")
    code = "import os, sys; print(len(set(os.environ) - {'PATH', 'LANG', 'LC_CTYPE'}) + 3)"
    assert await find(python(f"{code}; assert not sys.stdin.read()")) == Cid(3)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "says '', which is no CID"),
        ("print('web')", "says 'web', which is no CID"),
        ("import sys; sys.exit('first\\nno such VM')", "ended with status 1: no such VM"),
        ("import os; os._exit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("print('1' * 10_000_000)", "prints more than 4096 bytes"),
        ("import sys; sys.exit('x' * 1_000_000 + '\\nno such VM')", "status 1: no such VM"),
    ],
)
async def test_a_command_that_says_no_cid_is_refused(code: str, words: str) -> None:
    assert words in await complaint(python(code))


async def test_a_command_has_answered_when_it_ends_whatever_it_leaves_running() -> None:
    assert await find(Command(("/bin/sh", "-c", "sleep 1000 & echo 21"))) == Cid(21)
    words = await complaint(Command(("/bin/sh", "-c", "sleep 1000 & echo no VM >&2; exit 3")))
    assert words == "/bin/sh ended with status 3: no VM"


async def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "cannot be run: No such file" in await complaint(Command((f"{tmp_path}/x",)))
    (tmp_path / "x").write_text("echo 3")
    assert "cannot be run: Permission denied" in await complaint(Command((f"{tmp_path}/x",)))


async def test_a_command_that_hangs_is_killed_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.guests.command.TIMEOUT", 0.5)
    os.mkfifo(tmp_path / "alive")
    script = f"sleep 1000 <>{tmp_path}/alive >&0 & wait"
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        words = await complaint(Command(("/bin/sh", "-c", script)))
        assert words == "/bin/sh has not answered within 0.5 s"
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(reader)  # the last writer is gone
    finally:
        os.close(reader)


# ---- QEMU's monitor ----

VSOCK = ("child<vhost-vsock-pci>", {"guest-cid": 17})
DISK: tuple[str, dict[str, object]] = ("child<virtio-blk-pci>", {})


@pytest.mark.parametrize(
    "place", ["/machine/peripheral/vsock0", "/machine/peripheral-anon/device[1]"]
)
async def test_a_cid_is_asked_of_qemus_monitor(tmp_path: Path, place: str) -> None:
    monitor = Monitor({"/machine/peripheral/disk": DISK, place: VSOCK})
    async with talking(tmp_path / "qmp", monitor.talk):
        assert await find(Qmp(f"{tmp_path}/qmp")) == Cid(17)
        monitor.tree[place] = ("child<vhost-vsock-pci-non-transitional>", {"guest-cid": 18})
        assert await find(Qmp(f"{tmp_path}/qmp")) == Cid(18)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, "has no vhost-vsock device: start it with -device vhost-vsock-pci,guest-cid=N"),
        ({"/machine/peripheral/v": ("child<vhost-user-vsock-pci>", {})}, "no vhost-vsock device"),
        ({f"/machine/peripheral/{n}": VSOCK for n in "ab"}, "has 2 vhost-vsock devices"),
        (
            {"/machine/peripheral/v": (VSOCK[0], {"guest-cid": 0})},
            "says 0, which is no guest's CID",
        ),
        (
            {"/machine/peripheral/v": (VSOCK[0], {"guest-cid": None})},
            "says 'None', which is no CID",
        ),
    ],
)
async def test_a_vm_without_one_cid_is_refused(
    tmp_path: Path, tree: dict[str, tuple[str, dict[str, object]]], words: str
) -> None:
    async with talking(tmp_path / "qmp", Monitor(tree).talk):
        assert words in await complaint(Qmp(f"{tmp_path}/qmp"))


GREETED = b'{"QMP": {}}\r\n{"return": {}}\r\n'


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (says_once(b"SSH-2.0-OpenSSH\r\n"), "does not speak its protocol"),
        (says_once(b"[]\n"), "does not speak its protocol"),
        (says_once(b'{"return": {}}\n'), "does not speak its protocol"),
        (says_once(b"[" * 100_000 + b"\n"), "does not speak its protocol"),
        (says_once(b"x" * 2_000_000), "says more than 1048576 bytes at once"),
        (says_once(GREETED + b'{"return": [{"name": 3}]}\n'), "does not speak its protocol"),
        (says_once(GREETED + b'{"return": 3}\n'), "does not speak its protocol"),
        (says_once(GREETED + b'{"error": {"desc": "no"}}\n'), "refuses qom-list: no"),
        (says_once(GREETED + b'{"error": 3}\n'), "refuses qom-list: 3"),
    ],
)
async def test_what_is_no_monitor_is_told(tmp_path: Path, talk: Talk, words: str) -> None:
    async with talking(tmp_path / "qmp", talk):
        assert words in await complaint(Qmp(f"{tmp_path}/qmp"))


async def test_a_monitor_that_hangs_up_has_another_client_or_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.guests.qmp._GREETED_WITHIN", 0.05)
    way = Qmp(f"{tmp_path}/qmp")
    assert "is not there" in await complaint(way)
    async with talking(tmp_path / "qmp", says_nothing):
        assert "is silent, as while another client has it" in await complaint(way)
    async with talking(tmp_path / "qmp", says(b"")):
        assert "hung up" in await complaint(way)
    dead_unix_socket(tmp_path / "qmp")
    assert "nobody listens at any more" in await complaint(way)


# ---- systemd-machined ----


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where a user's machined listens; the system's is not looked for."""
    monkeypatch.setattr(machined, "sockets", lambda: [f"{tmp_path}/user", f"{tmp_path}/system"])
    return tmp_path


async def test_machined_is_asked_the_users_first(run: Path) -> None:
    assert f"does not listen at {run}/user or {run}/system" in await complaint(Machine("web01"))
    system = serves_machines({"web01": {"vSockCid": 7}, "db": {"vSockCid": 8}})
    async with talking(run / "system", system):
        assert await find(Machine("web01")) == Cid(7)
        async with talking(run / "user", serves_machines({"web01": {"vSockCid": 9}})):
            assert await find(Machine("web01")) == Cid(9)
            assert await find(Machine("db")) == Cid(8)
            words = await complaint(Machine("wep"))
            assert words == "no running machine is named 'wep': `machinectl list` shows them"


async def test_a_place_that_cannot_be_looked_at_is_passed_over(
    run: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "user").symlink_to(UNREACHABLE)
    (store / "incus").symlink_to(UNREACHABLE)
    async with talking(run / "system", serves_machines({"web01": {"vSockCid": 7}})):
        assert await find(Machine("web01")) == Cid(7)
    with serves_instances(store / "lxd", [instance("web01", "41")]):
        assert await find(Incus("web01")) == Cid(41)


def test_machined_listens_under_the_users_runtime_folder_and_under_run() -> None:
    assert machined.sockets({}) == ["/run/systemd/machine/io.systemd.Machine"]
    assert machined.sockets({"XDG_RUNTIME_DIR": "/run/user/1000"}) == [
        "/run/user/1000/systemd/machine/io.systemd.Machine",
        "/run/systemd/machine/io.systemd.Machine",
    ]


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (serves_machines({"web01": {}}), "has no vsock CID: it is a container"),
        (serves_machines({"web01": {"vSockCid": None}}), "has no vsock CID"),
        (serves_machines({"web01": {"vSockCid": 4294967295}}), "has no vsock CID"),
        (serves_machines({"web01": {"vSockCid": 2}}), "no guest's CID"),
        (says_once(b'{"error": "org.varlink.service.MethodNotFound"}\0'), "wants systemd 257"),
        (says_once(b'{"error": "io.systemd.Busy"}\0'), "says io.systemd.Busy"),
        (says_once(b"{}\0"), "does not speak its protocol"),
        (says_once(b"HTTP/1.1 400\0"), "does not speak its protocol"),
    ],
)
async def test_what_machined_cannot_say_is_told(run: Path, talk: Talk, words: str) -> None:
    async with talking(run / "system", talk):
        assert words in await complaint(Machine("web01"))


# ---- Incus and LXD ----


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where Incus and LXD may listen, and nowhere else."""
    monkeypatch.setattr(incus, "SOCKETS", (f"{tmp_path}/incus", f"{tmp_path}/lxd"))
    return tmp_path


async def test_incus_is_asked_for_a_virtual_machine_that_runs(store: Path) -> None:
    assert "neither Incus nor LXD listens" in await complaint(Incus("web01"))
    with serves_instances(
        store / "incus", [instance("web01", "41"), instance("c", None, kind="container")]
    ):
        assert await find(Incus("web01")) == Cid(41)
        assert "no virtual machine" in await complaint(Incus("c"))
        words = await complaint(Incus("other/web01"))
        assert words == "no instance is named 'other/web01': `incus list` shows them"


async def test_a_cid_of_the_last_start_counts_for_nothing(store: Path) -> None:
    with serves_instances(store / "incus", [instance("web01", "41", status="Stopped")]):
        words = await complaint(Incus("web01"))
        assert words == "the instance 'web01' is Stopped: incus start web01"


async def test_an_instance_of_both_incus_and_lxd_is_ambiguous(store: Path) -> None:
    with serves_instances(store / "incus", [instance("web01", "41")]):
        with serves_instances(store / "lxd", [instance("web01", "41")]):
            assert await find(Incus("web01")) == Cid(41)  # two sockets of one daemon
        with serves_instances(store / "lxd", [instance("web01", "42")]):
            assert "both have an instance 'web01'" in await complaint(Incus("web01"))
        with serves_instances(store / "lxd", []):
            assert await find(Incus("web01")) == Cid(41)


async def test_an_incus_that_refuses_or_is_none_is_told(store: Path) -> None:
    with serves_instances(store / "incus", [], status=403):
        assert await complaint(Incus("web01")) == f"{store}/incus refuses: Forbidden"
    dead_unix_socket(store / "incus")
    assert "cannot be asked: Connection refused" in await complaint(Incus("web01"))
    (store / "incus").unlink()
    for said in (b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"):
        async with talking(store / "incus", says_once(said)):
            words = await complaint(Incus("web01"))
            assert "cannot be asked" in words or "as Incus and LXD do" in words


# ---- libvirt, by its own test driver ----

DOMAIN = """
<domain type='test'>
  <name>{name}</name>
  <memory>8192</memory>
  <os><type>hvm</type></os>
  <devices>{device}</devices>
</domain>
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """A host of libvirt's test driver with two domains that run."""
    if importlib.util.find_spec("libvirt") is None:
        skip_or_fail("install libvirt-dev and pkg-config, then: pip install -e '.[libvirt]'")
    vsock = "<vsock model='virtio'><cid auto='yes' address='23'/></vsock>"
    domains = DOMAIN.format(name="web01", device=vsock) + DOMAIN.format(name="plain", device="")
    (tmp_path / "node.xml").write_text(f"<node>{domains}</node>")
    return f"test://{tmp_path}/node.xml"


async def test_the_cid_is_in_the_live_description_of_a_domain(uri: str) -> None:
    assert await find(Libvirt("web01", uri)) == Cid(23)
    assert "'plain' has no vsock device" in await complaint(Libvirt("plain", uri))
    assert f"no domain is named 'x': `virsh -c {uri} list" in await complaint(Libvirt("x", uri))


async def test_a_domain_that_starts_again_has_the_cid_of_that_start(uri: str) -> None:
    import libvirt  # noqa: PLC0415 - an extra

    way = Libvirt("again", "test:///default")
    host = libvirt.open("test:///default")  # lives as long as somebody is connected
    try:
        for cid in (31, 32):
            vsock = f"<vsock model='virtio'><cid auto='no' address='{cid}'/></vsock>"
            domain = host.defineXML(DOMAIN.format(name="again", device=vsock))
            assert "is not running: virsh" in await complaint(way)
            domain.create()
            assert await find(way) == Cid(cid)
            domain.destroy()
            domain.undefine()
    finally:
        host.close()


async def test_a_libvirt_that_does_not_answer_is_told_and_prints_nothing(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = await complaint(Libvirt("web01", "qemu+tcp://127.0.0.1:1/system"))
    assert "unable to connect to server" in words
    assert capfd.readouterr() == ("", "")


async def test_without_the_binding_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    assert "pip install 'vsockproxy[libvirt]'" in await complaint(Libvirt("web01"))


# ---- the example ----


def test_the_example_has_every_way_there_is() -> None:
    config = load_config(REPOSITORY / "config" / "guests.toml")
    ways = {type(guest.way) for guest in config.guests}
    assert ways == {*get_args(StaticWay), *get_args(DynamicWay)}
    assert [str(route.target) for route in config.routes] == [
        "vsock:3:80",
        "vsock-mux:/run/firecracker/vm1.sock:80",
        "pod:80",
        "unix:/run/vm1/vsock-80.sock",
        *(f"{name}:80" for name in ("domain", "qemu", "vmspawn", "incus", "written", "told")),
    ]
