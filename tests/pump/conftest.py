"""The pumps under test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from vsockproxy.config.settings import PumpChoice, PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.transfer import Pump


@pytest.fixture
async def pump(choice: PumpChoice) -> AsyncIterator[Pump]:
    """Run a pump of each kind."""
    async with open_pump(PumpSettings(choice, threads=2)) as pump:
        yield pump
