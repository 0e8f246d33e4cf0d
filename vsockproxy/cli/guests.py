"""The command that shows guests: those of the configuration, and the VMs of this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from vsockproxy.cli.program import ConfigOption, JsonOption, default_file, read, source_of

if TYPE_CHECKING:
    from vsockproxy.config.guest import Guest
    from vsockproxy.guests.directory import GuestRecord
    from vsockproxy.guests.survey import Vm

_PATIENCE: Final = 10.0  # seconds for each guest; whoever is asked has less


def add_to(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(short_help="Show where guests are, and the VMs of this machine.")(guests)


def guests(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Show where the guests of the configuration are, and the VMs of this machine.

    Each VM comes with the line to paste under [guests]. Needs no root; run it as
    the daemon's user to see what the daemon sees.
    """
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.guests.survey import survey  # noqa: PLC0415 - at its use

    configured = _configured(config)
    records = trio.run(_locate, configured)
    vms, complaints = trio.run(survey)
    if as_json:
        typer.echo(json.dumps(_as_json(configured, records, vms, complaints), indent=2))
        return
    for line in _lines(configured, records, vms):
        typer.echo(line)
    for complaint in complaints:
        typer.echo(f"vsockproxy: {complaint}", err=True)


def _configured(config: Path | None) -> Sequence[Guest]:
    """The guests of the configuration that `run` would take; none where there is none."""
    from vsockproxy.config.environment import known_settings  # noqa: PLC0415 - at its use

    file = config or default_file()
    if file is None and not known_settings(os.environ):
        return ()
    return read(source_of(file)).guests


async def _locate(guests: Sequence[Guest]) -> dict[str, GuestRecord]:
    """What is known of each guest that must be looked for, once all have been asked for."""
    import trio  # noqa: PLC0415 - at its use

    from vsockproxy.guests.answer import GuestError  # noqa: PLC0415 - at its use
    from vsockproxy.guests.directory import Guests  # noqa: PLC0415 - at its use

    records = Guests(guests).records()

    async def ask(record: GuestRecord) -> None:
        with suppress(GuestError):  # which the record keeps
            await record.locate(trio.current_time() + _PATIENCE)

    async with trio.open_nursery() as nursery:
        for record in records:
            nursery.start_soon(ask, record)
    return {record.guest.name: record for record in records}


def _lines(
    guests: Sequence[Guest], records: dict[str, GuestRecord], vms: Sequence[Vm]
) -> Iterator[str]:
    if guests:
        yield "The guests of the configuration:"
        width = max(len(guest.name) for guest in guests)
        for guest in guests:
            yield f"  {guest.name:<{width}}  {guest.way}"
            if guest.name in records:
                yield f"  {'':<{width}}  {_now(records[guest.name])}"
        yield ""
    if not vms:
        yield "No VM with vsock runs here, as far as this user can see."
        return
    yield "The VMs of this machine, as lines for [guests]:"
    width = max(len(vm.line) for vm in vms)
    for vm in vms:
        at = "" if str(vm.at) == str(vm.way) else f", {vm.at}"
        yield f"  {vm.line:<{width}}  # {vm.source}{at}"


def _now(record: GuestRecord) -> str:
    return f"-> {record.found}" if record.found else f"-> not found: {record.last_error}"


def _as_json(
    guests: Sequence[Guest],
    records: dict[str, GuestRecord],
    vms: Sequence[Vm],
    complaints: Sequence[str],
) -> dict[str, Any]:
    return {
        "guests": [
            {
                "name": guest.name,
                "way": str(guest.way),
                "at": _text(record.found if record else guest.way),
                "error": record.last_error if record else None,
            }
            for guest in guests
            for record in [records.get(guest.name)]
        ],
        "vms": [
            {"source": vm.source, "name": vm.name, "line": vm.line, "at": str(vm.at)} for vm in vms
        ],
        "not_asked": list(complaints),
    }


def _text(way: object) -> str | None:
    return None if way is None else str(way)
