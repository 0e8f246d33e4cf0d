"""What only the portable pump can get wrong: it moves bytes in the loop that others use too."""

from __future__ import annotations

import trio.testing

from tests.pump.relayed import relayed
from vsockproxy.pump.portable import PortablePump
from vsockproxy.pump.transfer import Bounds


async def test_bytes_that_came_while_the_loop_was_busy_are_not_silence(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with relayed(PortablePump("test"), ("tcp", "tcp"), Bounds(idle_timeout=1.0)) as run:
        await trio.testing.wait_all_tasks_blocked()
        run.client.socket._sock.send(b"late")  # type: ignore[attr-defined] # lets no task run
        mock_clock.jump(2.0)
        assert await run.target.receive_some() == b"late"
        mock_clock.jump(0.5)
        await run.target.send_all(b"answer")
        assert await run.client.receive_some() == b"answer"


async def test_silence_ends_a_connection_after_bytes_have_moved(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with relayed(PortablePump("test"), ("tcp", "tcp"), Bounds(idle_timeout=1.0)) as run:
        await run.client.send_all(b"some")
        assert await run.target.receive_some() == b"some"
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(2.0)
        assert await run.reason() == "idle_timeout"
