"""The check of the configuration's targets: one dial each, concurrently.

Owns: the choice of the targets, and the judgement of the results.  Dials as the daemon does,
by `probe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from vsockproxy.address.endpoint import Target
from vsockproxy.config.by_name import ByName
from vsockproxy.config.guest import Cid, KnownGuests, Mux
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.dial.unanswered import await_late_answers
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.doctor.probe import Probe, probe
from vsockproxy.guests.directory import GuestRecord, Guests

_MOST: Final = 64  # targets; a range of ports may have thousands
_AT_ONCE: Final = 16
_LONGEST: Final = 5.0  # seconds; a connect_timeout may be an hour


async def judge_targets(config: Config) -> list[Finding]:
    """Return a finding for each target and looked-up guest, in the order of the routes.

    Of a route whose clients name their targets, those are meant that depend on no client. At most
    64 targets are dialled, each for at most 5 seconds; every connection is closed again.
    """
    known = KnownGuests(config.guests)
    names: dict[tuple[Target, Policy], list[str]] = {}
    for route in config.routes:
        for target in _targets(route, known):
            names.setdefault((target, route.policy), []).append(route.name)
    chosen = list(names)[:_MOST]
    results: dict[tuple[Target, Policy], Probe] = {}
    guests = Guests(config.guests)
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def ask(target: Target, policy: Policy) -> None:
        async with limiter:
            timeout = min(policy.connect_timeout, _LONGEST)
            results[target, policy] = await probe(target, timeout, guests=guests, policy=policy)

    async with trio.open_nursery() as nursery:
        for target, policy in chosen:
            nursery.start_soon(ask, target, policy)
    await await_late_answers()
    findings = [_judge(results[one], names[one]) for one in chosen]
    # The guests that no route uses are looked up too.
    findings += [_judge_guest(record) for record in await guests.locate_all(_LONGEST)]
    if len(names) > _MOST:
        findings.append(note("targets", f"{len(names) - _MOST} more were not dialled"))
    return findings


def _targets(route: Route, guests: KnownGuests) -> Sequence[Target]:
    return route.target.known(guests) if isinstance(route.target, ByName) else route.targets


def chosen_by_clients(config: Config) -> list[str]:
    """Return the routes with targets that depend on what clients ask for."""
    known = KnownGuests(config.guests)
    return [
        route.name
        for route in config.routes
        if isinstance(route.target, ByName)
        and (route.target.leads_out or len(route.target.known(known)) < len(route.target.to))
    ]


def _judge_guest(record: GuestRecord) -> Finding:
    """Return a note for a missing guest: only the routes to it have the problem."""
    subject = f"guest {record.guest.name}"
    match record.found:
        case Cid(cid):
            return ok(subject, f"has CID {cid}")
        case Mux(path):
            return ok(subject, f"is at {path}")
    return note(subject, str(record.last_error))


def _judge(result: Probe, names: list[str]) -> Finding:
    subject = f"route {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    if result.reached:
        return ok(subject, f"{result.target}: {result.what}")
    return problem(subject, f"{result.target}: {result.what}", result.remedy)
