"""The VMs of this machine that this user can see, and a locator for each.

Owns: the queries of all sources, concurrent and bounded in time.  Changes nothing, and starts
no service.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from vsockproxy.address.endpoint import CID_NAMES, KINDS
from vsockproxy.config.guest import LIBVIRT_URI, Cid, Incus, Libvirt, Machine, Mux, Qmp
from vsockproxy.guests import incus, libvirt, machined
from vsockproxy.guests import vmm_processes as processes
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.file_system import is_there

_TIMEOUT: Final = 5.0  # seconds for each source
_LIBVIRT: Final = ("/run/libvirt/libvirt-sock-ro", "/run/libvirt/virtqemud-sock-ro")


@dataclass(frozen=True, slots=True)
class Vm:
    """A running VM: its source, a locator for ``[guests]``, and its address now."""

    source: str
    name: str
    locator: Cid | Mux | Qmp | Libvirt | Machine | Incus
    at: Cid | Mux

    @property
    def line(self) -> str:
        """Return the line for ``[guests]``."""
        return f"{guest_name(self.name)} = {{ {self.locator} }}"


@dataclass(frozen=True, slots=True)
class Places:
    """The paths of the sources; a test replaces them."""

    proc: Path = processes.PROC
    libvirt: tuple[str, ...] = _LIBVIRT
    libvirt_uri: str = LIBVIRT_URI
    machined: tuple[str, ...] | None = None
    incus: tuple[str, ...] = incus.SOCKETS


_HERE: Final = Places()


async def survey(places: Places = _HERE) -> tuple[list[Vm], list[str]]:
    """Return the VMs, and the errors of the sources that failed; each source has 5 seconds.

    *Cancellation*: a source that hangs in a thread is abandoned.
    """
    sources = _sources(places)
    found: dict[int, list[Vm]] = {}
    errors: list[str] = []

    async def ask(number: int, name: str, source: Callable[[], Awaitable[list[Vm]]]) -> None:
        try:
            with trio.fail_after(_TIMEOUT):
                found[number] = await source()
        except trio.TooSlowError:
            errors.append(f"{name} did not answer within {_TIMEOUT:g} s")
        except GuestError as error:
            errors.append(str(error))
        except Exception as error:  # noqa: BLE001 - a defect in a source must not hide the others
            errors.append(f"{name} cannot be asked: {type(error).__name__}: {error}")

    async with trio.open_nursery() as nursery:
        for number, (name, source) in enumerate(sources):
            nursery.start_soon(ask, number, name, source)
    return [vm for number in sorted(found) for vm in found[number]], sorted(errors)


def guest_name(name: str) -> str:
    """Return a name like ``name`` that `endpoint.check_guest_name` accepts."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
    is_free = re.match(r"[A-Za-z_]", plain) and plain not in CID_NAMES and plain not in KINDS
    return plain if is_free else f"vm-{plain}"


def _sources(places: Places) -> Iterable[tuple[str, Callable[[], Awaitable[list[Vm]]]]]:
    yield "/proc", partial(_in_thread, partial(_from_processes, places.proc))
    if any(map(is_there, places.libvirt)):
        yield "libvirt", partial(_in_thread, partial(_from_libvirt, places.libvirt_uri))
    for path in machined.sockets() if places.machined is None else places.machined:
        if is_there(path):
            yield path, partial(_from_machined, path)
    for path in places.incus:
        if is_there(path):
            yield path, partial(_in_thread, partial(_from_incus, path))


async def _in_thread(source: Callable[[], list[Vm]]) -> list[Vm]:
    return await trio.to_thread.run_sync(source, abandon_on_cancel=True)


def _from_processes(proc: Path) -> list[Vm]:
    return [Vm(vm.vmm, vm.name, vm.locator, vm.at) for vm in processes.find_vmms(proc)]


def _from_libvirt(uri: str) -> list[Vm]:
    return [
        Vm("libvirt", name, Libvirt(name, uri), Cid(cid))
        for name, cid in libvirt.list_cids(uri).items()
    ]


async def _from_machined(path: str) -> list[Vm]:
    return [
        Vm("machined", name, Machine(name), Cid(cid))
        for name, cid in (await machined.list_cids(path)).items()
    ]


def _from_incus(path: str) -> list[Vm]:
    return [Vm("incus", name, Incus(name), Cid(cid)) for name, cid in incus.list_cids(path).items()]
