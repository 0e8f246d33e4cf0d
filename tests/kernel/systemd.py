"""Run a command under a real systemd, which is PID 1 of a User-Mode Linux kernel.

The root is a Debian tree, mounted read-only; /etc, /run, /tmp, /var, /opt and /usr/local are
in memory.  The project is installed in /usr/local/bin and /etc/systemd/system, as an operator
installs it, and runs with this interpreter and from this repository, mounted by hostfs.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.kernel.boot import REPOSITORY, Completed, require, run, skip_or_fail

SCRATCH: Final = "/mnt"
"""The scratch folder's path inside the kernel."""

PYTHON: Final = "/usr/local/bin/python"
"""This interpreter, with its installed packages, inside the kernel."""


def run_under_systemd(
    command: Sequence[str], scratch: Path, *, memory: str = "1G", timeout: float = 300
) -> Completed:
    """Boot systemd, run ``command`` as root in a service, and power off.

    Skips the test if a package or the Debian tree is missing.

    Args:
      scratch: the only folder whose files outlive the kernel; the command sees it at
        `SCRATCH`.

    Raises:
      KernelError: as `boot.run` does.
    """
    require(**{"linux.uml": "user-mode-linux"})
    root = find_root()
    (scratch / "init").write_text(_init_script())
    (scratch / "command").write_text(command_script(command))
    return run(kernel_line(root, scratch, memory), scratch, timeout)


def find_root() -> Path:
    """Return the Debian tree; skip the test if it is missing."""
    named = os.environ.get("VSOCKPROXY_SYSTEMD_ROOT")
    root = Path(named) if named else REPOSITORY / ".cache/systemd-root"
    if not (root / "lib/systemd/systemd").exists():
        skip_or_fail(
            "run tests/kernel/make_systemd_root.sh as root (Debian: apt install debootstrap)"
        )
    return root


def kernel_line(root: Path, scratch: Path, memory: str, mode: str = "ro") -> list[str]:
    """Return the command that boots systemd by the scratch folder's ``init``.

    Args:
      mode: ``ro`` or ``rw``, how the root is mounted.
    """
    init = f"mount -t hostfs -o {scratch} scratch {SCRATCH} && . {SCRATCH}/init"
    return [
        *("linux.uml", f"mem={memory}", "quiet", "panic=-1", "con=null", "con0=null,fd:1"),
        *("rootfstype=hostfs", f"rootflags={root}", mode),
        *(f"uml_dir={scratch}", "umid=uml"),
        *("systemd.unit=scenario.service", "init=/bin/sh", "--", "-c", f'"{init}"'),
    ]


def _init_script() -> str:
    packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    interpreter = Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve())
    folders = {
        "/opt/python": sys.base_prefix,
        "/opt/packages": sys.prefix,
        "/opt/vsockproxy": str(REPOSITORY),
        "/lib/modules": "/usr/lib/uml/modules",
    }
    mounts = [
        f"mkdir -p {place}; mount -t hostfs -o ro,{shlex.quote(folder)} host {place}"
        for place, folder in folders.items()
    ]
    return f"""\
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for folder in /run /tmp /var /opt /usr/local; do mount -t tmpfs tmpfs $folder; done
mkdir -p /var/lib /var/log /var/tmp /var/cache /usr/local/bin
cp -a /etc /run/etc
mount -t tmpfs tmpfs /etc
cp -a /run/etc/. /etc
{chr(10).join(mounts)}

cat >{PYTHON} <<END
#!/bin/sh
export LD_LIBRARY_PATH=/opt/python/lib PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=/opt/vsockproxy:/opt/packages/{packages}
exec /opt/python/{interpreter} "\\$@"
END
printf '#!/bin/sh\\nexec {PYTHON} -m vsockproxy "$@"\\n' >/usr/local/bin/vsockproxy
chmod +x /usr/local/bin/*

cp /opt/vsockproxy/systemd/*.service /opt/vsockproxy/systemd/*.socket /etc/systemd/system
echo vsock_loopback >/etc/modules-load.d/vsock.conf
cat >/etc/systemd/system/scenario.service <<END
[Service]
Type=oneshot
ExecStart=/bin/sh {SCRATCH}/command
END
: >/etc/machine-id
exec /lib/systemd/systemd
"""


def command_script(command: Sequence[str]) -> str:
    """Return the script of scenario.service, which runs ``command`` and powers off."""
    return f"""\
{shlex.join(command)} >{SCRATCH}/output 2>&1
echo $? >{SCRATCH}/status
journalctl --no-pager >{SCRATCH}/journal
systemctl poweroff --force --force
"""
