"""The daemon as a process: signals; under systemd: states, watchdog, sockets of the fd store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
import trio

from tests.daemon.running import LOOPBACK
from tests.daemon_process import PATIENCE, daemon, environment, parse_logfmt
from tests.fake_systemd import FakeSystemd, fake_systemd
from tests.sockets import stream
from vsockproxy.address.endpoint import MuxEndpoint, TcpEndpoint
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.daemon.http_servers import HttpServers
from vsockproxy.daemon.signals import supervise
from vsockproxy.errors import ConfigError, Problem
from vsockproxy.systemd import store_name

WATCHDOG_USEC = 200_000


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystemd]:
    """A fake systemd with a short watchdog interval, for this process and its children."""
    with fake_systemd(tmp_path / "notify") as running:
        running.environ["WATCHDOG_USEC"] = str(WATCHDOG_USEC)
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


def configuration(guest: MuxEndpoint, *names: str) -> Config:
    policy = Policy(half_close="forward", drain_timeout=20)
    return Config(tuple(Route(name, LOOPBACK, guest, policy) for name in names))


Load = Callable[[], Config] | None


async def run(config: Config, load: Load = None, *, task_status: trio.TaskStatus[None]) -> None:
    """Run `supervise` in this process until a signal; it must drain."""
    assert await supervise(config, nullcontext(), task_status.started, load)


@asynccontextmanager
async def service(config: Config, load: Load = None) -> AsyncIterator[None]:
    """Run `supervise` for a block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(run, config, load)
        yield
        os.kill(os.getpid(), signal.SIGTERM)


async def client_of(systemd: FakeSystemd) -> trio.SocketStream:
    """Connect a client to the first listener that the fd store was given."""
    [file] = (await systemd.wait_for(FDSTORE="1")).files
    with socket.socket(fileno=os.dup(file)) as listener:
        sock = trio.socket.socket()
        await sock.connect(listener.getsockname())
    return trio.SocketStream(sock)


# ---- states ----


async def test_ready_is_sent_once_every_route_listens(
    systemd: FakeSystemd, guest: MuxEndpoint
) -> None:
    async with service(configuration(guest, "echo")):
        async with await client_of(systemd) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
        assert (await systemd.wait_for()).fields == {"STATUS": "1 route, 0 live connections"}
        assert (await systemd.wait_for()).fields == {"READY": "1"}


