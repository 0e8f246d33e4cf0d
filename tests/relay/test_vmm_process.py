"""A VMM's process ends or starts again behind a route, direct or not.

The VMMs are real processes, which speak the handshake and which the tests kill.  One that starts
again has the number of the one before, where the system lets a process choose it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Final

import pytest
import trio

from tests.listen.running_route import Served, serving
from tests.sockets import ends_by_reset, read_to_end
from vsockproxy.address.endpoint import Dialable, MuxEndpoint, UnixEndpoint
from vsockproxy.config.guest import UnixSockets
from vsockproxy.config.settings import Direct, Policy

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(sys.platform != "linux", reason="asks SO_PEERCRED, a Linux option"),
]

_PART: Final = bytes(50_000)
_FAKE_VMMS: Final = """
import ctypes, os, socket, sys, threading

def serve(client):
    if len(sys.argv) > 2:  # a socket for one port: no handshake
        client.sendall(bytes(50_000))
        if client.recv(1):
            client.close()
        return
    request = client.makefile("rb").readline()
    if request == b"CONNECT 666\\n":
        outlive(client)
    client.sendall(b"OK 1073741824\\n" + bytes(50_000))
    if client.recv(1):
        client.close()

def outlive(client):
    "Kill this process; a child of it answers after its death."
    parent = os.getpid()
    if os.fork():
        os.kill(parent, 9)
    while os.getppid() == parent:
        os.sched_yield()
    client.sendall(b"OK 1073741824\\n" + bytes(50_000))
    os._exit(0)

def die_with_launcher():
    while os.getppid() != launcher:
        os.sched_yield()
    libc.prctl(1, 9)  # PR_SET_PDEATHSIG: SIGKILL

def vmm(path, hands_over=False):
    die_with_launcher()
    if os.path.exists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    if hands_over:
        if os.fork():
            os._exit(0)
        die_with_launcher()
    else:
        os.write(1, b"%d\\n" % os.getpid())
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()

def fork(number):
    # clone3(2): struct clone_args with exit_signal, set_tid and set_tid_size
    tid = ctypes.c_int(number)
    args = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(tid), 1, 0)
    pid = libc.syscall(435, args, ctypes.sizeof(args)) if number else -1
    return os.fork() if pid < 0 else pid

launcher = os.getpid()
libc = ctypes.CDLL(None)
libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: the parent of a child's child, once the child has ended
number = 0
for line in sys.stdin:
    if line == "hand over\\n":
        pid = os.fork()
        if pid == 0:
            vmm(sys.argv[1], hands_over=True)
        os.waitpid(pid, 0)
        os.write(1, b"handed over\\n")
    elif line == "start\\n":
        pid = fork(number)
        if pid == 0:
            vmm(sys.argv[1])
        number = number or pid
    else:
        os.waitpid(int(line), 0)
        os.write(1, b"reaped\\n")
