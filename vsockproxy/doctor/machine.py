"""The facts about a machine, read from files below a root directory.

Owns: the file of each fact.  Judges nothing.  A file may be missing, unreadable or malformed:
the fact is then None or empty.  Sources: proc(5), vsock(7), and the paths that
systemd-detect-virt(1) reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CAP_NET_BIND_SERVICE: Final = 10  # linux/capability.h

_VIRTIO_VSOCK: Final = 0x13  # virtio's device ID of a socket device
_LONGEST: Final = 1 << 20  # bytes read of a file; modules.dep has half of that
_CGROUPS: Final = ("docker", "kubepods", "libpod", "lxc", "containerd")


@dataclass(frozen=True, slots=True)
class Device:
    """A device file: whether it exists, whether this user may open it, and its mode."""

    exists: bool = False
    usable: bool = False
    mode: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts; None means unknown.

    Attributes:
      kernel: its release.
      has_vsock: whether the family is registered (/proc/net/protocols).
      loaded: the modules in the kernel, loaded or built in.
      shipped: the modules of this kernel's package.
      vsock, vhost_vsock: /dev/vsock and /dev/vhost-vsock.
      has_virtio_vsock: whether a VMM gave this machine a vsock device.
      namespace: ns_mode of the network namespace; None before Linux 7.0.
      seccomp: 0 off, 1 strict, 2 filtered (/proc/self/status).
      no_new_privileges: of the process.
      capabilities: the effective ones, as bits.
      user: the effective user's number.
      descriptors: RLIMIT_NOFILE, soft and hard.
      first_port: the lowest TCP port that unprivileged processes may listen on.
      label: the AppArmor profile or SELinux context of a confined process.
      container, vm: the kind of container and VM; empty for none.
    """

    kernel: str = ""
    has_vsock: bool | None = None
    loaded: frozenset[str] | None = None
    shipped: frozenset[str] | None = None
    vsock: Device = Device()
    vhost_vsock: Device = Device()
    has_virtio_vsock: bool = False
    namespace: str | None = None
    seccomp: int | None = None
    no_new_privileges: bool = False
    capabilities: int = 0
    user: int = 0
    descriptors: tuple[int, int] | None = None
    first_port: int = 1024
    label: str = ""
    container: str = ""
    vm: str = ""

    @property
    def may_bind_low_ports(self) -> bool:
        """Return whether the process has CAP_NET_BIND_SERVICE."""
        return bool(self.capabilities >> CAP_NET_BIND_SERVICE & 1)

    def has(self, module: str) -> bool:
        """Return whether a module is known to be in the kernel."""
        return self.loaded is not None and module in self.loaded


def read_machine(root: Path = Path("/")) -> Machine:
    """Return the facts about the machine whose files are below ``root``; never raise."""
    tree = _Tree(root)
    status = dict(_pairs(tree.text("proc/self/status")))
    kernel = tree.text("proc/sys/kernel/osrelease").strip()
    return Machine(
        kernel=kernel,
        has_vsock=_has_vsock(tree),
        loaded=_loaded(tree, kernel),
        shipped=_shipped(tree, kernel),
        vsock=tree.device("dev/vsock"),
        vhost_vsock=tree.device("dev/vhost-vsock"),
        has_virtio_vsock=_has_virtio_vsock(tree),
        namespace=tree.text("proc/sys/net/vsock/ns_mode").strip() or None,
        seccomp=_number(status.get("Seccomp")),
        no_new_privileges=status.get("NoNewPrivs") == "1",
        capabilities=int(_digits(status.get("CapEff"), "[0-9a-fA-F]+") or "0", 16),
        user=_number(status.get("Uid", "").split()[1:2]) or 0,
        descriptors=_descriptors(tree),
        first_port=_first_port(tree),
        label=_label(tree),
        container=_container(tree),
        vm=_vm(tree),
    )


