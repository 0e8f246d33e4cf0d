"""One look-up by a locator, and its error, for the tests of the sources."""

from __future__ import annotations

import pytest
import trio

from vsockproxy.config.guest import (
    Cid,
    DynamicLocator,
    Mux,
)
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.sources import look_up

UNREACHABLE = "x" * 300
"""A name longer than NAME_MAX: stat(2) of a link to it fails for every user."""


async def find(locator: DynamicLocator) -> Cid | Mux:
    """Return the address that the locator's source finds."""
    with trio.fail_after(30):
        return await look_up(locator, trio.CapacityLimiter(1))


async def look_up_error(locator: DynamicLocator) -> str:
    """Return the error of a look-up that fails."""
    with pytest.raises(GuestError) as caught:
        await find(locator)
    return str(caught.value)
