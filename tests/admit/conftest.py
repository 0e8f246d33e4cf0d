"""What the tests of limits share."""

from __future__ import annotations

import pytest

from vsockproxy.admit import gate as gate_module


@pytest.fixture(autouse=True)
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the look after a second, which would hide an acceptor that was not woken."""
    monkeypatch.setattr(gate_module, "_PAUSE", 3600.0)
