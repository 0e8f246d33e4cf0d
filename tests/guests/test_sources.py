"""The sources that are services: QEMU's monitor, systemd-machined, Incus and LXD, libvirt."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import get_args

import pytest

from tests.daemon_process import REPOSITORY
from tests.fake_services import dead_unix_socket, full_unix_listener, says
from tests.guests.fake_hypervisors import (
    FakeQemuMonitor,
    Serve,
    fake_answer,
    fake_busy_monitor,
    fake_incus,
    fake_machined,
    fake_server,
    instance,
)
from tests.guests.look_ups import UNREACHABLE, find, look_up_error
from tests.kernel.boot import skip_or_fail
from vsockproxy.config.guest import (
    Cid,
    DynamicLocator,
    Incus,
    Libvirt,
    Machine,
    Qmp,
    StaticLocator,
)
from vsockproxy.config.load import load_config
from vsockproxy.guests import incus, machined

# ---- QEMU's monitor ----

VSOCK = ("child<vhost-vsock-pci>", {"guest-cid": 17})
DISK: tuple[str, dict[str, object]] = ("child<virtio-blk-pci>", {})


@pytest.mark.parametrize(
    "place", ["/machine/peripheral/vsock0", "/machine/peripheral-anon/device[1]"]
)
async def test_the_cid_is_read_from_qemus_monitor_at_each_look_up(
    tmp_path: Path, place: str
) -> None:
    monitor = FakeQemuMonitor({"/machine/peripheral/disk": DISK, place: VSOCK})
    async with fake_server(tmp_path / "qmp", monitor.serve):
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
            "answers 0, which is not a guest's CID",
        ),
        (
            {"/machine/peripheral/v": (VSOCK[0], {"guest-cid": None})},
            "answers 'None', which is not a CID",
        ),
    ],
)
async def test_a_vm_without_exactly_one_cid_is_an_error(
    tmp_path: Path, tree: dict[str, tuple[str, dict[str, object]]], words: str
) -> None:
    async with fake_server(tmp_path / "qmp", FakeQemuMonitor(tree).serve):
        assert words in await look_up_error(Qmp(f"{tmp_path}/qmp"))


GREETED = b'{"QMP": {}}\r\n{"return": {}}\r\n'


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (fake_answer(b"SSH-2.0-OpenSSH\r\n"), "does not speak its protocol"),
        (fake_answer(b"[]\n"), "does not speak its protocol"),
        (fake_answer(b'{"return": {}}\n'), "does not speak its protocol"),
        (fake_answer(b"[" * 100_000 + b"\n"), "does not speak its protocol"),
        (fake_answer(b"x" * 2_000_000), "sent a document of more than 1048576 bytes"),
        (fake_answer(GREETED + b'{"return": [{"name": 3}]}\n'), "does not speak its protocol"),
        (fake_answer(GREETED + b'{"return": 3}\n'), "does not speak its protocol"),
        (fake_answer(GREETED + b'{"error": {"desc": "no"}}\n'), "rejected qom-list: no"),
        (fake_answer(GREETED + b'{"error": 3}\n'), "rejected qom-list: 3"),
    ],
)
async def test_a_server_that_is_not_a_monitor_is_an_error(
    tmp_path: Path, serve: Serve, words: str
) -> None:
    async with fake_server(tmp_path / "qmp", serve):
        assert words in await look_up_error(Qmp(f"{tmp_path}/qmp"))


async def test_a_missing_busy_closed_and_dead_monitor_have_different_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.guests.qmp._GREETED_WITHIN", 0.05)
    locator = Qmp(f"{tmp_path}/qmp")
    assert "does not exist" in await look_up_error(locator)
    async with fake_server(tmp_path / "qmp", fake_busy_monitor):
        assert "does not greet: another client may use it" in await look_up_error(locator)
    async with fake_server(tmp_path / "qmp", says(b"")):
        assert "closed the connection" in await look_up_error(locator)
    dead_unix_socket(tmp_path / "qmp")
    assert "nothing listens there" in await look_up_error(locator)


async def test_a_monitor_with_an_abstract_name_is_asked(tmp_path: Path) -> None:
    name = f"@{tmp_path}/qmp"
    async with fake_server(Path(name), FakeQemuMonitor({"/machine/peripheral/v": VSOCK}).serve):
        assert await find(Qmp(name)) == Cid(17)


async def test_a_monitor_with_a_full_backlog_is_told_from_one_that_hangs_up(tmp_path: Path) -> None:
    with full_unix_listener(tmp_path / "qmp"):
        assert "no room for another client" in await look_up_error(Qmp(f"{tmp_path}/qmp"))


# ---- systemd-machined ----


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the sockets of machined by two in a folder, which is returned."""
    monkeypatch.setattr(machined, "sockets", lambda: [f"{tmp_path}/user", f"{tmp_path}/system"])
    return tmp_path


