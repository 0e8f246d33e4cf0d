"""VMs among the processes of this machine, by the command lines of their VMMs.

Owns: what the options of QEMU, Firecracker, Cloud Hypervisor and vhost-device-vsock say of
vsock.  Reads /proc alone, needs no rights, and passes over what it may not see.
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

from vsockproxy.config.guest import Cid, Mux, Qmp
from vsockproxy.guests.answer import GuestError, checked_cid

PROC: Final = Path("/proc")

Way = Cid | Mux | Qmp


@dataclass(frozen=True, slots=True)
class Process:
    """A VM by its VMM's process; ``name`` is what it was given, or has from the process.

    ``at`` is its CID or socket.
    """

    vmm: str
    name: str
    way: Way
    at: Cid | Mux


@dataclass(frozen=True, slots=True)
class _Command:
    """A process: its words, and where its paths begin, which in a jail is not ``/``."""

    words: Sequence[str]
    folder: Path
    root: Path

    def values(self, *options: str) -> Iterator[str]:
        """What follows each of these options, after a space or an equals sign."""
        for position, word in enumerate(self.words):
            option, equals, value = word.partition("=")
            if word in options and position + 1 < len(self.words):
                yield self.words[position + 1]
            elif equals and option in options:
                yield value

    def path(self, text: str) -> str:
        """A path as the rest of the machine knows it."""
        place = self.root / text.lstrip("/") if text.startswith("/") else self.folder / text
        return os.path.normpath(place)


def find_processes(proc: Path = PROC) -> list[Process]:
    """Every VM with vsock, in the order of the processes' numbers; none where there is no /proc."""
    if not proc.is_dir():
        return []
    numbers = sorted((entry.name for entry in proc.iterdir() if entry.name.isdecimal()), key=int)
    return [process for number in numbers for process in _find(proc / number)]


def _find(entry: Path) -> Iterator[Process]:
    try:
        words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:  # it has ended
        return
    program = Path(words[0]).name if words else ""
    vmm = next((name for pattern, name in _VMMS if re.fullmatch(pattern, program)), "")
    if not vmm:
        return
    command = _Command(words, _link(entry / "cwd"), _link(entry / "root"))
    name = next((value.partition(",")[0] for value in command.values("-name", "--id")), "")
    name = name.removeprefix("guest=") or f"vm-{entry.name}"
    for way, at in _READERS[vmm](command):
        yield Process(vmm, name, way, at)


def _link(link: Path) -> Path:
    """Where a process has its folder or its root; ``/`` for another user's, which is not told."""
    try:
        return Path(os.readlink(link))  # noqa: PTH115 - Path.readlink is this
    except OSError:
        return Path("/")


def _qemu(command: _Command) -> Iterator[tuple[Way, Cid]]:
    """By its monitor, if it has one as a Unix socket; else by the CID it was started with."""
    monitors = [
        Qmp(command.path(text.removeprefix("unix:").partition(",")[0]))
        for text in command.values("-qmp", "--qmp")
        if text.startswith("unix:")
    ]
    for text in command.values("-device", "--device"):
        if cid := _qemu_cid(text):
            yield (monitors[0] if monitors else Cid(cid)), Cid(cid)


def _qemu_cid(device: str) -> int | None:
    """The CID of a vhost-vsock device, which libvirt describes in JSON."""
    if "vhost-vsock" not in device:
        return None
    if device.startswith("{"):
        with suppress(ValueError):
            return _cid(json.loads(device).get("guest-cid"))
        return None
    return _cid(_options(device).get("guest-cid"))


def _firecracker(command: _Command) -> Iterator[tuple[Way, Mux]]:
    for name in command.values("--config-file"):
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
            config: Any = json.loads(Path(command.path(name)).read_bytes())
            yield _mux(command, config["vsock"]["uds_path"])


def _cloud_hypervisor(command: _Command) -> Iterator[tuple[Way, Mux]]:
    for value in command.values("--vsock"):
        if socket := _options(value).get("socket"):
            yield _mux(command, socket)


def _vhost_device(command: _Command) -> Iterator[tuple[Way, Mux]]:
    for value in command.values("--uds-path"):
        yield _mux(command, value)
    for value in command.values("--vm"):
        if path := _options(value).get("uds-path"):
            yield _mux(command, path)


def _mux(command: _Command, path: str) -> tuple[Mux, Mux]:
    mux = Mux(command.path(path))
    return mux, mux


def _options(text: str) -> dict[str, str]:
    """The pairs of ``key=value,key=value``."""
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
_READERS: Final[dict[str, Callable[[_Command], Iterator[tuple[Way, Cid | Mux]]]]] = {
    "qemu": _qemu,
    "firecracker": _firecracker,
    "cloud-hypervisor": _cloud_hypervisor,
    "vhost-device-vsock": _vhost_device,
}
