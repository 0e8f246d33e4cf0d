"""Child processes: what they inherit from the daemon, and orphans that it has to reap."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.daemon_process import PATIENCE, environment
from vsockproxy import children
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.command import find_cid


@pytest.fixture
def raised_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Have this process be one that was given fewer descriptors than it has; return how many."""
    given = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
    monkeypatch.setattr(children, "_given", given)
    return given


async def test_a_child_has_the_limit_of_descriptors_that_the_daemon_was_given(
    raised_limit: int,
) -> None:
    assert await find_cid(["/bin/sh", "-c", "ulimit -Sn"]) == raised_limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == raised_limit + 1
    limits = f'test "$(ulimit -Hn)" = {"unlimited" if hard < 0 else hard} && echo 3'
    assert await find_cid(["/bin/sh", "-c", limits]) == 3


async def test_a_program_that_cannot_be_run_is_named_where_the_limit_is_raised(
    raised_limit: int, tmp_path: Path
) -> None:
    with pytest.raises(GuestError, match=f"^{tmp_path}/x cannot be run: No such file"):
        await find_cid([f"{tmp_path}/x"])


@pytest.mark.usefixtures("raised_limit")
async def test_a_child_blocks_and_ignores_no_signal_and_has_no_further_descriptor() -> None:
    for kind in ("SigBlk", "SigIgn"):
        # GNU make has 32 and 33 ignored, the C library's own: no program can change them.
        script = f"set=$(sed -n 's/^{kind}:.//p' /proc/self/status); echo {kind}: $set >&2"
        none = f"{script}; test $((0x$set & ~0x180000000)) -eq 0 && echo 3"
        assert await find_cid(["/bin/sh", "-c", none]) == 3
    file = os.open(os.devnull, os.O_RDONLY)
    open_ones = "for n in 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$n && echo $n; done; echo 21"
    assert await find_cid(["/bin/sh", "-c", open_ones]) == 21
    os.close(file)


# A subreaper that runs `run_in_subreaper`: process 1 of a container, without its privileges.
_SUBREAPER: Final = """
import ctypes, sys, trio
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
import tests.test_children as tests
trio.run(getattr(tests, sys.argv[1]))
"""


def run_in_subreaper(function: str) -> None:
    subprocess.run(
        [sys.executable, "-c", _SUBREAPER, function],
        env=environment(),
        timeout=PATIENCE,
        check=True,
    )


def _children() -> dict[int, str]:
    """Return the state of each child of this process."""
    states: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if int(parent) == os.getpid():
            states[int(name.split()[0])] = state
    return states


async def until_no_child() -> None:
    deadline = time.monotonic() + PATIENCE / 2
    while _children():
        assert time.monotonic() < deadline, _children()
        await trio.sleep(0.01)


async def look_ups_that_time_out() -> None:
    from vsockproxy.guests import command  # noqa: PLC0415 - in the subreaper

    command.TIMEOUT = 0.2  # type: ignore[misc]
    assert children.inherits_orphans()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(children.reap_orphans)
        for _ in range(3):
            with pytest.raises(GuestError, match="did not answer"):
                await find_cid(["/bin/sh", "-c", "sleep 300 | head -n 1"])
        await until_no_child()
        nursery.cancel_scope.cancel()


async def look_ups_beside_orphans() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(children.reap_orphans)

        async def look_up() -> None:
            with pytest.raises(GuestError, match=r"exited with status 3$"):
                await find_cid(["/bin/sh", "-c", "(sleep 0.01 &) ; (true &) ; exit 3"])

        async with trio.open_nursery() as look_ups:
            for _ in range(30):
                look_ups.start_soon(look_up)
        await until_no_child()
        nursery.cancel_scope.cancel()


def test_look_ups_that_time_out_leave_no_zombie() -> None:
    run_in_subreaper("look_ups_that_time_out")


def test_reaping_orphans_takes_no_status_of_a_look_up() -> None:
    run_in_subreaper("look_ups_beside_orphans")


def test_a_process_that_inherits_no_orphans_reaps_none() -> None:
    assert not children.inherits_orphans()
