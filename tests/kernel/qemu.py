"""Boot a host kernel with a real /dev/vhost-vsock, and a guest inside it, both under QEMU.

The host mounts this machine's files read-only over 9p and runs a command with the same
interpreter.  The command starts the guest there, in a second QEMU; the guest runs guest.c as
its only program.  Both processors are emulated: /dev/kvm is not needed, and all of it is slow.
"""

from __future__ import annotations

import lzma
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kernel.boot import (
    REPOSITORY,
    Completed,
    enter_repository,
    require,
    run,
    skip_or_fail,
)

GUEST_CID: Final = 3
MONITOR: Final = "/run/guest.qmp"
"""The Unix socket of the guest's QEMU monitor, on the host."""

GUEST_PROXY: Final = 1080
"""The vsock port of the host that programs of the guest use as a proxy, at the same TCP port."""

_GUEST_PROGRAMS: Final = {
    "/usr/sbin/sshd": "openssh-server",
    "/usr/bin/socat": "socat",
    "/usr/bin/curl": "curl",
}
_HOST_MODULES: Final = ("virtio_pci", "9p", "9pnet_virtio", "vsock_loopback", "vhost_vsock")
_GUEST_MODULES: Final = ("virtio_pci", "vmw_vsock_virtio_transport")

_MACHINE: Final = (
    *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-nodefaults", "-no-user-config"),
    *("-no-reboot", "-display", "none", "-serial", "stdio"),
)
_KERNEL_OPTIONS: Final = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests no_timer_check"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A Linux image and its folder of modules."""

    image: Path
    modules: Path

    def closure(self, names: Sequence[str]) -> list[Path]:
        """Return the files of these modules and their dependencies, in the order of loading."""
        needs = dict(self._dependencies())
        missing = [name for name in names if name not in needs]
        if missing:
            skip_or_fail(f"the kernel {self.image} has no modules {missing}: use the generic image")
        return list(dict.fromkeys(file for name in names for file in needs[name]))

    def _dependencies(self) -> list[tuple[str, list[Path]]]:
        lines = (self.modules / "modules.dep").read_text().splitlines()
        split = [line.replace(":", "").split() for line in lines]
        return [
            (Path(files[0]).stem, [self.modules / file for file in reversed(files)])
            for files in split
        ]


def find_kernel() -> Kernel:
    """Return the kernel of $VSOCKPROXY_KERNEL_DIR, else of .cache/kernel, else of this machine.

    Skips the test if there is none.
    """
    named = os.environ.get("VSOCKPROXY_KERNEL_DIR")
    folders = [Path(named)] if named else [REPOSITORY / ".cache/kernel", Path("/")]
    kernels = [
        Kernel(folder / f"boot/vmlinuz-{dependencies.parent.name}", dependencies.parent)
        for folder in folders
        for dependencies in sorted(folder.glob("lib/modules/*/modules.dep"))
    ]
    if not kernels or not kernels[0].image.exists():
        skip_or_fail("run tests/kernel/fetch_kernel.sh (it unpacks Debian's linux-image-amd64)")
    return kernels[0]


def run_on_host(command: Sequence[str], scratch: Path, *, timeout: float = 1500) -> Completed:
    """Boot the host, run ``command`` as root in the repository's folder, power off.

    Skips the test if a package or the kernel is missing.

    Args:
      command: may start the guest by the command that `guest_command` returns.
      scratch: the only folder that the host can write to.

    Raises:
      KernelError: as `boot.run` does.
    """
    require(
        **{"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static"},
        **{"cpio": "cpio", "gcc": "gcc libc6-dev", "ssh": "openssh-client"},
        **_GUEST_PROGRAMS,
    )
    kernel = find_kernel()
    _unpack(kernel.image, scratch / "vmlinux")
    _build_guest(kernel, scratch)
    _build_host(kernel, scratch, command)
    return run(_host_command(scratch), scratch, timeout)


def guest_command(scratch: Path) -> list[str]:
    """Return the command that boots the guest on the host; it prints ``guest: ready``.

    Its initramfs is programs.cpio; bare.cpio beside it has guest.c alone, and boots faster.
    """
    return [
        *_MACHINE,
        *("-m", "256", "-device", f"vhost-vsock-pci,guest-cid={GUEST_CID}"),
        *("-qmp", f"unix:{MONITOR},server=on,wait=off"),
        *("-kernel", f"{scratch}/vmlinux", "-initrd", f"{scratch}/programs.cpio"),
        *("-append", _KERNEL_OPTIONS),
    ]


def _host_command(scratch: Path) -> list[str]:
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
    """Write the ELF file of an xz-compressed image, which boots without decompressing.

    Under two emulations the kernel's own decompression takes most of a minute.
    """
    _, magic, packed = image.read_bytes().partition(b"\xfd7zXZ\x00")
    if magic:
        vmlinux.write_bytes(lzma.LZMADecompressor().decompress(magic + packed))
    else:
        shutil.copyfile(image, vmlinux)


def _build_guest(kernel: Kernel, scratch: Path) -> None:
    modules = kernel.closure(_GUEST_MODULES)
    root = scratch / "bare"
    _lay_out(root, modules, "exec /server")
    source = Path(__file__).parent / "guest.c"
    subprocess.run(["gcc", "-static", "-O2", "-o", root / "server", source], check=True)
    _pack(root)
    proxy = f"TCP-LISTEN:{GUEST_PROXY},bind=127.0.0.1,reuseaddr,fork VSOCK-CONNECT:2:{GUEST_PROXY}"
    full = scratch / "programs"
    _lay_out(full, modules, f"mkdir -p /run/sshd\nip link set lo up\nsocat {proxy} &\nexec /server")
    shutil.copy(root / "server", full)
    for program in _GUEST_PROGRAMS:
        _copy_program(Path(program), full)
    _configure_ssh(full / "etc", scratch)
    _pack(full)


def _copy_program(program: Path, root: Path) -> None:
    """Copy a program of this machine, and the libraries that it loads."""
    found = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = map(Path, re.findall(r"(/\S+) \(0x", found))
    for file in (program, *libraries):
        copy = root / file.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def _configure_ssh(etc: Path, scratch: Path) -> None:
    """Write the files of the guest's sshd, and the key of its client to ``scratch``."""
    (etc / "ssh").mkdir(parents=True)
    for key in (etc / "ssh/host", scratch / "client"):
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(line, check=True)
    shutil.copy(scratch / "client.pub", etc / "ssh/authorized")
    (etc / "ssh/sshd_config").write_text(
        "HostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/authorized\nStrictModes no\n"
    )
    (etc / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n"
    )


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
    """Write an initramfs root: busybox, the modules, and an init that loads them."""
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
