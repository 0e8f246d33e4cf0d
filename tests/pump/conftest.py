"""The pumps under test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.pump.direct_pump import KINDS, opened
from vsockproxy.pump.transfer import Pump


@pytest.fixture(params=KINDS)
async def pump(request: pytest.FixtureRequest) -> AsyncIterator[Pump]:
    """Run a pump of each kind."""
    async with opened(request.param) as pump:
        yield pump
