"""Probes: steps, sentences, remedies, and the wait for a guest."""

import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.daemon_process import command
from tests.dial.fake_vmm import AnswersLate
from tests.doctor.canned_machine import routes
from tests.fake_services import (
    HOST_PORT,
    answers,
    answers_nothing,
    dead_unix_socket,
    echo,
    hold,
    mux_server,
    says,
    unix_listener,
    unused_tcp_port,
)
from tests.waiting import until
from vsockproxy.address.endpoint import (
    Dialable,
    GuestEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.cli.diagnose import _unescaped, probe_target
from vsockproxy.config.guest import Guest, MuxGlob
from vsockproxy.dial.unanswered import UNANSWERED
from vsockproxy.doctor.probe import Probe, describe, probe, wait_for
from vsockproxy.doctor.targets import judge_targets
from vsockproxy.guests.directory import Guests

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

TIMEOUT = 20.0
SHORT = 0.05


def steps(result: Probe) -> list[str]:
    return [step.name for step in result.steps]


# --- what is seen -------------------------------------------------------------------------


async def test_a_reached_guest_has_two_steps_and_the_vmms_number(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: hold}):
        result = await probe(MuxEndpoint(str(tmp_path / "v"), 80), TIMEOUT, look=SHORT)
    assert result.reached
    assert steps(result) == ["connect", "handshake"]
    assert result.number == HOST_PORT
    assert result.remedy == ""
    lines = list(describe(result))
    assert lines[-1].startswith("reached in ")
    assert f"  the VMM answered OK {HOST_PORT}" in lines


async def test_a_host_name_adds_a_resolve_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        named = await probe(TcpEndpoint("localhost", port), TIMEOUT, look=SHORT)
        numbered = await probe(TcpEndpoint("127.0.0.1", port), TIMEOUT, look=SHORT)
    assert steps(named) == ["resolve", "connect"]
    assert steps(numbered) == ["connect"]
    assert named.reached
    assert numbered.reached


async def test_a_failed_step_is_the_last_and_its_remedy_follows(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {}):
        result = await probe(MuxEndpoint(str(tmp_path / "v"), 81), TIMEOUT)
    assert not result.reached
    assert steps(result) == ["connect", "handshake"]
    *_, failed, verdict, action = describe(result)
    assert failed.startswith("  handshake")
    assert failed.endswith("failed")
    assert verdict.startswith("not reached: nothing listens on the guest's port 81")
    assert action.startswith("  -> start the service in the guest, on vsock port 81")


async def test_a_silent_guest_is_no_answer_after_the_timeout(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: echo}, answers_nothing):
        result = await probe(MuxEndpoint(str(tmp_path / "v"), 80), SHORT)
    assert result.failure is not None
    assert result.failure.reason == "no_answer"
    assert result.seconds >= SHORT
    assert "console" in result.remedy


async def by_probe(path: Path) -> None:
    endpoint = MuxEndpoint(str(path), 80)
    assert not (await probe_target(endpoint, (), 0.05, None, b"")).reached


async def by_doctor(path: Path) -> None:
    config = routes("8080", f"vsock-mux:{path}:80", defaults={"connect_timeout": 0.05})
    [finding] = await judge_targets(config)
    assert finding.level == "problem"


@pytest.mark.parametrize("dials", [by_probe, by_doctor])
async def test_a_late_ok_to_a_command_is_received_before_it_ends(
    tmp_path: Path, dials: Callable[[Path], Awaitable[None]]
) -> None:
    late = AnswersLate()
    kept_at_end: list[int] = []

    async def command_runs() -> None:
        await dials(tmp_path / "v")
        kept_at_end.append(len(UNANSWERED.get()))

    async with (
        mux_server(tmp_path / "v", {80: echo}, late),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(command_runs)
        await until(lambda: len(UNANSWERED.get()))
        await trio.testing.wait_all_tasks_blocked()
        late.answer.set()
    assert (late.received, kept_at_end) == ([True], [0])


async def test_an_answer_other_than_ok_suggests_a_unix_target(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: hold}, answers(b"HTTP/1.1 400\n")):
        result = await probe(MuxEndpoint(str(tmp_path / "v"), 80), TIMEOUT)
    assert f"unix:{tmp_path}/v" in result.remedy


async def test_a_greeting_is_shown(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {22: says(b"SSH-2.0-x\r\nmore")}):
        result = await probe(MuxEndpoint(str(tmp_path / "v"), 22), TIMEOUT, look=TIMEOUT)
    assert result.reached
    assert "  it says: SSH-2.0-x ..." in describe(result)


async def test_bytes_to_send_add_an_answer_step(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {7: echo}):
        result = await probe(MuxEndpoint(str(tmp_path / "v"), 7), TIMEOUT, send=b"ping\n")
    assert result.said == b"ping\n"
    assert steps(result) == ["connect", "handshake", "answer"]


async def test_a_socket_that_closes_immediately_is_not_reached(tmp_path: Path) -> None:
    """VMMs with one socket for each port do so: they accept every connection."""
    with unix_listener(tmp_path / "port-80") as sock:
        sock.setblocking(False)

        async def drop() -> None:
            with trio.socket.from_stdlib_socket(sock.dup()) as listener:
                client, _ = await listener.accept()
                client.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop)
            result = await probe(UnixEndpoint(str(tmp_path / "port-80")), TIMEOUT, look=TIMEOUT)
    assert not result.reached
    assert result.what == "the target accepted the connection and closed it immediately"
    assert "guest" in result.remedy
    assert result.as_json()["reason"] == "closed"


