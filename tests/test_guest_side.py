"""The guest's side of docs/inside-a-guest.md: the programs of its units, over AF_VSOCK."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.daemon_process import PATIENCE, REPOSITORY
from tests.fake_services import unused_tcp_port
from tests.sockets import AF_VSOCK, CID_LOCAL, read_to_end

pytestmark = [
    pytest.mark.vsock,
    pytest.mark.skipif(
        "VSOCKPROXY_TEST_KERNEL" not in os.environ,
        reason="needs a test kernel: install the package user-mode-linux, run `make test`",
    ),
]

UNITS: Final = REPOSITORY / "systemd" / "guest"
ANSWER: Final = b"x" * 1_000_000


@asynccontextmanager
async def host_service() -> AsyncIterator[int]:
    """Run a service of the host on a vsock port, whose number is free for TCP as well."""
    port = unused_tcp_port()
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.bind((0xFFFFFFFF, port))
        sock.listen()
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [listener])
            yield port
            nursery.cancel_scope.cancel()


def outward(port: int) -> dict[str, list[str]]:
    """Return the command of a unit that gives the guest a port of the host."""
    ours = [sys.executable, "-m", "vsockproxy", *_line("host-port@.service", port)[1:]]
    return {"vsockproxy": ours, "socat": _line("host-port-socat@.service", port)}


def commands(port: int) -> dict[str, list[str]]:
    """Return the command of a unit for a port; systemd-socket-activate replaces systemd."""
    ours = [sys.executable, "-m", "vsockproxy", *_line("vsock-port@.service", port)[1:]]
    listen = re.search(
        r"^ListenStream=(.*)$", (UNITS / "vsock-port-proxyd@.socket").read_text(), re.M
    )
    assert listen is not None
    activated = ["systemd-socket-activate", "--listen", listen[1].replace("%i", str(port))]
    return {
        "vsockproxy": ours,
        "socat": _line("vsock-port-socat@.service", port),
        "systemd-socket-proxyd": [*activated, *_line("vsock-port-proxyd@.service", port)],
    }


def _line(unit: str, port: int) -> list[str]:
    line = re.search(r"^ExecStart=(.*)$", (UNITS / unit).read_text(), re.MULTILINE)
    assert line is not None
    return shlex.split(line[1].replace("%i", str(port)))


async def answer(stream: trio.SocketStream) -> None:
    """Answer a line, or the bytes up to EOF, after more than half a second."""
    question = b""
    async for piece in stream:
        question += piece
        if question.endswith(b"\n"):
            break
    await trio.sleep(0.8)
    await stream.send_all(question + ANSWER)


@asynccontextmanager
async def guest_side(way: str) -> AsyncIterator[int]:
    """Run a guest's TCP service behind one of the three programs; yield the vsock port."""
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, answer, 0, host="127.0.0.1")
        [listener] = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        line = commands(port)[way]
        assert shutil.which(line[0]), f"install {line[0]}"
        process = await trio.lowlevel.open_process(line, stdin=subprocess.DEVNULL)
        try:
            yield port
        finally:
            process.terminate()
            await process.wait()
        nursery.cancel_scope.cancel()


async def connect(port: int, *, tcp: bool = False) -> trio.SocketStream:
    """Connect, and retry until the port listens."""
    with trio.fail_after(PATIENCE):
        while True:
            sock = trio.socket.socket(socket.AF_INET if tcp else AF_VSOCK, socket.SOCK_STREAM)
            try:
                await sock.connect(("127.0.0.1" if tcp else CID_LOCAL, port))
            except ConnectionError:  # refused: the program has not bound its port yet
                sock.close()
                await trio.lowlevel.checkpoint()
            else:
                return trio.SocketStream(sock)


@pytest.mark.parametrize("way", ["vsockproxy", "socat", "systemd-socket-proxyd"])
async def test_a_guests_tcp_service_is_reached_by_vsock(way: str) -> None:
    async with guest_side(way) as port:
        for _ in range(2):
            async with await connect(port) as stream:
                await stream.send_all(b"question\n")
                assert await read_to_end(stream) == b"question\n" + ANSWER


@pytest.mark.parametrize("way", ["vsockproxy", "socat"])
async def test_an_answer_after_the_hosts_half_close_arrives_whole(way: str) -> None:
    async with guest_side(way) as port, await connect(port) as stream:
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await read_to_end(stream) == b"question" + ANSWER


@pytest.mark.parametrize("way", ["vsockproxy", "socat"])
async def test_a_guests_program_reaches_the_host_by_tcp(way: str) -> None:
    async with host_service() as port:
        process = await trio.lowlevel.open_process(outward(port)[way], stdin=subprocess.DEVNULL)
        try:
            async with await connect(port, tcp=True) as stream:
                await stream.send_all(b"question")
                await stream.send_eof()
                assert await read_to_end(stream) == b"question" + ANSWER
        finally:
            process.terminate()
            await process.wait()


def test_every_unit_of_the_folder_is_tested() -> None:
    assert {unit.name for unit in Path(UNITS).iterdir()} == {
        "vsock-port@.service",
        "vsock-port-socat@.service",
        "vsock-port-proxyd@.service",
        "vsock-port-proxyd@.socket",
        "host-port@.service",
        "host-port-socat@.service",
    }