async def test_the_users_machined_is_asked_before_the_systems(run: Path) -> None:
    assert f"does not listen at {run}/user or {run}/system" in await look_up_error(Machine("web01"))
    system = fake_machined({"web01": {"vSockCid": 7}, "db": {"vSockCid": 8}})
    async with fake_server(run / "system", system):
        assert await find(Machine("web01")) == Cid(7)
        async with fake_server(run / "user", fake_machined({"web01": {"vSockCid": 9}})):
            assert await find(Machine("web01")) == Cid(9)
            assert await find(Machine("db")) == Cid(8)
            words = await look_up_error(Machine("wep"))
            assert words == "no running machine is named 'wep': `machinectl list` shows them"


async def test_a_socket_path_that_cannot_be_examined_is_skipped(
    run: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "user").symlink_to(UNREACHABLE)
    (store / "incus").symlink_to(UNREACHABLE)
    async with fake_server(run / "system", fake_machined({"web01": {"vSockCid": 7}})):
        assert await find(Machine("web01")) == Cid(7)
    with fake_incus(store / "lxd", [instance("web01", "41")]):
        assert await find(Incus("web01")) == Cid(41)


def test_the_sockets_of_machined_are_in_the_users_runtime_folder_and_in_run() -> None:
    assert machined.sockets({}) == ["/run/systemd/machine/io.systemd.Machine"]
    assert machined.sockets({"XDG_RUNTIME_DIR": "/run/user/1000"}) == [
        "/run/user/1000/systemd/machine/io.systemd.Machine",
        "/run/systemd/machine/io.systemd.Machine",
    ]


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (fake_machined({"web01": {}}), "has no vsock CID: it is a container"),
        (fake_machined({"web01": {"vSockCid": None}}), "has no vsock CID"),
        (fake_machined({"web01": {"vSockCid": 4294967295}}), "has no vsock CID"),
        (fake_machined({"web01": {"vSockCid": 2}}), "not a guest's CID"),
        (
            fake_answer(b'{"error": "org.varlink.service.MethodNotFound"}\0'),
            "systemd 257 or later is needed",
        ),
        (fake_answer(b'{"error": "io.systemd.Busy"}\0'), "answers io.systemd.Busy"),
        (fake_answer(b"{}\0"), "does not speak its protocol"),
        (fake_answer(b"HTTP/1.1 400\0"), "does not speak its protocol"),
    ],
)
async def test_an_answer_of_machined_without_a_cid_is_an_error(
    run: Path, serve: Serve, words: str
) -> None:
    async with fake_server(run / "system", serve):
        assert words in await look_up_error(Machine("web01"))


