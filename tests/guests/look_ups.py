"""One look-up by a way, and its error, for the tests of the sources."""

from __future__ import annotations

import pytest
import trio

from vsockproxy.config.guest import (
    Cid,
    DynamicWay,
    Mux,
)
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.sources import look_up

UNREACHABLE = "x" * 300
"""A name longer than NAME_MAX: stat(2) of a link to it fails for every user."""


async def find(way: DynamicWay) -> Cid | Mux:
    """Return the address that the way's source finds."""
    with trio.fail_after(30):
        return await look_up(way, trio.CapacityLimiter(1))


async def look_up_error(way: DynamicWay) -> str:
    """Return the error of a look-up that fails."""
    with pytest.raises(GuestError) as caught:
        await find(way)
    return str(caught.value)
