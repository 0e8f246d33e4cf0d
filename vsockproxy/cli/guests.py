"""The command `guests`: the guests of the configuration, and the VMs of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vsockproxy.cli.output import say, say_json
from vsockproxy.cli.shared import command, config_option, json_option, read
from vsockproxy.config.source import NoSourceError, find_source

if TYPE_CHECKING:
    from vsockproxy.config.guest import Guest
    from vsockproxy.guests.directory import GuestRecord
    from vsockproxy.guests.survey import Vm

_UNREAD: Final = "vsockproxy: no configuration was read: give a daemon's with -c"
_TIMEOUT: Final = 10.0  # seconds for each guest; more than a source has


@command()
@config_option
@json_option
def guests(config: Path | None, *, as_json: bool) -> None:
    """Show the addresses of the configured guests, and the VMs of this machine.

    Each VM is shown as a line for [guests]. Needs no root; run it as the
    daemon's user to get the daemon's results.
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.guests.survey import survey  # noqa: PLC0415 - at its use

    configured = _configured(config)
    if configured is None and not as_json:
        say(_UNREAD, err=True)
    configured = configured or ()
    records = trio.run(_locate, configured)
    vms, errors = trio.run(survey)
    if as_json:
        say_json(_as_json(configured, records, vms, errors))
        return
    say(*_lines(configured, records, vms))
    say(*(f"vsockproxy: {error}" for error in errors), err=True)


def _configured(config: Path | None) -> Sequence[Guest] | None:
    """Return the guests of the configuration that `run` would use; None without one."""
    try:
        return read(lambda: find_source(config, os.environ).load()).guests
    except NoSourceError:
        return None


async def _locate(guests: Sequence[Guest]) -> dict[str, GuestRecord]:
    """Look up the guests that have no fixed address; return their records by name."""
    from vsockproxy.guests.directory import Guests  # noqa: PLC0415 - at its use

    records = await Guests(guests).locate_all(_TIMEOUT)
    return {record.guest.name: record for record in records}


def _lines(
    guests: Sequence[Guest], records: dict[str, GuestRecord], vms: Sequence[Vm]
) -> Iterator[str]:
    if guests:
        yield "Guests of the configuration:"
        width = max(len(guest.name) for guest in guests)
        for guest in guests:
            yield f"  {guest.name:<{width}}  {guest.locator}"
            if guest.name in records:
                yield f"  {'':<{width}}  {_result(records[guest.name])}"
        yield ""
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
    records: dict[str, GuestRecord],
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
            }
            for guest in guests
            for record in [records.get(guest.name)]
        ],
        "vms": [
            {"source": vm.source, "name": vm.name, "line": vm.line, "at": str(vm.at)} for vm in vms
        ],
        "not_asked": list(errors),
    }


def _text(locator: object) -> str | None:
    return None if locator is None else str(locator)
