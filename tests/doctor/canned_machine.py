"""Fake machines: the files that a kernel would show, below a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vsockproxy.config.load import forward_config
from vsockproxy.config.settings import Config

KERNEL: Final = "6.1.0-test"

HOST: Final[dict[str, str]] = {
    "proc/sys/kernel/osrelease": f"{KERNEL}\n",
    "proc/net/protocols": "protocol  size sockets\nAF_VSOCK  1240      0\nTCP  2000 3\n",
    "proc/modules": (
        "vhost_vsock 28672 0 - Live 0x0\nvhost 57344 1 vhost_vsock, Live 0x0\n"
        "vsock_loopback 16384 0 - Live 0x0\nvsock 49152 2 vhost_vsock, Live 0x0\n"
    ),
    f"lib/modules/{KERNEL}/modules.dep": (
        "kernel/net/vmw_vsock/vsock.ko.xz:\nkernel/drivers/vhost/vhost_vsock.ko.xz: kernel/vsock\n"
        "kernel/net/vmw_vsock/vsock_loopback.ko.xz:\n"
        "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko.xz:\n"
    ),
    "proc/self/status": (
        "Name:\tvsockproxy\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n"
        "NoNewPrivs:\t0\nSeccomp:\t0\n"
    ),
    "proc/self/limits": (
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max open files            1024                 524288               files\n"
    ),
    "proc/sys/net/ipv4/ip_unprivileged_port_start": "1024\n",
    "proc/self/attr/current": "unconfined\n",
    "proc/1/cgroup": "0::/init.scope\n",
    "proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t\t: fpu vme\n",
    "dev/vsock": "",
    "dev/vhost-vsock": "",
}
"""A host of VMs on which all is well, seen by an ordinary user."""

BARE: Final[dict[str, str]] = HOST | {
    "proc/net/protocols": "protocol  size sockets\nTCP  2000 3\n",
    "proc/modules": "ext4 1000 0 - Live 0x0\n",
}
"""A host where no vsock module is loaded."""

GUEST: Final[dict[str, str]] = HOST | {
    "proc/modules": "vmw_vsock_virtio_transport 16384 0 - Live 0x0\nvsock 49152 1 - Live 0x0\n",
    "proc/cpuinfo": "flags\t\t: fpu hypervisor vme\n",
    "sys/bus/virtio/devices/virtio0/device": "0x0001\n",
    "sys/bus/virtio/devices/virtio3/device": "0x0013\n",
    "sys/class/dmi/id/sys_vendor": "QEMU\n",
}
"""A VM that has a vsock device and its driver."""


def machine_tree(folder: Path, files: Mapping[str, str]) -> Path:
    """Create these files below a folder and return it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


CONFINED: dict[str, str] = {"proc/self/status": "Uid:\t1 1 1 1\nSeccomp:\t2\nNoNewPrivs:\t1\n"}


def routes(*pairs: str, **tables: object) -> Config:
    """Return a configuration of pairs of addresses, and further tables."""
    return forward_config(list(zip(pairs[::2], pairs[1::2], strict=True)), tables)  # type: ignore[arg-type] # plain values
