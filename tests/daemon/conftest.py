"""Fixtures for tests of a whole daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.running import GUEST_PORT
from tests.fake_services import echo, mux_server
from vsockproxy.address.endpoint import MuxEndpoint


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[MuxEndpoint]:
    """A vsock-mux whose guest echoes on one port."""
    async with mux_server(tmp_path / "guest.sock", {GUEST_PORT: echo}) as server:
        yield MuxEndpoint(str(server.path), GUEST_PORT)
