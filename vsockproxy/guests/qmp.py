"""QEMU's monitor, which knows the CID of its vhost-vsock device.

Owns: the QMP commands that read it (QEMU's docs/interop/qmp-spec.rst).  Each look-up opens
and closes a connection: a monitor serves one client at a time.
"""

from __future__ import annotations

import re
from typing import Any, Final

import trio

from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.json_stream import JsonStream, open_json_stream

_GREETED_WITHIN: Final = 3.0  # seconds; a monitor that serves another client is silent
# Devices with an id=, and those without.
_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")
_DEVICE: Final = re.compile(r"child<vhost-vsock-.+>")


async def find_cid(path: str) -> int:
    """Return the CID of a VM's only vhost-vsock device; raise `GuestError`."""
    async with open_json_stream(path, b"\n", f"QEMU's monitor {path}") as monitor:
        await _greet(monitor)
        devices = [device for place in _PLACES for device in await _devices(monitor, place)]
        if not devices:
            raise GuestError(
                f"the VM of {monitor.name} has no vhost-vsock device:"
                " start it with -device vhost-vsock-pci,guest-cid=N"
            )
        if len(devices) > 1:
            raise GuestError(f"the VM of {monitor.name} has {len(devices)} vhost-vsock devices")
        arguments = {"path": devices[0], "property": "guest-cid"}
        return checked_cid(await _execute(monitor, "qom-get", arguments), monitor.name)


async def _greet(monitor: JsonStream) -> None:
    with trio.move_on_after(_GREETED_WITHIN):
        if "QMP" not in await monitor.receive():
            raise monitor.malformed()
        await _execute(monitor, "qmp_capabilities", {})
        return
    raise GuestError(
        f"{monitor.name} does not greet: another client may use it; add a monitor for vsockproxy,"
        " -qmp unix:PATH,server=on,wait=off"
    )


async def _devices(monitor: JsonStream, place: str) -> list[str]:
    """Return the paths of the vhost-vsock devices under one node of QEMU's object tree."""
    found = await _execute(monitor, "qom-list", {"path": place})
    try:
        return [f"{place}/{one['name']}" for one in found if _DEVICE.fullmatch(one["type"])]
    except (KeyError, TypeError) as error:
        raise monitor.malformed() from error


async def _execute(monitor: JsonStream, command: str, arguments: dict[str, str]) -> Any:
    """Return the result of a command; skip the events before it."""
    await monitor.send({"execute": command, "arguments": arguments})
    while True:
        answer = await monitor.receive()
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            error = answer["error"]
            words = error.get("desc") if isinstance(error, dict) else error
            raise GuestError(f"{monitor.name} rejected {command}: {words}")
