"""The events that are kept for operators: failures and changes, not what every client causes."""

from __future__ import annotations

import pytest
from structlog.testing import CapturingLogger

from vsockproxy.log.recent import RecentEvents, Recorder


@pytest.mark.parametrize("event", ["connection_closed", "listening", "request_decided"])
def test_what_is_said_of_every_client_is_logged_and_not_kept(event: str) -> None:
    events, log = RecentEvents(), CapturingLogger()
    recorder = Recorder(log, events)
    recorder.info("reloaded")
    for _ in range(1000):
        recorder.info(event, route="web")
    assert [one.event for one in events.after(0)] == ["reloaded"]
    assert len(log.calls) == 1001
