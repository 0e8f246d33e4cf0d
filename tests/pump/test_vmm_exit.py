"""The end of a VMM's process is a reset, though its sockets close as those of a finished service.

The listener is a real process, which the test kills.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Final

import pytest
import trio

from tests.sockets import ends_by_reset, read_to_end, stream, tcp_pair
from vsockproxy.pump.transfer import Bounds, Meter, Pump, Transfer

_PART: Final = bytes(50_000)
_FAKE_VMM: Final = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    sys.stdout.write("listens")
    sys.stdout.flush()
    client, _ = listener.accept()
client.sendall(bytes(50_000))
if sys.argv[2] == "finishes":
    client.close()
    sys.stdin.read()
else:
    sys.stdin.read()
"""


@asynccontextmanager
async def fake_vmm(path: Path, does: str) -> AsyncIterator[trio.Process]:
    """Run a process that listens at a path and sends `_PART` to one client."""
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdin=PIPE, stdout=PIPE, check=False)
        process = await nursery.start(run, [sys.executable, "-c", _FAKE_VMM, path, does])
        assert process.stdout is not None
        assert await process.stdout.receive_some() == b"listens"
        yield process
        nursery.cancel_scope.cancel()


async def dial(path: Path) -> socket.socket:
    sock = trio.socket.socket(socket.AF_UNIX)
    await sock.connect(str(path))
    return socket.socket(fileno=sock.detach())


@pytest.mark.skipif(sys.platform != "linux", reason="asks SO_PEERCRED, a Linux option")
async def test_a_vmm_that_is_killed_in_a_download_resets_the_client(
    pump: Pump, tmp_path: Path
) -> None:
    async with fake_vmm(tmp_path / "v", "waits") as process:
        async with to_vmm(pump, tmp_path / "v") as (client, ended):
            received = 0
            while received < len(_PART):
                received += len(await client.receive_some())
            os.kill(process.pid, signal.SIGKILL)
            assert await ends_by_reset(client)
        assert ended[0].reason == "target_reset"


async def test_the_end_of_a_service_is_a_clean_end_while_its_vmm_runs(
    pump: Pump, tmp_path: Path
) -> None:
    async with fake_vmm(tmp_path / "v", "finishes"):
        async with to_vmm(pump, tmp_path / "v") as (client, ended):
            assert await read_to_end(client) == _PART
        assert ended[0].reason == "finished"


@asynccontextmanager
async def to_vmm(pump: Pump, path: Path) -> AsyncIterator[tuple[trio.SocketStream, list[Transfer]]]:
    """Relay a client to the VMM; its end is in the list when the block has been left."""
    dialled = await dial(path)
    client, side = tcp_pair()
    ended: list[Transfer] = []

    async def transfer() -> None:
        ended.append(
            await pump.transfer(side.detach(), dialled.detach(), Bounds(vmm=True), Meter())
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transfer)
        async with stream(client) as outer:
            yield outer, ended
