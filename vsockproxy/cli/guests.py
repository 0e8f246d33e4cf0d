"""The command `guests`: the guests of the configuration, and the VMs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vsockproxy.cli.output import say, say_json
from vsockproxy.cli.shared import command, config_option, json_option, read
from vsockproxy.config.source import NoSourceError, find_source
from vsockproxy.errors import VsockproxyError

if TYPE_CHECKING:
    from vsockproxy.config.guest import Guest
    from vsockproxy.guests.directory import GuestRecord
    from vsockproxy.guests.survey import Vm

_UNREAD: Final = "vsockproxy: no configuration was read, and no daemon found: give a file with -c"
_TIMEOUT: Final = 10.0  # seconds for each guest; more than a source has
_ANSWER: Final = 2.0  # seconds for the daemon's


@command()
@config_option
@json_option
def guests(config: Path | None, *, as_json: bool) -> None:
    """Show the addresses of the configured guests, and the VMs of this machine.

    A running daemon is asked for those that were added at run time. Each VM
    is shown as a line for [guests]. Needs no root; run it as the daemon's user
    to get the daemon's results.
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.guests.survey import survey  # noqa: PLC0415 - at its use

    configured, running = _configured(config), _running(config)
    if configured is None and running is None and not as_json:
        say(_UNREAD, err=True)
    of_daemon, added = running or ((), frozenset())
    shown = of_daemon if configured is None else configured
    known = [one for one in shown if one.name not in added]
    more = [one for one in of_daemon if one.name in added]
    records = trio.run(_locate, [*known, *more])
    vms, errors = trio.run(survey)
    if as_json:
        say_json(_as_json(known, more, records, vms, errors))
        return
    say(*_guest_lines("Guests of the configuration:", known, records))
    say(*_guest_lines("Guests added at run time:", more, records))
    say(*_vm_lines(vms))
    say(*(f"vsockproxy: {error}" for error in errors), err=True)


def _configured(config: Path | None) -> Sequence[Guest] | None:
    """Return the guests of the configuration that `run` would use; None without one."""
    try:
        return read(lambda: find_source(config, os.environ).load()).guests
    except NoSourceError:
        return None


def _running(config: Path | None) -> tuple[Sequence[Guest], frozenset[str]] | None:
    """Return the running daemon's guests, and the names of those that were added at run time.

    None where no daemon answers, or one of another version has guests that this one cannot read.
    """
    import tomllib  # noqa: PLC0415 - at its use

    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use
    from vsockproxy.config.load import forward_config  # noqa: PLC0415 - at its use

    try:
        answer = Client(find_socket(None, config, os.environ), _ANSWER).get("/v1/config")
        tables = {
            one["name"]: tomllib.loads(f"guest = {{ {one['locator']} }}")["guest"]
            | ({"to_host": True} if one["to_host"] else {})
            for one in answer["guests"]
        }
        guests = forward_config([("unix:@a", "unix:@b")], {"guests": tables}).guests
    except (VsockproxyError, tomllib.TOMLDecodeError):
        return None
    return guests, frozenset(one["name"] for one in answer["guests"] if one["is_added"])


async def _locate(guests: Sequence[Guest]) -> dict[str, GuestRecord]:
    """Look up the guests that have no fixed address; return their records by name."""
    from vsockproxy.guests.directory import Guests  # noqa: PLC0415 - at its use

    records = await Guests(guests).locate_all(_TIMEOUT)
    return {record.guest.name: record for record in records}


def _guest_lines(
    title: str, guests: Sequence[Guest], records: Mapping[str, GuestRecord]
) -> Iterator[str]:
    if not guests:
        return
    yield title
    width = max(len(guest.name) for guest in guests)
    for guest in guests:
        yield f"  {guest.name:<{width}}  {guest.locator}"
        if guest.name in records:
            yield f"  {'':<{width}}  {_result(records[guest.name])}"
    yield ""


def _vm_lines(vms: Sequence[Vm]) -> Iterator[str]:
    if not vms:
        yield "No running VM with vsock is visible to this user."
        return
    yield "VMs of this machine, as lines for [guests]:"
    width = max(len(vm.line) for vm in vms)
    for vm in vms:
        at = "" if str(vm.at) == str(vm.locator) else f", {vm.at}"
        yield f"  {vm.line:<{width}}  # {vm.source}{at}"


def _result(record: GuestRecord) -> str:
    return f"-> {record.found}" if record.found else f"-> not found: {record.last_error}"


def _as_json(
    guests: Sequence[Guest],
    added: Sequence[Guest],
    records: Mapping[str, GuestRecord],
    vms: Sequence[Vm],
    errors: Sequence[str],
) -> dict[str, Any]:
    return {
        "guests": [
            {
                "name": guest.name,
                "locator": str(guest.locator),
                "at": _text(record.found if record else guest.locator),
                "error": record.last_error if record else None,
                "is_added": guest in added,
            }
            for guest in (*guests, *added)
            for record in [records.get(guest.name)]
        ],
        "vms": [
            {"source": vm.source, "name": vm.name, "line": vm.line, "at": str(vm.at)} for vm in vms
        ],
        "not_asked": list(errors),
    }


def _text(locator: object) -> str | None:
    return None if locator is None else str(locator)
