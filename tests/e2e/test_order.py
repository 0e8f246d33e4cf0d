"""The real program when clients, bytes and ends have come before it runs again."""

from __future__ import annotations

import os
import select
import signal
import socket
from pathlib import Path

import pytest

from tests.daemon_process import PATIENCE, Daemon, daemon

pytestmark = pytest.mark.native


def stop(running: Daemon) -> None:
    """Stop every thread of the daemon; return once they have stopped."""
    running.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, running.pid, os.WSTOPPED)


def connect(front: socket.socket, back: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return both outer ends of a new connection, with its first byte passed."""
    client = socket.create_connection(front.getsockname(), PATIENCE)
    client.sendall(b"x")
    target, _ = back.accept()
    target.settimeout(PATIENCE)
    assert target.recv(1) == b"x"
    return client, target


async def test_end_before_bytes_before_client_are_served_in_the_opposite_order(
    tmp_path: Path,
) -> None:
    config = tmp_path / "one_thread.toml"
    config.write_text(f'[pump]\nthreads = 1\n[forward]\n"fd:front" = "unix:{tmp_path}/back"\n')
    with (
        socket.create_server(("127.0.0.1", 0)) as front,
        socket.socket(socket.AF_UNIX) as back,
        select.epoll() as ready,
    ):
        back.bind(f"{tmp_path}/back")
        back.listen()
        back.settimeout(PATIENCE)
        async with daemon("run", "-c", config, sockets={"front": front}) as running:
            await running.wait_for("ready")
            ending, ending_target = connect(front, back)
            asking, asking_target = connect(front, back)
            with ending, ending_target, asking, asking_target:
                for target in (ending_target, asking_target, back):
                    ready.register(target, select.EPOLLIN)
                stop(running)
                ending.shutdown(socket.SHUT_WR)
                asking.sendall(b"x")
                with socket.create_connection(front.getsockname()):
                    running.send_signal(signal.SIGCONT)
                    for target in (ending_target, asking_target, back):
                        assert select.select([target], [], [], PATIENCE)[0]
                    # epoll(7) reports sockets in the order in which they became ready.
                    order = [descriptor for descriptor, _ in ready.poll(0)]
                targets = (back, asking_target, ending_target)
                assert order == [target.fileno() for target in targets]
