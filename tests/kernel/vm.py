"""A "host" kernel with a true /dev/vhost-vsock, and a guest inside it, both under QEMU.

The host sees this machine's files read-only over 9p and runs a command with the same
interpreter; the guest, a second QEMU that the command starts there, runs guest.c as its
only program.  Software emulation throughout: nothing needs /dev/kvm, all of it is slow.
"""

from __future__ import annotations

import lzma
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kernel.boot import REPOSITORY, Completed, enter_repository, lacking, require, run

GUEST_CID: Final = 3
MONITOR: Final = "/run/guest.qmp"
"""The guest's QEMU monitor, on the host."""

_HOST_MODULES: Final = ("virtio_pci", "9p", "9pnet_virtio", "vsock_loopback", "vhost_vsock")
_GUEST_MODULES: Final = ("virtio_pci", "vmw_vsock_virtio_transport")

_MACHINE: Final = (
    *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-nodefaults", "-no-user-config"),
    *("-no-reboot", "-display", "none", "-serial", "stdio"),
)
_KERNEL_OPTIONS: Final = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests no_timer_check"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A Linux image with its folder of modules."""

    image: Path
    modules: Path

    def closure(self, names: Sequence[str]) -> list[Path]:
        """The files of these modules and of all they need, in the order of loading."""
        needs = dict(self._dependencies())
        missing = [name for name in names if name not in needs]
        if missing:
            lacking(f"the kernel {self.image} has no modules {missing}: use the generic image")
        return list(dict.fromkeys(file for name in names for file in needs[name]))

    def _dependencies(self) -> list[tuple[str, list[Path]]]:
        lines = (self.modules / "modules.dep").read_text().splitlines()
        split = [line.replace(":", "").split() for line in lines]
        return [
            (Path(files[0]).stem, [self.modules / file for file in reversed(files)])
            for files in split
        ]


def find_kernel() -> Kernel:
    """$VSOCKPROXY_KERNEL_DIR's kernel, .cache/kernel's, or this machine's; else skip."""
    named = os.environ.get("VSOCKPROXY_KERNEL_DIR")
    folders = [Path(named)] if named else [REPOSITORY / ".cache/kernel", Path("/")]
    kernels = [
        Kernel(folder / f"boot/vmlinuz-{dependencies.parent.name}", dependencies.parent)
        for folder in folders
        for dependencies in sorted(folder.glob("lib/modules/*/modules.dep"))
    ]
    if not kernels or not kernels[0].image.exists():
        lacking("run tests/kernel/fetch_kernel.sh (it unpacks Debian's linux-image-amd64)")
    return kernels[0]


def run_on_host(command: Sequence[str], scratch: Path, *, timeout: float = 600) -> Completed:
    """Boot the host, run ``command`` in the repository's folder as root, halt.

    ``scratch`` is the one folder that the host can write; `guest_line` is there what boots
    the guest.  Skips the test where a package is missing; raises `KernelError` as
    `boot.run` does.
    """
    require(
        **{"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"},
        **{"cpio": "cpio", "gcc": "gcc libc6-dev"},
    )
    kernel = find_kernel()
    _unpack(kernel.image, scratch / "vmlinux")
    _build_guest(kernel, scratch)
    _build_host(kernel, scratch, command)
    return run(_host_line(scratch), scratch, timeout)


def guest_line(scratch: Path) -> list[str]:
    """What boots the guest, on the host; it says ``guest: ready`` on stdout."""
    return [
        *_MACHINE,
        *("-m", "128", "-device", f"vhost-vsock-pci,guest-cid={GUEST_CID}"),
        *("-qmp", f"unix:{MONITOR},server=on,wait=off"),
        *("-kernel", f"{scratch}/vmlinux", "-initrd", f"{scratch}/guest.cpio"),
        *("-append", _KERNEL_OPTIONS),
    ]


def _host_line(scratch: Path) -> list[str]:
    export = "local,security_model=none,multidevs=remap"
    return [
        *_MACHINE,
        *("-cpu", "max", "-smp", "2", "-m", "2G"),
        *("-fsdev", f"{export},id=root,path=/,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"{export},id=scratch,path={scratch}"),
        *("-device", "virtio-9p-pci,fsdev=scratch,mount_tag=scratch"),
        *("-kernel", f"{scratch}/vmlinux", "-initrd", f"{scratch}/host.cpio"),
        *("-append", _KERNEL_OPTIONS),
    ]


def _unpack(image: Path, vmlinux: Path) -> None:
    """Write the ELF inside an xz-compressed image, which boots without unpacking itself.

    Emulated twice, the kernel's own decompression takes most of a minute.
    """
    _, magic, packed = image.read_bytes().partition(b"\xfd7zXZ\x00")
    if magic:
        vmlinux.write_bytes(lzma.LZMADecompressor().decompress(magic + packed))
    else:
        shutil.copyfile(image, vmlinux)


def _build_guest(kernel: Kernel, scratch: Path) -> None:
    root = scratch / "guest"
    _lay_out(root, kernel.closure(_GUEST_MODULES), "exec /server")
    source = Path(__file__).parent / "guest.c"
    subprocess.run(["gcc", "-static", "-O2", "-o", root / "server", source], check=True)
    _pack(root)


def _build_host(kernel: Kernel, scratch: Path, command: Sequence[str]) -> None:
    root, folder = scratch / "host", shlex.quote(str(scratch))
    mount = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000"
    init = f"""\
{mount},ro,cache=loose root /root
{mount},cache=none scratch /root{folder}
mount -t tmpfs tmpfs /root/run
for folder in proc sys dev; do mount -o move /$folder /root/$folder; done
chroot /root /bin/sh {folder}/command
reboot -f
"""
    _lay_out(root, kernel.closure(_HOST_MODULES), init)
    (scratch / "command").write_text(f"""\
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
{enter_repository()}
ip link set lo up
{shlex.join(command)} >{folder}/output 2>&1 </dev/null
echo $? >{folder}/status
""")
    _pack(root)


def _lay_out(root: Path, modules: Sequence[Path], then: str) -> None:
    """A root for an initramfs: busybox, the modules, and an init that loads them."""
    for name in ("bin", "proc", "sys", "dev", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    loads = []
    for module in modules:
        shutil.copy(module, root)
        loads.append(f"insmod /{module.name}")
    init = root / "init"
    init.write_text(f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
{chr(10).join(loads)}
{then}
""")
    init.chmod(0o755)


def _pack(root: Path) -> None:
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with root.with_suffix(".cpio").open("wb") as archive:
        line = ["cpio", "-o", "-H", "newc", "--quiet"]
        subprocess.run(line, cwd=root, input=names.encode(), stdout=archive, check=True)
