"""What the configuration's targets answer, each dialled once, side by side.

Owns: which targets are dialled, and what their answers mean on this machine.  Dials as the
daemon does, by `probe`.
"""

from __future__ import annotations

from typing import Final

import trio

from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.endpoint import Target
from vsockproxy.guests.directory import Guests
from vsockproxy.probe import Probe, probe
from vsockproxy.route import Config, Policy

_MOST: Final = 64  # targets; a range of ports may have thousands
_AT_ONCE: Final = 16
_LONGEST: Final = 5.0  # seconds; nobody waits for a connect_timeout of an hour


async def ask_targets(config: Config) -> list[Finding]:
    """A finding for each target, in the order of the routes; bounded in number and time."""
    names: dict[tuple[Target, Policy], list[str]] = {}
    for route in config.routes:
        names.setdefault((route.target, route.policy), []).append(route.name)
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
    findings = [_judge(results[one], names[one]) for one in chosen]
    if len(names) > _MOST:
        findings.append(note("targets", f"{len(names) - _MOST} more were not dialled"))
    return findings


def _judge(result: Probe, names: list[str]) -> Finding:
    subject = f"route {names[0]}" + (f" (+{len(names) - 1})" if len(names) > 1 else "")
    if result.reached:
        return ok(subject, f"{result.target}: {result.what}")
    return problem(subject, f"{result.target}: {result.what}", result.remedy)
