"""Run a command in a User-Mode Linux kernel, which has AF_VSOCK.

The kernel is an ordinary program that mounts this machine's files through hostfs: it runs the
same interpreter and the same virtual environment.  The root is mounted read-only, the
scratch folder writable, and temporary files are memory.  One processor, slow system calls:
timings mean something only as ratios within one run.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.kernel.boot import Completed, enter_repository, require, run

MODULES: Final = ("vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback")
"""The modules that give CID 1 a transport, in the order of their dependencies."""


def run_in_uml(
    command: Sequence[str],
    scratch: Path,
    *,
    modules: Sequence[str] = MODULES,
    memory: str = "2G",
    timeout: float = 1500,
) -> Completed:
    """Boot, run ``command`` as root in the repository's folder, power off.

    Skips the test if a package is missing.

    Args:
      scratch: the only folder whose files outlive the kernel; created if absent, and used by
        one run at a time.
      modules: the modules to load before the command, in this order.
      timeout: in seconds.

    Raises:
      KernelError: as `boot.run` does.
    """
    require(**{"linux.uml": "user-mode-linux", "insmod": "kmod", "ip": "iproute2"})
    scratch.mkdir(parents=True, exist_ok=True)
    init = scratch / "init"
    init.write_text(_init_script(command, scratch, modules))
    init.chmod(0o755)
    return run(_kernel_line(init, scratch, memory), scratch, timeout)


def _kernel_line(init: Path, scratch: Path, memory: str) -> list[str]:
    return [
        *("linux.uml", f"mem={memory}", "quiet", "panic=-1", "con=null", "con0=null,fd:1"),
        *("rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"),
        *(f"uml_dir={scratch}", "umid=uml"),  # two runs must not share a control socket
    ]


def _init_script(command: Sequence[str], scratch: Path, modules: Sequence[str]) -> str:
    folder, python = shlex.quote(str(scratch)), shlex.quote(sys.executable)
    # An init that ends is a panic; reboot(2) with LINUX_REBOOT_CMD_POWER_OFF ends the kernel.
    return f"""#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
mount -t hostfs -o {folder} scratch {folder}
ip link set lo up
for module in {shlex.join(modules)}; do
    insmod /usr/lib/uml/modules/$(uname -r)/kernel/net/vmw_vsock/$module.ko || exit 1
done
{enter_repository()}
{shlex.join(command)} >{folder}/output 2>&1 </dev/null
echo $? >{folder}/status
exec {python} -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321FEDC)'
"""
