"""Uploads of a gibibyte with a half-close and an answer, through the real program."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.daemon_process import daemon

GIBIBYTE = 2**30
BLOCK = bytes(range(256)) * 4096  # 1 MiB

LISTEN = ("tcp", "unix", "vsock-mux")
TARGET = ("tcp", "unix", "vsock-mux")


@contextmanager
def target_of(kind: str, folder: Path) -> Iterator[tuple[str, socket.socket]]:
    """Yield a target in the configuration's grammar, and its listening socket."""
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            yield f"tcp:127.0.0.1:{listener.getsockname()[1]}", listener
        return
    path = folder / "target.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield f"unix:{path}" if kind == "unix" else f"vsock-mux:{path}:80", listener


def connect(kind: str, folder: Path, front: socket.socket) -> socket.socket:
    """Return a client connected to the route."""
    if kind == "tcp":
        return socket.create_connection(front.getsockname())
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(folder / ("front" if kind == "unix" else "front_80")))
    return client


def upload(client: socket.socket) -> bytes:
    """Send a gibibyte, half-close, and return the answer."""
    with client:
        for _ in range(GIBIBYTE // len(BLOCK)):
            client.sendall(BLOCK)
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()


def receive(kind: str, listener: socket.socket) -> None:
    """Accept one client, read its upload to the end, answer with its size and CRC-32."""
    server, _ = listener.accept()
    with server:
        if kind == "vsock-mux":
            assert server.recv(64) == b"CONNECT 80\n"
            server.sendall(b"OK 1073741824\n")
        buffer = bytearray(2**18)
        size = digest = 0
        while count := server.recv_into(buffer):
            size += count
            digest = zlib.crc32(memoryview(buffer)[:count], digest)
        server.sendall(b"%d %08x" % (size, digest))


@pytest.fixture(scope="module")
def expected() -> bytes:
    digest = 0
    for _ in range(GIBIBYTE // len(BLOCK)):
        digest = zlib.crc32(BLOCK, digest)
    return b"%d %08x" % (GIBIBYTE, digest)


@pytest.mark.parametrize("target_kind", TARGET)
@pytest.mark.parametrize("listen_kind", LISTEN)
async def test_an_upload_of_a_gibibyte_is_answered_after_the_half_close(
    listen_kind: str, target_kind: str, tmp_path: Path, expected: bytes
) -> None:
    listen = {
        "tcp": "fd:front",
        "unix": f"unix:{tmp_path}/front",
        "vsock-mux": f"vsock-mux:{tmp_path}/front:80",
    }[listen_kind]
    file = tmp_path / "config.toml"
    with (
        target_of(target_kind, tmp_path) as (target, listener),
        socket.create_server(("127.0.0.1", 0)) as front,
    ):
        file.write_text(f'[defaults]\nhalf_close = "forward"\n[forward]\n"{listen}" = "{target}"\n')
        async with daemon("run", "-c", file, sockets={"front": front}) as running:
            await running.wait_for("ready")
            answers: list[bytes] = []

            async def client() -> None:
                sock = connect(listen_kind, tmp_path, front)
                answers.append(await trio.to_thread.run_sync(upload, sock))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, receive, target_kind, listener)
                nursery.start_soon(client)
            assert answers == [expected]
            end = await running.wait_for("connection_closed", reason="finished")
            assert int(end["upstream_bytes"]) == GIBIBYTE
            assert end.get("vmm_port") == ("1073741824" if target_kind == "vsock-mux" else None)
            assert await running.stop() == 0
