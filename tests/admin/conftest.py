"""Fixtures of the tests of the control API."""

from __future__ import annotations

import pytest

from vsockproxy.config.settings import PumpChoice


@pytest.fixture(params=["native", "portable"])
def choice(request: pytest.FixtureRequest) -> PumpChoice:
    """Return each pump."""
    value: PumpChoice = request.param
    return value