# ---- Incus and LXD ----


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the sockets of Incus and LXD by two in a folder, which is returned."""
    monkeypatch.setattr(incus, "SOCKETS", (f"{tmp_path}/incus", f"{tmp_path}/lxd"))
    return tmp_path


async def test_the_cid_of_a_running_virtual_machine_is_read_from_incus(store: Path) -> None:
    assert "neither Incus nor LXD listens" in await look_up_error(Incus("web01"))
    with fake_incus(
        store / "incus", [instance("web01", "41"), instance("c", None, kind="container")]
    ):
        assert await find(Incus("web01")) == Cid(41)
        assert "is not a virtual machine" in await look_up_error(Incus("c"))
        words = await look_up_error(Incus("other/web01"))
        assert words == "no instance is named 'other/web01': `incus list` shows them"


async def test_the_cid_of_a_stopped_instance_is_ignored(store: Path) -> None:
    with fake_incus(store / "incus", [instance("web01", "41", status="Stopped")]):
        words = await look_up_error(Incus("web01"))
        assert words == "the instance 'web01' is Stopped: incus start web01"


async def test_an_instance_with_different_cids_in_incus_and_lxd_is_an_error(store: Path) -> None:
    with fake_incus(store / "incus", [instance("web01", "41")]):
        with fake_incus(store / "lxd", [instance("web01", "41")]):
            assert await find(Incus("web01")) == Cid(41)  # two sockets of one daemon
        with fake_incus(store / "lxd", [instance("web01", "42")]):
            assert "both have an instance 'web01'" in await look_up_error(Incus("web01"))
        with fake_incus(store / "lxd", []):
            assert await find(Incus("web01")) == Cid(41)


@pytest.mark.parametrize("places", [("incus", "lxd"), ("lxd", "incus")])
async def test_a_virtual_machine_of_one_is_found_whatever_the_other_one_says(
    store: Path, places: tuple[str, str]
) -> None:
    here, other = places
    with fake_incus(store / here, [instance("web01", "41")]):
        dead_unix_socket(store / other)
        assert await find(Incus("web01")) == Cid(41)
        (store / other).unlink()
        with fake_incus(store / other, [instance("web01", "42", status="Stopped")]):
            assert await find(Incus("web01")) == Cid(41)


async def test_an_error_a_dead_socket_and_another_server_for_incus_are_errors(store: Path) -> None:
    with fake_incus(store / "incus", [], status=403):
        assert await look_up_error(Incus("web01")) == f"{store}/incus refuses: Forbidden"
    dead_unix_socket(store / "incus")
    assert "cannot be asked: Connection refused" in await look_up_error(Incus("web01"))
    (store / "incus").unlink()
    for said in (b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"):
        async with fake_server(store / "incus", fake_answer(said)):
            words = await look_up_error(Incus("web01"))
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
    """Return the URI of a host of libvirt's test driver with two running domains."""
    if importlib.util.find_spec("libvirt") is None:
        skip_or_fail("install libvirt-dev and pkg-config, then: pip install -e '.[libvirt]'")
    vsock = "<vsock model='virtio'><cid auto='yes' address='23'/></vsock>"
    domains = DOMAIN.format(name="web01", device=vsock) + DOMAIN.format(name="plain", device="")
    (tmp_path / "node.xml").write_text(f"<node>{domains}</node>")
    return f"test://{tmp_path}/node.xml"


async def test_the_cid_is_read_from_the_live_description_of_a_domain(uri: str) -> None:
    assert await find(Libvirt("web01", uri)) == Cid(23)
    assert "'plain' has no vsock device" in await look_up_error(Libvirt("plain", uri))
    assert f"no domain is named 'x': `virsh -c {uri} list" in await look_up_error(Libvirt("x", uri))


async def test_a_restarted_domain_has_its_new_cid(uri: str) -> None:
    import libvirt  # noqa: PLC0415 - an extra

    locator = Libvirt("again", "test:///default")
    host = libvirt.open("test:///default")  # exists while a connection is open
    try:
        for cid in (31, 32):
            vsock = f"<vsock model='virtio'><cid auto='no' address='{cid}'/></vsock>"
            domain = host.defineXML(DOMAIN.format(name="again", device=vsock))
            assert "is not running: virsh" in await look_up_error(locator)
            domain.create()
            assert await find(locator) == Cid(cid)
            domain.destroy()
            domain.undefine()
    finally:
        host.close()


async def test_a_libvirt_that_does_not_answer_is_an_error_and_prints_nothing(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    words = await look_up_error(Libvirt("web01", "qemu+tcp://127.0.0.1:1/system"))
    assert "unable to connect to server" in words
    assert capfd.readouterr() == ("", "")


async def test_without_the_binding_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    assert "pip install 'vsockproxy[libvirt]'" in await look_up_error(Libvirt("web01"))


# ---- the example ----


def test_the_example_configuration_has_every_kind_of_locator() -> None:
    config = load_config(REPOSITORY / "config" / "guests.toml")
    locators = {type(guest.locator) for guest in config.guests}
    assert locators == {*get_args(StaticLocator), *get_args(DynamicLocator)}
    assert [str(route.target) for route in config.routes] == [
        "vsock:3:80",
        "vsock-mux:/run/firecracker/vm1.sock:80",
        "pod:80",
        "unix:/run/vm1/vsock-80.sock",
        *(f"{name}:80" for name in ("domain", "qemu", "vmspawn", "incus", "written", "printed")),
    ]
