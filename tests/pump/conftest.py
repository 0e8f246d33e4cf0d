"""The pumps under test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from vsockproxy.config.settings import PumpChoice, PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Pump


@pytest.fixture(params=["native", "portable"])
async def pump(request: pytest.FixtureRequest) -> AsyncIterator[Pump]:
    """Run a pump of each kind."""
    choice: PumpChoice = request.param
    async with open_pump(PumpSettings(choice, threads=2)) as pump:
        yield pump