class _Tree:
    """Files below a root; an unreadable one is None or empty."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> str | None:
        # ValueError: a path made from another file's text has a NUL.
        with suppress(OSError, ValueError), (self._root / path).open("rb") as file:
            return file.read(_LONGEST).decode(errors="replace")
        return None

    def text(self, path: str) -> str:
        return self.read(path) or ""

    def names(self, path: str) -> list[str]:
        with suppress(OSError):
            return sorted(entry.name for entry in (self._root / path).iterdir())
        return []

    def has(self, path: str) -> bool:
        with suppress(OSError):
            (self._root / path).stat()
            return True
        return False

    def device(self, path: str) -> Device:
        try:
            mode = (self._root / path).stat().st_mode & 0o777
        except OSError:
            return Device()
        ours = os.access in os.supports_effective_ids
        usable = os.access(self._root / path, os.R_OK, effective_ids=ours)
        return Device(exists=True, usable=usable, mode=mode)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def _digits(value: object, pattern: str = "[0-9]+") -> str:
    """Return a text, or the only text of a list, if it matches; else an empty one."""
    text = "".join(value) if isinstance(value, list) else str(value)
    return text if re.fullmatch(pattern, text) else ""


def _number(value: object) -> int | None:
    digits = _digits(value)
    return int(digits) if digits else None


def _has_vsock(tree: _Tree) -> bool | None:
    table = tree.text("proc/net/protocols")
    return bool(re.search(r"(?m)^AF_VSOCK\s", table)) if table else None


def _loaded(tree: _Tree, kernel: str) -> frozenset[str] | None:
    """Return the modules that are loaded or built in; None if unknown."""
    table = tree.read("proc/modules")
    found = {line.split()[0] for line in (table or "").splitlines() if line.strip()}
    found.update(_modules_in(tree.text(f"lib/modules/{kernel}/modules.builtin")))
    found.update(_active_transports(tree))
    return None if table is None and not found else frozenset(found)


def _active_transports(tree: _Tree) -> set[str]:
    """Return the transports by their drivers in /proc and /sys, where built-in ones appear too."""
    signs = {
        "vhost_vsock": "vhost-vsock" in tree.text("proc/misc").split(),
        "vmw_vsock_virtio_transport": tree.has("sys/bus/virtio/drivers/vmw_vsock_virtio_transport"),
        "hv_sock": tree.has("sys/bus/vmbus/drivers/hv_sock"),
    }
    return {module for module, seen in signs.items() if seen}


def _shipped(tree: _Tree, kernel: str) -> frozenset[str] | None:
    table = tree.text(f"lib/modules/{kernel}/modules.dep") if kernel else ""
    return frozenset(_modules_in(table)) if table else None


def _modules_in(table: str) -> Iterator[str]:
    """Yield the modules in modules.dep or modules.builtin: ``kernel/net/vsock.ko.xz: ...``."""
    for name in re.findall(r"(?m)^(?:\S*/)?([\w-]+)\.ko", table):
        yield name.replace("-", "_")


def _has_virtio_vsock(tree: _Tree) -> bool:
    folder = "sys/bus/virtio/devices"
    devices = (tree.text(f"{folder}/{name}/device") for name in tree.names(folder))
    return any(text.strip() == f"{_VIRTIO_VSOCK:#06x}" for text in devices)


def _descriptors(tree: _Tree) -> tuple[int, int] | None:
    row = re.search(r"(?m)^Max open files +(\d+) +(\d+)", tree.text("proc/self/limits"))
    return (int(row[1]), int(row[2])) if row else None


def _first_port(tree: _Tree) -> int:
    port = _number(tree.text("proc/sys/net/ipv4/ip_unprivileged_port_start").strip())
    return 1024 if port is None else port


def _label(tree: _Tree) -> str:
    """Return a label such as ``docker-default (enforce)``; empty for an unconfined process."""
    label = tree.text("proc/self/attr/current").strip("\0\n ")
    confined = "(enforce)" in label or (":" in label and "unconfined" not in label)
    return label if confined else ""


def _container(tree: _Tree) -> str:
    """Return the kind of container, by the files and variables that its manager sets."""
    named = tree.text("run/systemd/container").strip()
    variables = tree.text("proc/1/environ").split("\0")
    named = named or next((v[10:] for v in variables if v.startswith("container=")), "")
    if named:
        return named
    for name, path in (("docker", ".dockerenv"), ("podman", "run/.containerenv")):
        if tree.has(path):
            return name
    if any(variable.startswith("KUBERNETES_SERVICE_HOST=") for variable in variables):
        return "kubernetes"
    cgroups = tree.text("proc/1/cgroup")
    return next((name for name in _CGROUPS if name in cgroups), "")


_DMI: Final = {
    "QEMU": "qemu",
    "Amazon EC2": "amazon",
    "Google Compute Engine": "google",
    "VMware": "vmware",
    "Microsoft Corporation Virtual Machine": "microsoft",
    "VirtualBox": "virtualbox",
    "Xen": "xen",
    "Apple Virtualization": "apple",
    "Cloud Hypervisor": "cloud-hypervisor",
    "Parallels": "parallels",
}


def _vm(tree: _Tree) -> str:
    """Return the kind of VM, by the firmware's names, Xen's file or the processor's flag."""
    processor = tree.text("proc/cpuinfo")
    if "User Mode Linux" in processor:
        return "uml"
    folder = "sys/class/dmi/id"
    names = " ".join(
        tree.text(f"{folder}/{file}").strip() for file in ("sys_vendor", "product_name")
    )
    if not names.endswith(".metal"):  # bare-metal instances of a cloud
        for sign, name in _DMI.items():
            if sign in names:
                return name
    hypervisor = tree.text("sys/hypervisor/type").strip()
    if hypervisor:
        return hypervisor
    return "hypervisor" if re.search(r"(?m)^flags\s*:.*\bhypervisor\b", processor) else ""