async def test_a_daemon_that_cannot_listen_sends_no_ready(
    systemd: FakeSystemd, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        async with daemon("forward", taken, f"unix:{tmp_path}/x") as running:
            assert await running.wait() == 1
    with pytest.raises(BlockingIOError):
        systemd.receive()


async def test_the_status_follows_the_connections(systemd: FakeSystemd, guest: MuxEndpoint) -> None:
    async with service(configuration(guest, "echo")):
        async with await client_of(systemd):
            await systemd.wait_for(STATUS="1 route, 1 live connection")
        await systemd.wait_for(STATUS="1 route, 0 live connections")


async def test_the_watchdog_is_fed_within_its_interval(
    systemd: FakeSystemd, guest: MuxEndpoint
) -> None:
    async with service(configuration(guest, "echo")):
        await systemd.wait_for(WATCHDOG="1")
        for _ in range(3):
            with trio.fail_after(WATCHDOG_USEC / 1e6):
                await systemd.wait_for(WATCHDOG="1")


async def test_the_status_is_sent_without_a_watchdog(
    systemd: FakeSystemd, guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    async with service(configuration(guest, "echo")):
        await systemd.wait_for(STATUS="1 route, 0 live connections")


async def test_a_stop_is_sent_and_extends_the_timeout_until_the_last_connection_ends(
    systemd: FakeSystemd, guest: MuxEndpoint
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(run, configuration(guest, "echo"))
        async with await client_of(systemd) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            os.kill(os.getpid(), signal.SIGTERM)
            await systemd.wait_for(STOPPING="1")
            await systemd.wait_for(STATUS="draining, 1 live connection")
            for _ in range(3):
                await systemd.wait_for_key("EXTEND_TIMEOUT_USEC")


async def test_the_timeout_is_extended_for_a_route_that_a_reload_has_removed(
    systemd: FakeSystemd, guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    config = configuration(guest, "echo")
    short = Policy(half_close="forward", drain_timeout=0)
    other = Config((Route("other", TcpEndpoint("localhost", 0), guest, short),))
    async with trio.open_nursery() as nursery:
        await nursery.start(run, config, lambda: other)
        async with await client_of(systemd) as client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            os.kill(os.getpid(), signal.SIGHUP)
            await systemd.wait_for(RELOADING="1")
            await systemd.wait_for(READY="1")
            os.kill(os.getpid(), signal.SIGTERM)
            await systemd.wait_for(STOPPING="1")
            microseconds = int(await systemd.wait_for_key("EXTEND_TIMEOUT_USEC"))
            assert microseconds > 10e6  # a grace of 5 s alone is for routes without a connection


# ---- reload ----


async def test_sighup_reloads_between_reloading_and_ready(
    systemd: FakeSystemd, guest: MuxEndpoint
) -> None:
    other = TcpEndpoint("localhost", 0)
    two = Config((*configuration(guest, "echo").routes, Route("more", other, guest)))
    async with service(configuration(guest, "echo"), lambda: two):
        await systemd.wait_for(READY="1")
        os.kill(os.getpid(), signal.SIGHUP)
        assert "MONOTONIC_USEC" in (await systemd.wait_for(RELOADING="1")).fields
        await systemd.wait_for(FDSTORE="1")
        await systemd.wait_for(STATUS="2 routes, 0 live connections")
        await systemd.wait_for(READY="1")


async def test_a_failed_reload_logs_every_problem_and_sends_ready(
    systemd: FakeSystemd, guest: MuxEndpoint, logged: list[structlog.typing.EventDict]
) -> None:
    config = configuration(guest, "echo")
    answers: list[Config | ConfigError] = [
        ConfigError("a.toml", (Problem("route", "is wrong"), Problem("metrics", "is worse"))),
        config,
    ]

    def load() -> Config:
        answer = answers.pop(0)
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    async with service(config, load):
        client = await client_of(systemd)
        await systemd.wait_for(READY="1")
        os.kill(os.getpid(), signal.SIGHUP)
        status = "the last reload failed, see the log; 1 route, 1 live connection"
        await systemd.wait_for(STATUS=status)
        await systemd.wait_for(READY="1")
        problems = [event["problem"] for event in logged if event["event"] == "reload_failed"]
        assert problems == ["a.toml: route: is wrong", "a.toml: metrics: is worse"]
        async with client:
            await client.send_all(b"x")
            assert await client.receive_some() == b"x"
            os.kill(os.getpid(), signal.SIGHUP)
            await systemd.wait_for(STATUS="1 route, 1 live connection")


async def test_sighup_drains_a_daemon_without_a_file(tmp_path: Path) -> None:
    async with daemon("forward", f"unix:{tmp_path}/front", f"unix:{tmp_path}/x") as running:
        await running.wait_for("ready")
        running.send_signal(signal.SIGHUP)
        await running.wait_for("draining")
        assert await running.wait() == 0


async def test_sighup_drains_a_daemon_with_settings_in_the_environment(tmp_path: Path) -> None:
    environ = {"VSOCKPROXY_FORWARD": f"unix:{tmp_path}/front=unix:{tmp_path}/x"}
    async with daemon("run", environ=environ) as running:
        await running.wait_for("ready")
        running.send_signal(signal.SIGHUP)
        assert await running.wait() == 0


async def test_sighup_is_ignored_under_nohup(guest: MuxEndpoint) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with service(configuration(guest, "echo")):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
async def test_a_signal_without_a_meaning_is_logged_and_ends_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    async with daemon("forward", f"unix:{tmp_path}/front", f"unix:{tmp_path}/x") as running:
        await running.wait_for("ready")
        running.send_signal(number)
        await running.wait_for("signal_ignored", signal=number.name)
        assert await running.stop() == 0


# ---- signals during the start ----

# The program, which gets a signal right after it holds them: before its slow imports.
_SIGNALLED: Final = """
import os, signal, sys
from vsockproxy import __main__ as program
from vsockproxy.daemon import early_signals
hold = early_signals.hold
def hold_and_signal():
    hold()
    for name in os.environ["TEST_SIGNALS"].split():
        os.kill(os.getpid(), getattr(signal, name))
early_signals.hold = hold_and_signal
program.main()
"""


def signalled(tmp_path: Path, *names: str) -> subprocess.Popen[str]:
    """Start `run` with a file; it gets these signals while it starts."""
    file = tmp_path / "x.toml"
    file.write_text(f'forward."unix:{tmp_path}/front" = "unix:{tmp_path}/x"\n')
    return subprocess.Popen(
        [sys.executable, "-c", _SIGNALLED, "run", "-c", str(file)],
        env=environment() | {"TEST_SIGNALS": " ".join(names)},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_during_the_start_ends_it_before_anything_is_opened(
    tmp_path: Path, name: str
) -> None:
    with signalled(tmp_path, name) as process:
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "event=stopped" in log
    assert "event=ready" not in log
    assert not (tmp_path / "front").exists()


def test_a_second_stop_during_the_start_ends_the_process_at_once(tmp_path: Path) -> None:
    with signalled(tmp_path, "SIGTERM", "SIGINT") as process:
        _, log = process.communicate(timeout=PATIENCE)
    assert (process.returncode, log) == (1, "")


def test_sighup_during_the_start_reloads_once_ready(tmp_path: Path) -> None:
    with signalled(tmp_path, "SIGHUP", "SIGUSR1") as process:
        assert process.stderr is not None
        events = [parse_logfmt(process.stderr.readline())["event"] for _ in range(5)]
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert events[1] == "control_socket_failed"  # no test's daemon has a default place
    assert [events[0], *events[2:]] == ["pump_started", "listening", "ready", "reloaded"]
    assert process.returncode == 0


def test_the_entry_imports_nothing_slow_before_it_holds_the_signals() -> None:
    code = (
        "import sys; before = set(sys.modules); import vsockproxy.__main__;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert modules <= {
        "gc",
        "signal",
        "vsockproxy",
        "vsockproxy.__main__",
        "vsockproxy.daemon",
        "vsockproxy.daemon.early_signals",
    }


async def test_a_stop_during_the_start_sends_no_ready(
    systemd: FakeSystemd, guest: MuxEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = HttpServers.start

    async def start_while_a_signal_comes(self: HttpServers, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await systemd.wait_for(STOPPING="1")
        await start(self, *arguments)

    monkeypatch.setattr(HttpServers, "start", start_while_a_signal_comes)
    assert await supervise(configuration(guest, "echo"), nullcontext(), lambda: None)
    assert not [fields for fields in _all(systemd) if "READY" in fields]


# ---- sockets that systemd hands in ----


async def test_a_restored_socket_serves_its_route_and_stays_in_the_fd_store(
    systemd: FakeSystemd, guest: MuxEndpoint
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        port = kept.getsockname()[1]
        name = store_name(TcpEndpoint("127.0.0.1", port), 0)
        early = socket.create_connection(("127.0.0.1", port))
        arguments = ("forward", f"127.0.0.1:{port}", str(guest), "--half-close", "forward")
        async with daemon(*arguments, sockets={name: kept}) as running:
            async with stream(early) as client:
                await client.send_all(b"queued")
                assert await client.receive_some() == b"queued"
            assert await running.stop() == 0
        told = _all(systemd)
        assert {"READY": "1"} in told
        assert not [fields for fields in told if "FDSTOREREMOVE" in fields]


async def test_a_restored_socket_without_a_route_is_discarded(
    systemd: FakeSystemd, guest: MuxEndpoint, tmp_path: Path
) -> None:
    kept = socket.create_server(("127.0.0.1", 0))
    address = kept.getsockname()
    name = store_name(TcpEndpoint(*address), 0)
    front = f"unix:{tmp_path}/front"
    async with daemon("forward", front, str(guest), sockets={name: kept}) as running:
        kept.close()
        await running.wait_for("ready")
        await systemd.wait_for(FDSTOREREMOVE="1", FDNAME=name)
        await systemd.wait_for(READY="1")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)


async def test_an_unused_inherited_socket_is_logged(guest: MuxEndpoint) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as used,
        socket.create_server(("127.0.0.1", 0)) as surplus,
    ):
        sockets = {"web": used, "old": surplus}
        async with daemon("forward", "fd:web", str(guest), sockets=sockets) as running:
            event = await running.wait_for("unused_socket")
            assert (event["level"], event["name"]) == ("warning", "old")
            await running.stop()
            assert not [line for line in running.lines if "unused_socket name=web" in line]


def _all(systemd: FakeSystemd) -> list[dict[str, str]]:
    """Return every message that is queued."""
    told: list[dict[str, str]] = []
    try:
        while True:
            told.append(dict(systemd.receive().fields))
    except BlockingIOError:
        return told