"""


class Vmms:
    """Processes that listen at one path, one after another."""

    def __init__(self, launcher: trio.Process) -> None:
        self._launcher = launcher

    async def start(self) -> int:
        """Start a VMM that takes the path; return its process once it listens."""
        return int(await self._ask("start"))

    async def start_and_hand_over(self) -> None:
        """Start a process that listens, and leaves its listener to a child before it ends."""
        assert await self._ask("hand over") == "handed over"

    async def kill(self, pid: int) -> None:
        """Kill a VMM; return once its number is free."""
        os.kill(pid, signal.SIGKILL)
        assert await self._ask(str(pid)) == "reaped"

    async def _ask(self, line: str) -> str:
        assert self._launcher.stdin is not None
        assert self._launcher.stdout is not None
        await self._launcher.stdin.send_all(f"{line}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await self._launcher.stdout.receive_some()
        return answer.decode().strip()


@pytest.fixture(params=["auto", "off"])
def mode(request: pytest.FixtureRequest) -> Direct:
    mode: Direct = request.param
    return mode


@asynccontextmanager
async def route_to_vmms(
    folder: Path, mode: Direct, target: Dialable | None = None
) -> AsyncIterator[tuple[Served, Vmms]]:
    """Serve a route to the VMMs at ``v`` in a folder, by default to port 80 of a vsock-mux."""
    path = folder / "v"
    target = target or MuxEndpoint(str(path), 80)
    policy = replace(Policy(half_close="forward"), direct=mode)
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, stdin=PIPE, stdout=PIPE, check=False)
        speaks = [] if isinstance(target, MuxEndpoint) else ["no handshake"]
        launcher = await nursery.start(run, [sys.executable, "-c", _FAKE_VMMS, path, *speaks])
        async with serving(policy, dial_to=target) as route:
            assert (route.listener.not_direct() is None) == (mode == "auto")
            yield route, Vmms(launcher)
        nursery.cancel_scope.cancel()


async def downloading(route: Served) -> trio.SocketStream:
    """Return a client that has received all that a VMM sends before it finishes."""
    client = route.connect()
    received = 0
    while received < len(_PART):
        received += len(await client.receive_some())
    return client


async def ends_cleanly(client: trio.SocketStream) -> bool:
    """Return whether a client whose service finishes reads a clean end."""
    async with client:
        await client.send_all(b"f")
        return await read_to_end(client) == b""


async def test_a_killed_vmm_resets_the_client_of_each_of_its_connections(
    tmp_path: Path, mode: Direct
) -> None:
    async with route_to_vmms(tmp_path, mode) as (route, vmms):
        pid = await vmms.start()
        clients = [await downloading(route) for _ in range(3)]
        assert await ends_cleanly(clients.pop())
        await vmms.kill(pid)
        for client in clients:
            assert await ends_by_reset(client)
        await route.closed("target_reset", 2)
        await route.closed("finished")


async def test_a_killed_vmm_with_a_socket_for_each_port_resets_its_clients(
    tmp_path: Path, mode: Direct
) -> None:
    target = UnixSockets(str(tmp_path / "v")).address(80)
    async with route_to_vmms(tmp_path, mode, target) as (route, vmms):
        pid = await vmms.start()
        client = await downloading(route)
        assert await ends_cleanly(await downloading(route))
        await vmms.kill(pid)
        assert await ends_by_reset(client)
        await route.closed("target_reset")
        await route.closed("finished")


async def test_a_killed_service_at_a_unix_socket_ends_its_clients_cleanly(
    tmp_path: Path, mode: Direct
) -> None:
    """Nothing tells its end from that of a process which finishes and exits."""
    target = UnixEndpoint(str(tmp_path / "v"))
    async with route_to_vmms(tmp_path, mode, target) as (route, vmms):
        pid = await vmms.start()
        async with await downloading(route) as client:
            await vmms.kill(pid)
            assert await read_to_end(client) == b""
        await route.closed("finished")


async def test_a_vmm_that_has_died_when_its_answer_is_read_resets_the_client(
    tmp_path: Path, mode: Direct
) -> None:
    """It lived when its socket was connected, and a part of its answer is no whole one."""
    async with route_to_vmms(tmp_path, mode, MuxEndpoint(str(tmp_path / "v"), 666)) as (
        route,
        vmms,
    ):
        await vmms.start()
        async with route.connect() as client:
            assert await ends_by_reset(client)
        await route.closed("target_reset")


async def test_the_end_of_a_process_that_had_handed_its_listener_on_before_says_nothing(
    tmp_path: Path, mode: Direct
) -> None:
    async with route_to_vmms(tmp_path, mode) as (route, vmms):
        await vmms.start_and_hand_over()
        assert await ends_cleanly(await downloading(route))
        await route.closed("finished")


async def test_a_vmm_that_starts_again_under_its_number_is_judged_by_its_own_life(
    tmp_path: Path, mode: Direct
) -> None:
    async with route_to_vmms(tmp_path, mode) as (route, vmms):
        for turn in (1, 2, 3):
            pid = await vmms.start()
            finished, cut = await downloading(route), await downloading(route)
            assert await ends_cleanly(finished)
            await vmms.kill(pid)
            assert await ends_by_reset(cut)
            await route.closed("target_reset", turn)
            await route.closed("finished", turn)


async def test_a_vmm_that_another_one_has_followed_at_its_path_still_ends_by_a_reset(
    tmp_path: Path, mode: Direct
) -> None:
    async with route_to_vmms(tmp_path, mode) as (route, vmms):
        old = await vmms.start()
        of_old = await downloading(route)
        new = await vmms.start()
        of_new = await downloading(route)
        await vmms.kill(old)
        assert await ends_by_reset(of_old)
        later = await downloading(route)
        assert await ends_cleanly(of_new)
        await vmms.kill(new)
        assert await ends_by_reset(later)
