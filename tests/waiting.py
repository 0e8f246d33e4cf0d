"""Waits for conditions that other tasks bring about, with one time limit."""

from __future__ import annotations

from collections.abc import Callable

import trio

PATIENCE = 10.0
"""Time limit of a wait, in seconds; only a failing test reaches it."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()
