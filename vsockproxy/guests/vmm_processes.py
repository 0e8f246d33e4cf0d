"""VMs among the processes of this machine, by the command lines of their VMMs.

Owns: the vsock options of QEMU, Firecracker, Cloud Hypervisor and vhost-device-vsock.  Reads
only /proc, needs no privileges, and skips processes that this user cannot see.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vsockproxy.bounded_read import read_start
from vsockproxy.config.guest import Cid, Mux, Qmp
from vsockproxy.guests.answer import GuestError, checked_cid

PROC: Final = Path("/proc")

_LARGEST: Final = 1 << 20  # bytes of a configuration that are read

VmLocator = Cid | Mux | Qmp


@dataclass(frozen=True, slots=True)
class VmmProcess:
    """A VM by its VMM's process.

    Attributes:
      name: the VM's name in the command line, or one made from the process number.
      at: its CID or socket.
    """

    vmm: str
    name: str
    locator: VmLocator
    at: Cid | Mux


@dataclass(frozen=True, slots=True)
class _Command:
    """A process: its arguments, working directory and root, which in a jail is not ``/``."""

    words: Sequence[str]
    folder: Path
    root: Path

    def values(self, *options: str) -> Iterator[str]:
        """Yield the values of these options, given after a space or an equals sign."""
        for position, word in enumerate(self.words):
            option, equals, value = word.partition("=")
            if word in options and position + 1 < len(self.words):
                yield self.words[position + 1]
            elif equals and option in options:
                yield value

    def path(self, text: str) -> str:
        """Return a path of the process as a path of the machine."""
        place = self.root / text.lstrip("/") if text.startswith("/") else self.folder / text
        return os.path.normpath(place)


def find_vmms(proc: Path = PROC) -> list[VmmProcess]:
    """Return the VMs with vsock, in the order of their pids; none without /proc."""
    if not proc.is_dir():
        return []
    numbers = sorted((entry.name for entry in proc.iterdir() if entry.name.isdecimal()), key=int)
    return [process for number in numbers for process in _find(proc / number)]


def _find(entry: Path) -> Iterator[VmmProcess]:
    try:
        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:  # the process has ended
        return
    program = Path(words[0]).name if words else ""
    vmm = next((name for pattern, name in _VMMS if re.fullmatch(pattern, program)), "")
    if not vmm:
        return
    command = _Command(words, _link(entry / "cwd"), _link(entry / "root"))
    name = next((value.partition(",")[0] for value in command.values("-name", "--id")), "")
    name = name.removeprefix("guest=") or f"vm-{entry.name}"
    for locator, at in _READERS[vmm](command):
        yield VmmProcess(vmm, name, locator, at)


def _link(link: Path) -> Path:
    """Return a process's working directory or root; ``/`` if it is hidden, as another user's is."""
    try:
        return Path(os.readlink(link))  # noqa: PTH115 - Path.readlink is this
    except OSError:
        return Path("/")


def _qemu(command: _Command) -> Iterator[tuple[VmLocator, Cid]]:
    """Yield the monitor's locator if it is a Unix socket, else the CID in the command line."""
    monitors = [
        Qmp(command.path(text.removeprefix("unix:").partition(",")[0]))
        for text in command.values("-qmp", "--qmp")
        if text.startswith("unix:")
    ]
    for text in command.values("-device", "--device"):
        if cid := _qemu_cid(text):
            yield (monitors[0] if monitors else Cid(cid)), Cid(cid)


def _qemu_cid(device: str) -> int | None:
    """Return the CID of a vhost-vsock device, whose options may be JSON, as libvirt writes them."""
    if "vhost-vsock" not in device:
        return None
    if device.startswith("{"):
        with suppress(ValueError, RecursionError):
            return _cid(json.loads(device).get("guest-cid"))
        return None
    return _cid(_options(device).get("guest-cid"))


def _firecracker(command: _Command) -> Iterator[tuple[VmLocator, Mux]]:
    for name in command.values("--config-file"):
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            path = command.path(name)
            if not Path(path).is_file():  # any user may have named it, and to open a device may act
                continue
            config: Any = json.loads(read_start(path, _LARGEST))
            yield _mux(command, config["vsock"]["uds_path"])


def _cloud_hypervisor(command: _Command) -> Iterator[tuple[VmLocator, Mux]]:
    for value in command.values("--vsock"):
        if socket := _options(value).get("socket"):
            yield _mux(command, socket)


def _vhost_device(command: _Command) -> Iterator[tuple[VmLocator, Mux]]:
    for value in command.values("--uds-path"):
        yield _mux(command, value)
    for value in command.values("--vm"):
        if path := _options(value).get("uds-path"):
            yield _mux(command, path)


def _mux(command: _Command, path: str) -> tuple[Mux, Mux]:
    mux = Mux(command.path(path))
    return mux, mux


def _options(text: str) -> dict[str, str]:
    """Return the pairs of ``key=value,key=value``."""
    pairs = (part.partition("=") for part in text.split(","))
    return {key: value for key, _, value in pairs}


def _cid(value: object) -> int | None:
    with suppress(GuestError):
        return checked_cid(value, "the command line")
    return None


_VMMS: Final = (
    (r"qemu-system-.+|qemu-kvm|kvm", "qemu"),
    (r"firecracker.*", "firecracker"),
    (r"cloud-hypervisor.*", "cloud-hypervisor"),
    (r"vhost-device-vsock", "vhost-device-vsock"),
)
_READERS: Final[dict[str, Callable[[_Command], Iterator[tuple[VmLocator, Cid | Mux]]]]] = {
    "qemu": _qemu,
    "firecracker": _firecracker,
    "cloud-hypervisor": _cloud_hypervisor,
    "vhost-device-vsock": _vhost_device,
}
