"""`vsockproxy connect` as a process: its streams, the target's end, signals and exit statuses."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, Final

import pytest
import trio

from tests.cli.terminal import terminal
from tests.daemon_process import PATIENCE, command, environment
from tests.dial.fake_vmm import Vmm
from tests.fake_services import (
    Service,
    echo,
    unix_listener,
    unix_server,
    unused_tcp_port,
)
from tests.sockets import (
    AF_VSOCK,
    CID_LOCAL,
    Pair,
    read_to_end,
    read_to_reset,
    reset,
    stream,
    tcp_pair,
    unix_pair,
)
from tests.waiting import until
from vsockproxy.address.grammar import parse_target
from vsockproxy.errors import dial_error

Stream = int | IO[bytes] | socket.socket | None

BULK: Final = os.urandom(1 << 16) * 48  # 3 MiB: more than every buffer on the way


class Connecting:
    """A running `connect`; created by `connecting`."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.errors = b""

    async def read(self) -> bytes:
        """Return its output up to EOF."""
        assert self.process.stdout is not None
        with trio.fail_after(PATIENCE):
            return await read_to_end(self.process.stdout)

    async def send(self, data: bytes, *, eof: bool = True) -> None:
        """Send input, and end it."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(data)
        if eof:
            await self.process.stdin.aclose()

    async def exchange(self, data: bytes) -> bytes:
        """Return the answer to an input, sent at the same time."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.send, data)
            return await self.read()

    async def wait(self) -> int:
        """Wait for its end; return the status, negative for a signal."""
        with trio.fail_after(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def connecting(
    *arguments: str | Path, stdin: Stream = subprocess.PIPE, stdout: Stream = subprocess.PIPE
) -> AsyncIterator[Connecting]:
    """Run ``vsockproxy connect ARGUMENTS`` while the block runs; kill it at the end."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "vsockproxy", "connect", *map(str, arguments)],
        env=environment(),
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    running = Connecting(process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_errors, running)
            yield running
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
    assert b"Traceback" not in running.errors, running.errors.decode()


async def _read_errors(running: Connecting) -> None:
    assert running.process.stderr is not None
    async for piece in running.process.stderr:
        running.errors += piece


@asynccontextmanager
async def tcp_target() -> AsyncIterator[tuple[str, trio.socket.SocketType]]:
    """Yield the address of a TCP target, and its listener; only the test accepts."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        listener = trio.socket.from_stdlib_socket(sock)
        yield f"tcp:127.0.0.1:{sock.getsockname()[1]}", listener
        sock.detach()
        listener.close()


async def accepted(listener: trio.socket.SocketType) -> trio.SocketStream:
    with trio.fail_after(PATIENCE):
        sock, _ = await listener.accept()
    return trio.SocketStream(sock)


def counted(data: bytes) -> bytes:
    return b"%d bytes %s\n" % (len(data), hashlib.sha256(data).hexdigest().encode())


async def answer_at_eof(client: trio.SocketStream) -> None:
    """Answer what came, once it has ended, with its digest and itself."""
    question = await read_to_end(client)
    await client.send_all(counted(question) + question)


async def answer_at_end_of_line(client: trio.SocketStream) -> None:
    """Answer a line, which a half-close may follow, with its digest and more."""
    question = b""
    while not question.endswith(b"\n"):
        question += await client.receive_some()
    await client.send_all(counted(question) + BULK)


# --- streams ------------------------------------------------------------------------------


async def test_pipes_get_every_byte_and_the_answer_after_the_half_close(tmp_path: Path) -> None:
    async with (
        unix_server(tmp_path / "s", answer_at_eof),
        connecting(f"unix:{tmp_path / 's'}") as running,
    ):
        assert await running.exchange(BULK) == counted(BULK) + BULK
        assert await running.wait() == 0
    assert running.errors == b""


async def test_files_get_every_byte(tmp_path: Path) -> None:
    question, answer = tmp_path / "question", tmp_path / "answer"
    question.write_bytes(BULK)
    with question.open("rb") as stdin, answer.open("wb") as stdout:
        async with (
            unix_server(tmp_path / "s", answer_at_eof),
            connecting(f"unix:{tmp_path / 's'}", stdin=stdin, stdout=stdout) as running,
        ):
            assert await running.wait() == 0
    assert answer.read_bytes() == counted(BULK) + BULK


async def test_non_blocking_pipes_get_every_byte_and_stay_non_blocking(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    stdin, feed = os.pipe()
    os.set_blocking(theirs, False)
    os.set_blocking(stdin, False)
    async with (
        unix_server(tmp_path / "s", answer_at_eof),
        connecting(f"unix:{tmp_path / 's'}", stdin=stdin, stdout=theirs) as running,
        trio.lowlevel.FdStream(feed) as source,
    ):
        assert not os.get_blocking(theirs)
        assert not os.get_blocking(stdin)
        os.close(theirs)
        os.close(stdin)
        async with trio.open_nursery() as nursery:
            sink = trio.lowlevel.FdStream(ours)

            async def send() -> None:
                await source.send_all(BULK)
                await source.aclose()

            nursery.start_soon(send)
            assert await read_to_end(sink) == counted(BULK) + BULK
            await sink.aclose()
        assert await running.wait() == 0


async def test_blocking_pipes_stay_blocking(tmp_path: Path) -> None:
    stdin, feed = os.pipe()
    async with (
        unix_server(tmp_path / "s", echo),
        connecting(f"unix:{tmp_path / 's'}", stdin=stdin) as running,
    ):
        os.write(feed, b"x")
        assert running.process.stdout is not None
        assert await running.process.stdout.receive_some() == b"x"  # it is at work
        assert os.get_blocking(stdin)
        os.close(feed)
        os.close(stdin)
        assert await running.wait() == 0


@pytest.mark.parametrize("pair", [tcp_pair, unix_pair])
async def test_one_socket_is_both_streams_and_is_half_closed(
    pair: Callable[[], Pair], tmp_path: Path
) -> None:
    ours, theirs = pair()
    async with (
        unix_server(tmp_path / "s", answer_at_eof),
        connecting(f"unix:{tmp_path / 's'}", stdin=theirs, stdout=theirs) as running,
        stream(ours) as client,
    ):
        theirs.close()

        async def send() -> None:
            await client.send_all(BULK)
            await client.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(PATIENCE):
                assert await read_to_end(client) == counted(BULK) + BULK
        assert await running.wait() == 0


async def test_a_tcp_socket_as_both_streams_is_reset_with_the_target() -> None:
    ours, theirs = tcp_pair()
    async with (
        tcp_target() as (address, listener),
        connecting(address, stdin=theirs, stdout=theirs) as running,
        stream(ours) as client,
    ):
        theirs.close()
        async with await accepted(listener) as service:
            await service.send_all(b"half an answer")
            assert await client.receive_some() == b"half an answer"
            reset(_taken(service))
        with trio.fail_after(PATIENCE):
            assert await read_to_reset(client) == b""
        assert await running.wait() == 3


async def test_two_sockets_are_the_streams(tmp_path: Path) -> None:
    feed, stdin = unix_pair()
    sink, stdout = unix_pair()
    async with (
        unix_server(tmp_path / "s", answer_at_eof),
        connecting(f"unix:{tmp_path / 's'}", stdin=stdin, stdout=stdout) as running,
        stream(feed) as source,
        stream(sink) as output,
    ):
        stdin.close()
        stdout.close()
        await source.send_all(b"question")
        await source.send_eof()
        with trio.fail_after(PATIENCE):
            assert await read_to_end(output) == counted(b"question") + b"question"
        assert await running.wait() == 0


async def test_a_closed_input_is_an_empty_one(tmp_path: Path) -> None:
    line = f'exec "{sys.executable}" -m vsockproxy connect "unix:{tmp_path / "s"}" <&-'
    async with unix_server(tmp_path / "s", answer_at_eof):
        done = await trio.run_process(["sh", "-c", line], env=environment(), capture_stdout=True)
    assert done.stdout == counted(b"")


async def test_a_terminal_ends_with_the_target(tmp_path: Path) -> None:
    async def service(client: trio.SocketStream) -> None:
        await client.send_all(b"welcome\n")
        assert await client.receive_some() == b"bye\n"

    async with (
        unix_server(tmp_path / "s", service),
        terminal("connect", f"unix:{tmp_path / 's'}") as screen,
    ):
        await screen.shows("welcome")
        await screen.type("bye\n")
        assert await screen.wait() == 0


async def test_the_targets_eof_reaches_the_reader_and_upstream_goes_on() -> None:
    async with tcp_target() as (address, listener), connecting(address) as running:
        async with await accepted(listener) as service:
            await service.send_all(b"done")
            await service.send_eof()
            assert await running.read() == b"done"
            await running.send(b"more")
            with trio.fail_after(PATIENCE):
                assert await read_to_end(service) == b"more"
        assert await running.wait() == 0


async def test_a_half_close_is_held_behind_a_vmm_that_takes_it_for_a_close(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path / "vmm", {80: answer_at_end_of_line}, collapses=True)
    async with vmm.running(), connecting(f"vsock-mux:{vmm.path}:80") as running:
        assert await running.exchange(b"question\n") == counted(b"question\n") + BULK
        assert await running.wait() == 0


async def test_half_close_forward_passes_it_on_at_once(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path / "vmm", {80: answer_at_eof})
    arguments = (f"vsock-mux:{vmm.path}:80", "--half-close", "forward")
    async with vmm.running(), connecting(*arguments) as running:
        assert await running.exchange(b"question") == counted(b"question") + b"question"
        assert await running.wait() == 0


@pytest.mark.vsock
async def test_a_vsock_target_gets_every_byte_and_a_half_close() -> None:
    with socket.socket(AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.bind((0xFFFFFFFF, 0xFFFFFFFF))
        sock.listen()
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_listeners, answer_at_eof, [listener])
            nursery.start_soon(serve)
            async with connecting(f"vsock:{CID_LOCAL}:{sock.getsockname()[1]}") as running:
                assert await running.exchange(BULK) == counted(BULK) + BULK
                assert await running.wait() == 0
            nursery.cancel_scope.cancel()


# --- ends ---------------------------------------------------------------------------------


async def test_a_targets_reset_is_status_3_after_its_data() -> None:
    async with tcp_target() as (address, listener), connecting(address) as running:
        service = await accepted(listener)
        await service.send_all(b"half an answer")
        assert running.process.stdout is not None
        assert await running.process.stdout.receive_some() == b"half an answer"
        reset(_taken(service))
        assert await running.read() == b""
        assert await running.wait() == 3
    assert running.errors.decode() == (
        f"vsockproxy: the connection to {address} was truncated:"
        " the target's service reset the connection, or the VM was stopped\n"
    )


@pytest.mark.parametrize("writes", [False, True])
async def test_a_closed_output_ends_it_by_sigpipe_and_resets_the_target(writes: bool) -> None:
    ours, theirs = os.pipe()
    async with (
        tcp_target() as (address, listener),
        connecting(address, stdout=theirs) as running,
    ):
        os.close(theirs)
        async with await accepted(listener) as service:
            os.close(ours)
            if writes:
                await service.send_all(b"x")
            with trio.fail_after(PATIENCE):
                await read_to_reset(service)
        assert await running.wait() == -signal.SIGPIPE
    assert running.errors == b""


async def test_a_full_disk_is_status_1_and_resets_the_target(full: int) -> None:
    async with tcp_target() as (address, listener), connecting(address, stdout=full) as running:
        async with await accepted(listener) as service:
            await service.send_all(b"x")
            with trio.fail_after(PATIENCE):
                await read_to_reset(service)
        assert await running.wait() == 1
    assert running.errors == (
        b"vsockproxy: cannot write to standard output: No space left on device\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_and_resets_a_truncated_upload(number: signal.Signals) -> None:
    async with tcp_target() as (address, listener), connecting(address) as running:
        async with await accepted(listener) as service:
            await running.send(b"half an upload", eof=False)
            assert await service.receive_some() == b"half an upload"
            running.process.send_signal(number)
            with trio.fail_after(PATIENCE):
                assert await read_to_reset(service) == b""
        assert await running.wait() == -number
    assert running.errors == b""


async def test_a_signal_ends_a_dial_that_waits(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path / "vmm", {})
    async with vmm.running(), connecting(f"vsock-mux:{vmm.path}:80", "--wait", "1h") as running:
        await until(lambda: vmm.live)
        running.process.send_signal(signal.SIGTERM)
        assert await running.wait() == -signal.SIGTERM


def _taken(service: trio.SocketStream) -> socket.socket:
    """Return the stream's socket; the stream is closed."""
    sock = socket.socket(fileno=os.dup(service.socket.fileno()))
    service.socket.close()
    return sock


# --- dialling -----------------------------------------------------------------------------


def test_a_failed_dial_is_status_1_with_its_sentence() -> None:
    target = f"tcp:127.0.0.1:{unused_tcp_port()}"
    done = command("connect", target)
    assert done.returncode == 1
    assert done.stderr == f"vsockproxy: {dial_error(parse_target(target), 111)}\n"
    assert done.stdout == ""


async def test_wait_dials_until_the_guest_listens(tmp_path: Path) -> None:
    services: dict[int, Service] = {}
    vmm = Vmm(tmp_path / "vmm", services)
    async with vmm.running(), connecting(f"vsock-mux:{vmm.path}:80", "--wait", "60s") as running:
        await until(lambda: vmm.live)
        services[80] = answer_at_end_of_line
        assert await running.exchange(b"x\n") == counted(b"x\n") + BULK
        assert await running.wait() == 0


def test_wait_ends_with_the_last_error(tmp_path: Path) -> None:
    done = command("connect", f"unix:{tmp_path / 'none'}", "--wait", "0.2s")
    assert done.returncode == 1
    assert "the socket does not exist [ENOENT]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("x",), "'x' is not a target"),
        (("3:80", "--half-close", "never"), "--half-close: 'never' is not one of auto, forward, "),
        (("3:80", "--wait", "soon"), "--wait: 'soon' is not a duration"),
        (("3:80", "--connect-timeout", "off"), "--connect-timeout: 'off' is not allowed here"),
        (("web:22",), "'web:22' names a guest and its port, but there is no configuration"),
        (("--domain", "vm", "web:22"), "'web:22' is not GUEST.vm:PORT"),
        (("--domain", "vm", "2.vm:22"), "'2' is not a guest's name"),
        (("--domain", "vm", "host.vm:22"), "'host' is a word of the address grammar"),
        (("--domain", "vm", "a.b.vm:22"), "'a.b' is not a guest's name"),
        (("--domain", "vm", "unix:/a.vm:22"), "'unix:/a' is not a guest's name"),
    ],
)
def test_an_invalid_argument_is_status_2_and_quoted(
    arguments: Sequence[str], sentence: str
) -> None:
    done = command("connect", *arguments)
    assert done.returncode == 2
    assert f"vsockproxy: {sentence}" in done.stderr


@pytest.mark.parametrize("arguments", [("Web:80",), ("--domain", "vm", "web.vm:80")])
async def test_a_guests_name_is_of_the_configuration(
    arguments: Sequence[str], tmp_path: Path
) -> None:
    vmm = Vmm(tmp_path / "vmm", {80: answer_at_end_of_line})
    file = tmp_path / "config.toml"
    file.write_text(f'[guests]\nWeb = {{ mux = "{vmm.path}" }}\n')
    async with vmm.running(), connecting("-c", file, *arguments) as running:
        assert await running.exchange(b"x\n") == counted(b"x\n") + BULK
        assert await running.wait() == 0


async def test_a_guest_without_a_fixed_address_is_looked_up(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path / "vm-17", {80: answer_at_end_of_line})
    file = tmp_path / "config.toml"
    file.write_text(f'[guests]\nweb = {{ mux = "{tmp_path}/vm-*" }}\n')
    async with vmm.running(), connecting("-c", file, "web:80") as running:
        assert await running.exchange(b"x\n") == counted(b"x\n") + BULK
        assert await running.wait() == 0


async def test_pass_fd_sends_the_connected_socket_by_standard_output(tmp_path: Path) -> None:
    ours, theirs = unix_pair()
    async with (
        unix_server(tmp_path / "s", answer_at_eof),
        connecting(f"unix:{tmp_path / 's'}", "--pass-fd", stdin=theirs, stdout=theirs) as running,
    ):
        theirs.close()
        assert await running.wait() == 0
        _, [descriptor], _, _ = socket.recv_fds(ours, 1, 1)
        async with stream(socket.socket(fileno=descriptor)) as target:
            await target.send_all(b"x")
            await target.send_eof()
            assert await read_to_end(target) == counted(b"x") + b"x"
    ours.close()


def test_pass_fd_to_a_pipe_is_status_1_with_a_remedy(tmp_path: Path) -> None:
    with unix_listener(tmp_path / "s"):
        done = command("connect", "--pass-fd", f"unix:{tmp_path / 's'}")
    assert done.returncode == 1
    assert "ProxyUseFdpass yes" in done.stderr