async def test_a_dead_socket_and_a_missing_one_have_different_remedies(tmp_path: Path) -> None:
    dead_unix_socket(tmp_path / "dead")
    dead = await probe(MuxEndpoint(str(tmp_path / "dead"), 80), TIMEOUT)
    missing = await probe(MuxEndpoint(str(tmp_path / "none"), 80), TIMEOUT)
    assert "again" in dead.remedy
    assert "correct the path" in missing.remedy


# --- wait_for -----------------------------------------------------------------------------


async def test_wait_for_probes_until_the_guest_is_up(tmp_path: Path) -> None:
    attempt = partial(probe, UnixEndpoint(str(tmp_path / "s")), TIMEOUT, look=SHORT)
    heard: list[str] = []
    with ExitStack() as stack:

        def boots(result: Probe, left: float) -> None:
            assert 0 < left <= TIMEOUT
            heard.append(result.what)
            stack.enter_context(unix_listener(tmp_path / "s"))

        result = await wait_for(attempt, TIMEOUT, boots)
    assert result.reached
    assert result.attempts == 2
    assert heard == ["the socket does not exist"]


async def test_wait_for_ends_after_its_patience(tmp_path: Path) -> None:
    attempt = partial(probe, UnixEndpoint(str(tmp_path / "s")), TIMEOUT)
    result = await wait_for(attempt, SHORT, lambda _result, _left: None)
    assert not result.reached
    assert result.attempts > 1


async def test_wait_for_ends_at_a_permanent_error(tmp_path: Path) -> None:
    async with mux_server(tmp_path / "v", {80: hold}, answers(b"HTTP/1.1 400\n")):
        attempt = partial(probe, MuxEndpoint(str(tmp_path / "v"), 80), TIMEOUT)
        result = await wait_for(
            attempt, TIMEOUT, lambda _result, _left: pytest.fail("a second attempt")
        )
    assert result.attempts == 1


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[UnixEndpoint]:
    with unix_listener(tmp_path / "port-80"):
        yield UnixEndpoint(str(tmp_path / "port-80"))


def test_probe_is_status_0_when_the_target_is_reached(listener: Dialable) -> None:
    done = command("probe", str(listener))
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == str(listener)
    assert "reached in" in done.stdout


def test_probe_is_status_1_otherwise_and_its_json_has_the_reason() -> None:
    port = unused_tcp_port()
    done = command("probe", f"127.0.0.1:{port}", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["reason"] == "refused"
    assert told["reached"] is False
    assert [step["step"] for step in told["steps"]] == ["connect"]
    assert str(port) in told["remedy"]


def test_probe_takes_a_guests_name_from_a_file(listener: UnixEndpoint, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[guests]\nkrun = {{ unix = "{tmp_path}/port-{{port}}" }}\n')
    assert command("probe", "krun:80", "-c", file).returncode == 0
    done = command("probe", "kron:80", "-c", file)
    assert done.returncode == 2
    assert "did you mean krun?" in done.stderr


def test_probe_takes_a_guests_name_from_the_environment(
    listener: UnixEndpoint, tmp_path: Path
) -> None:
    environ = {"VSOCKPROXY_GUESTS_KRUN_UNIX": f"{tmp_path}/port-{{port}}"}
    done = command("probe", "krun:80", environ=environ)
    assert (done.returncode, done.stderr) == (0, "")
    done = command("probe", "krun:80", "-c", tmp_path / "c.toml", environ=environ)
    assert done.returncode == 2
    assert "settings too (VSOCKPROXY_GUESTS_KRUN_UNIX)" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "quoted"),
    [
        (("missing",), "'missing'"),
        (("vsock::80",), "'vsock::80'"),
        (("tcp:80", "--wait", "soon"), "--wait"),
        (("tcp:80", "--timeout", "0"), "--timeout"),
        (("tcp:80", "--send", "\\x"), "--send"),
        (("tcp:80", "--send", "\\u20ac"), "--send"),
        (("web:80",), "-c"),
    ],
)
def test_an_invalid_argument_is_status_2_and_quoted(
    arguments: tuple[str, ...], quoted: str
) -> None:
    done = command("probe", *arguments)
    assert done.returncode == 2
    assert quoted in done.stderr


async def test_a_named_guest_adds_a_guest_step(tmp_path: Path) -> None:
    guests = Guests([Guest("vm", MuxGlob(f"{tmp_path}/*.vm"))])
    target = GuestEndpoint("vm", 80, "vsock-mux")
    lost = await probe(target, TIMEOUT, guests=guests)
    guests.forget("vm")
    async with mux_server(tmp_path / "1.vm", {80: hold}):
        found = await probe(target, TIMEOUT, guests=guests, look=SHORT)
    assert steps(lost) == ["guest"]
    assert (lost.reached, lost.target) == (False, target)
    assert "no socket matches" in lost.what
    assert "vsockproxy guests" in lost.remedy
    assert steps(found) == ["guest", "connect", "handshake"]
    assert (found.reached, str(found.target)) == (True, f"vsock-mux:{tmp_path}/1.vm:80")


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("ping\\r\\n", b"ping\r\n"),
        ("\\x16\\x03\\x80\\xff", b"\x16\x03\x80\xff"),
        ("\u00fc \u20ac", "\u00fc \u20ac".encode()),
    ],
)
def test_an_escape_of_send_is_one_byte_and_other_characters_are_utf_8(
    text: str, sent: bytes
) -> None:
    assert _unescaped(text) == sent
