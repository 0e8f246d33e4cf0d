"""Memory as a limit: clients are queued before it is used up."""

from __future__ import annotations

import pytest
import trio

from tests.listen.running_route import serving
from tests.waiting import PATIENCE
from vsockproxy.admit import gate as gate_module
from vsockproxy.admit import memory
from vsockproxy.admit.process_limits import Admission
from vsockproxy.config.settings import Policy


async def test_clients_are_queued_without_memory_and_admitted_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_module, "_PAUSE", 0.0)
    monkeypatch.setattr(memory, "is_left", lambda: False)  # a fake: no limit of the tests' own
    admission = Admission()
    async with serving(Policy(), admission=admission) as route, route.connect() as client:
        await client.send_all(b"x")
        await route.queues("memory")
        assert not admission.is_open
        monkeypatch.setattr(memory, "is_left", lambda: True)
        with trio.fail_after(PATIENCE):
            assert await client.receive_some() == b"x"
        assert admission.is_open
