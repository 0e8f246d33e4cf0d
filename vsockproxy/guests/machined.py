"""systemd-machined, which knows the CID of each VM that registered one.

Owns: one method of its varlink interface (``varlinkctl introspect
/run/systemd/machine/io.systemd.Machine``), which it has since systemd 257.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import CID_ANY
from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.file_system import is_there
from vsockproxy.guests.json_stream import Dialogue, open_dialogue

_SOCKET: Final = "systemd/machine/io.systemd.Machine"
_LIST: Final = "io.systemd.Machine.List"
_NO_SUCH_MACHINE: Final = "io.systemd.Machine.NoSuchMachine"
_NO_METHOD: Final = (
    "org.varlink.service.MethodNotFound",
    "org.varlink.service.InterfaceNotFound",
)

_NO_CID: Final = (None, CID_ANY)

Machine = dict[str, Any]
"""A machine as machined tells of it: ``name``, ``class``, ``vSockCid``, ..."""


def sockets(environ: Mapping[str, str] | None = None) -> list[str]:
    """Where machined may listen: the user's, then the system's (systemd 258 and 257)."""
    own = (os.environ if environ is None else environ).get("XDG_RUNTIME_DIR")
    return [f"{folder}/{_SOCKET}" for folder in (own, "/run") if folder]


async def find_cid(name: str, places: Sequence[str] | None = None) -> int:
    """The CID of a machine, of the first machined that knows it; raises `GuestError`."""
    places = sockets() if places is None else places
    there = [path for path in places if await trio.to_thread.run_sync(is_there, path)]
    if not there:
        raise GuestError(f"systemd-machined does not listen at {' or '.join(places)}")
    for path in there:
        async with open_dialogue(path, b"\0", f"systemd-machined at {path}") as machined:
            found = await _call(machined, {"name": name})
        if found is not None:
            return _cid_of(found, name, machined.who)
    raise GuestError(f"no running machine is named {name!r}: `machinectl list` shows them")


async def list_cids(path: str) -> dict[str, int]:
    """The CIDs of the machines that run and have one; raises `GuestError`."""
    async with open_dialogue(path, b"\0", f"systemd-machined at {path}") as machined:
        machines = [machine async for machine in _list(machined)]
    return {
        str(machine.get("name")): checked_cid(machine["vSockCid"], machined.who)
        for machine in machines
        if machine.get("vSockCid") not in _NO_CID
    }


async def _list(machined: Dialogue) -> AsyncIterator[Machine]:
    await machined.say({"method": _LIST, "parameters": {}, "more": True})
    while True:
        answer = await machined.hear()
        machine = _machine(answer, machined)
        if machine is not None:
            yield machine
        if not answer.get("continues"):
            return


async def _call(machined: Dialogue, parameters: dict[str, str]) -> Machine | None:
    await machined.say({"method": _LIST, "parameters": parameters})
    return _machine(await machined.hear(), machined)


def _machine(answer: dict[str, Any], machined: Dialogue) -> Machine | None:
    """The machine in a reply; None where there is no such."""
    error = answer.get("error")
    if error == _NO_SUCH_MACHINE:
        return None
    if error in _NO_METHOD:
        raise GuestError(f"{machined.who} cannot list machines: that wants systemd 257")
    if error:
        raise GuestError(f"{machined.who} says {error}")
    found = answer.get("parameters")
    if not isinstance(found, dict):
        raise machined.nonsense()
    return found


def _cid_of(machine: Machine, name: str, who: str) -> int:
    cid = machine.get("vSockCid")
    if cid in _NO_CID:
        raise GuestError(
            f"the machine {name!r} has no vsock CID: it is a container, or was started without one"
        )
    return checked_cid(cid, who)
