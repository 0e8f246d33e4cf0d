"""systemd-machined, which knows the CID of each registered VM.

Owns: one method of its varlink interface (``varlinkctl introspect
/run/systemd/machine/io.systemd.Machine``), since systemd 257.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import CID_ANY
from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.file_system import is_there
from vsockproxy.guests.json_stream import JsonStream, open_json_stream

_SOCKET: Final = "systemd/machine/io.systemd.Machine"
_LIST: Final = "io.systemd.Machine.List"
_NO_SUCH_MACHINE: Final = "io.systemd.Machine.NoSuchMachine"
_NO_METHOD: Final = (
    "org.varlink.service.MethodNotFound",
    "org.varlink.service.InterfaceNotFound",
)

_NO_CID: Final = (None, CID_ANY)

MachineRecord = dict[str, Any]
"""A machine in the interface: ``name``, ``class``, ``vSockCid``, ..."""


def sockets(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the sockets of the user's machined (systemd 258) and the system's (257)."""
    own = (os.environ if environ is None else environ).get("XDG_RUNTIME_DIR")
    return [f"{folder}/{_SOCKET}" for folder in (own, "/run") if folder]


async def find_cid(name: str, places: Sequence[str] | None = None) -> int:
    """Return the CID of a machine from the first machined that knows it; raise `GuestError`."""
    places = sockets() if places is None else places
    there = [path for path in places if await trio.to_thread.run_sync(is_there, path)]
    if not there:
        raise GuestError(f"systemd-machined does not listen at {' or '.join(places)}")
    errors: list[GuestError] = []
    for path in there:
        try:
            async with open_json_stream(path, b"\0", f"systemd-machined at {path}") as machined:
                found = await _call(machined, {"name": name})
            if found is not None:
                return _cid_of(found, name, machined.name)
        except GuestError as error:  # the other one may know a machine that runs
            errors.append(error)
    if errors:
        raise errors[0]
    raise GuestError(f"no running machine is named {name!r}: `machinectl list` shows them")


async def list_cids(path: str) -> dict[str, int]:
    """Return the CIDs of the running machines that have one; raise `GuestError`."""
    async with open_json_stream(path, b"\0", f"systemd-machined at {path}") as machined:
        machines = [machine async for machine in _list(machined)]
    return {
        str(machine.get("name")): checked_cid(machine["vSockCid"], machined.name)
        for machine in machines
        if machine.get("vSockCid") not in _NO_CID
    }


async def _list(machined: JsonStream) -> AsyncIterator[MachineRecord]:
    await machined.send({"method": _LIST, "parameters": {}, "more": True})
    while True:
        answer = await machined.receive()
        machine = _machine(answer, machined)
        if machine is not None:
            yield machine
        if not answer.get("continues"):
            return


async def _call(machined: JsonStream, parameters: dict[str, str]) -> MachineRecord | None:
    await machined.send({"method": _LIST, "parameters": parameters})
    return _machine(await machined.receive(), machined)


def _machine(answer: dict[str, Any], machined: JsonStream) -> MachineRecord | None:
    """Return the machine in a reply; None if it does not exist."""
    error = answer.get("error")
    if error == _NO_SUCH_MACHINE:
        return None
    if error in _NO_METHOD:
        raise GuestError(f"{machined.name} cannot list machines: systemd 257 or later is needed")
    if error:
        raise GuestError(f"{machined.name} answers {error}")
    found = answer.get("parameters")
    if not isinstance(found, dict):
        raise machined.malformed()
    return found


def _cid_of(machine: MachineRecord, name: str, source: str) -> int:
    cid = machine.get("vSockCid")
    if cid in _NO_CID:
        raise GuestError(
            f"the machine {name!r} has no vsock CID: it is a container or was started without one"
        )
    return checked_cid(cid, source)
