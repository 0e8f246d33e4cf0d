"""QEMU's monitor, which knows the CID of its vhost-vsock device.

Owns: the few commands of QMP that ask for it (QEMU's docs/interop/qmp-spec.rst).  Each
question is a connection of its own: a monitor serves one client at a time.
"""

from __future__ import annotations

import re
from typing import Any, Final

import trio

from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.json_stream import Dialogue, open_dialogue

_GREETED_WITHIN: Final = 3.0  # seconds; a monitor that has another client says nothing
# Devices with an id=, and those without one.
_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")
_DEVICE: Final = re.compile(r"child<vhost-vsock-.+>")


async def find_cid(path: str) -> int:
    """The CID of the one vhost-vsock device behind a monitor; raises `GuestError`."""
    async with open_dialogue(path, b"\n", f"QEMU's monitor {path}") as monitor:
        await _greet(monitor)
        devices = [device for place in _PLACES for device in await _devices(monitor, place)]
        if not devices:
            raise GuestError(
                f"the VM of {monitor.who} has no vhost-vsock device:"
                " start it with -device vhost-vsock-pci,guest-cid=N"
            )
        if len(devices) > 1:
            raise GuestError(f"the VM of {monitor.who} has {len(devices)} vhost-vsock devices")
        arguments = {"path": devices[0], "property": "guest-cid"}
        return checked_cid(await _execute(monitor, "qom-get", arguments), monitor.who)


async def _greet(monitor: Dialogue) -> None:
    with trio.move_on_after(_GREETED_WITHIN):
        if "QMP" not in await monitor.hear():
            raise monitor.nonsense()
        await _execute(monitor, "qmp_capabilities", {})
        return
    raise GuestError(
        f"{monitor.who} is silent, as while another client has it: give vsockproxy one of its own,"
        " -qmp unix:PATH,server=on,wait=off"
    )


async def _devices(monitor: Dialogue, place: str) -> list[str]:
    """The paths of the vhost-vsock devices in one place of QEMU's object tree."""
    found = await _execute(monitor, "qom-list", {"path": place})
    try:
        return [f"{place}/{one['name']}" for one in found if _DEVICE.fullmatch(one["type"])]
    except (KeyError, TypeError) as error:
        raise monitor.nonsense() from error


async def _execute(monitor: Dialogue, command: str, arguments: dict[str, str]) -> Any:
    """What a command returns; events that come meanwhile are passed over."""
    await monitor.say({"execute": command, "arguments": arguments})
    while True:
        answer = await monitor.hear()
        if "return" in answer:
            return answer["return"]
        if "error" in answer:
            error = answer["error"]
            words = error.get("desc") if isinstance(error, dict) else error
            raise GuestError(f"{monitor.who} refuses {command}: {words}")
