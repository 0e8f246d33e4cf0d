"""Random schedules, straight and through each pump: nothing truncated looks whole.

`make soak` runs far more of them: VSOCKPROXY_SCHEDULES is how many for each way.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import trio

from tests.pump.direct_pump import join
from tests.pump.schedule import Schedule, play, schedule
from tests.sockets import PAIRS
from vsockproxy.pump.transfer import Meter, Pump

NUMBER = int(os.environ.get("VSOCKPROXY_SCHEDULES", "1500"))
FIRST = int(os.environ.get("VSOCKPROXY_FIRST_SCHEDULE", "0"))
AT_ONCE = 8


async def test_an_end_sees_a_clean_eof_if_and_only_if_it_has_every_byte_without_a_proxy() -> None:
    async def straight(plan: Schedule) -> list[str]:
        if plan.outside != "nothing" or "unix" in plan.families:
            return []
        return await play(plan, PAIRS["tcp"](), None)

    await run_all(straight)


async def test_an_end_sees_a_clean_eof_if_and_only_if_it_has_every_byte(pump: Pump) -> None:
    async def through(plan: Schedule) -> list[str]:
        return await relayed(pump, plan)

    await run_all(through)


async def relayed(pump: Pump, plan: Schedule) -> list[str]:
    """Run a schedule through a pump."""
    meter = Meter()
    left, right, run = join(pump, plan.families, plan.bounds, meter)
    ended = trio.Event()

    async def transfer() -> None:
        await run()
        ended.set()

    async def interfere() -> None:
        if plan.outside == "kill":
            if meter.running:
                meter.running.stop()
        elif plan.outside != "half_close_timeout":  # which begins with an EOF
            await ended.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transfer)
        return await play(plan, (left, right), None if plan.outside == "nothing" else interfere)
    raise AssertionError("unreachable")


async def run_all(run: Callable[[Schedule], Awaitable[list[str]]]) -> None:
    """Run every schedule, some at once; fail with the first one that is wrong."""
    seeds = iter(range(FIRST, FIRST + NUMBER))

    async def run_some() -> None:
        for seed in seeds:
            plan = schedule(seed)
            try:
                with trio.fail_after(30):
                    problems = await run(plan)
            except trio.TooSlowError:
                problems = ["no end"]
            assert not problems, f"{'; '.join(problems)}: {plan}"

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(run_some)
