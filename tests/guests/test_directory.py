"""The directory of guests: shared look-ups, the cache, and failures that stay separate."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from traceback import extract_tb

import pytest
import trio
import trio.testing
from structlog.testing import CapturingLogger

from tests.admin.fake_daemon import FakeDaemon
from tests.fake_services import dead_unix_socket, mux_server, says
from tests.listen.running_route import serving
from tests.sockets import ends_by_reset, read_to_end
from tests.waiting import until
from vsockproxy.address.endpoint import GuestEndpoint, UnixEndpoint, VsockEndpoint
from vsockproxy.admin.registry import Registry
from vsockproxy.config.guest import Cid, CidFile, Command, DynamicLocator, Guest, Mux, MuxGlob
from vsockproxy.config.settings import Config, Policy, Route
from vsockproxy.daemon.daemon import Daemon
from vsockproxy.errors import DialError
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.directory import CACHED, Guests

WEB_FILE = CidFile("/run/web.cid")
WEB = Guest("web", WEB_FILE)
DB = Guest("db", CidFile("/run/db.cid"))
WEB_80 = GuestEndpoint("web", 80)
PATIENCE = 5.0
HERE = Path(__file__).name


class Source:
    """A source whose answers the test sets.

    Attributes:
      answer: the result of the next look-up: a CID, the text of a `GuestError`, or an exception
        to raise.
      asked: the number of look-ups of each locator.
    """

    def __init__(self, answer: int | str | Exception) -> None:
        self.answer = answer
        self.asked: Counter[DynamicLocator] = Counter()
        self.hanging: set[DynamicLocator] = set()
        self._may_answer = trio.Event()
        self._may_answer.set()

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Delay all answers until the end of the block."""
        self._may_answer = trio.Event()
        yield
        self._may_answer.set()

    async def look_up(self, locator: DynamicLocator, threads: trio.CapacityLimiter) -> Cid | Mux:
        self.asked[locator] += 1
        if locator in self.hanging:
            await trio.sleep_forever()
        await self._may_answer.wait()
        if isinstance(self.answer, str):
            raise GuestError(self.answer)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Cid(self.answer)


@pytest.fixture
def source() -> Source:
    return Source(7)


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


@pytest.fixture
def guests(source: Source, log: CapturingLogger) -> Guests:
    return Guests((WEB, DB), look_up=source.look_up, log=log)


async def resolve(guests: Guests, endpoint: GuestEndpoint = WEB_80) -> str:
    """Return the address, or the error."""
    try:
        return str(await guests.resolve(endpoint, trio.current_time() + PATIENCE))
    except DialError as error:
        return f"{error.reason}: {error.explanation}"


def lines(log: CapturingLogger) -> list[str]:
    return [f"{call.args[0]} {call.kwargs.get('error')}" for call in log.calls]


async def test_all_ports_of_a_guest_share_one_look_up(guests: Guests, source: Source) -> None:
    deadline = trio.current_time() + PATIENCE
    assert await guests.resolve(WEB_80, deadline) == VsockEndpoint(7, 80)
    assert await guests.resolve(GuestEndpoint("web", 22), deadline) == VsockEndpoint(7, 22)
    assert source.asked == {WEB_FILE: 1}


async def test_a_found_cid_keeps_the_guests_to_host(source: Source) -> None:
    guests = Guests([Guest("web", WEB_FILE, to_host=True)], look_up=source.look_up)
    assert await resolve(guests) == "vsock:7:80,to_host"


async def test_a_guest_is_looked_up_again_after_a_second(
    guests: Guests, source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    await resolve(guests)
    source.answer = 8
    assert await resolve(guests) == "vsock:7:80"
    await trio.sleep(CACHED)
    assert await resolve(guests) == "vsock:8:80"


async def test_a_forgotten_guest_is_looked_up_again_at_once(guests: Guests, source: Source) -> None:
    await resolve(guests)
    source.answer = 8
    guests.forget("web")
    assert await resolve(guests) == "vsock:8:80"


async def test_concurrent_clients_share_one_look_up(guests: Guests, source: Source) -> None:
    answers: list[str] = []

    async def client() -> None:
        answers.append(await resolve(guests))

    for result, text in ((7, "vsock:7:80"), ("no VM", "guest: no VM")):
        source.answer = result
        guests.forget("web")
        source.asked.clear()
        async with trio.open_nursery() as nursery:
            with source.slow():
                for _ in range(100):
                    nursery.start_soon(client)
                await trio.testing.wait_all_tasks_blocked()
        assert answers == [text] * 100
        assert source.asked == {WEB_FILE: 1}
        answers.clear()


async def test_a_look_up_whose_client_leaves_is_repeated_for_the_next_client(
    guests: Guests, source: Source
) -> None:
    async with trio.open_nursery() as nursery:
        with source.slow():
            leaving = trio.CancelScope()

            async def leave() -> None:
                with leaving:
                    await resolve(guests)

            nursery.start_soon(leave)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(resolve, guests)
            await trio.testing.wait_all_tasks_blocked()
            leaving.cancel()
            await trio.testing.wait_all_tasks_blocked()
    assert guests.records()[0].found == Cid(7)
    assert source.asked == {WEB_FILE: 2}


async def test_a_source_that_hangs_times_out_and_does_not_delay_other_guests(
    guests: Guests, source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    source.hanging.add(WEB_FILE)
    words: list[str] = []

    async def client() -> None:
        words.append(await resolve(guests))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(client)
        started = trio.current_time()
        assert await resolve(guests, GuestEndpoint("db", 5432)) == "vsock:7:5432"
        assert trio.current_time() == started
    assert trio.current_time() <= started + PATIENCE
    assert words == ['guest: file = "/run/web.cid": the look-up timed out'] * 3


async def test_a_client_with_an_early_deadline_does_not_fail_other_clients(
    guests: Guests, source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        with source.slow():
            with pytest.raises(DialError, match="the look-up timed out"):
                await guests.resolve(WEB_80, trio.current_time() + 0.1)
            nursery.start_soon(resolve, guests)
            await trio.testing.wait_all_tasks_blocked()
    assert guests.records()[0].found == Cid(7)


async def test_a_failure_is_cached_for_a_quarter_of_a_second(
    guests: Guests, source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    source.answer = "no VM"
    failed = trio.current_time()
    for _ in range(100):
        assert await resolve(guests) == "guest: no VM"
    assert source.asked == {WEB_FILE: 1}
    source.answer = 9
    await trio.sleep_until(failed + 0.2)
    assert await resolve(guests) == "guest: no VM"
    await trio.sleep_until(failed + 0.25)
    assert await resolve(guests) == "vsock:9:80"


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (ZeroDivisionError("no sense"), f"ZeroDivisionError: no sense ({HERE}:{{line}})"),
    ],
)
async def test_a_defect_in_a_source_is_a_guest_that_is_not_found(
    guests: Guests, source: Source, defect: Exception, words: str
) -> None:
    source.answer = defect
    said = await resolve(guests)
    words = words.format(line=extract_tb(defect.__traceback__)[-1].lineno)
    assert said == f"guest: {WEB_FILE} cannot be looked up: {words}"
    source.answer = 9
    guests.forget("web")
    assert await resolve(guests) == "vsock:9:80"


async def test_each_found_address_is_logged_and_the_record_has_the_last_error(
    guests: Guests, source: Source, log: CapturingLogger
) -> None:
    for answer in (7, 7, "no VM", "no VM", "no answer", 7):
        source.answer = answer
        guests.forget("web")
        await resolve(guests)
        error = guests.records()[0].last_error
        assert error == (answer if isinstance(answer, str) else None)
    assert lines(log) == [
        "guest_found None",
        "guest_found None",
    ]
    assert guests.records()[0].results == {"success": 3, "failure": 3}


async def test_a_reload_keeps_the_record_of_an_unchanged_guest(
    guests: Guests, source: Source
) -> None:
    await resolve(guests)
    guests.reconfigure((WEB, Guest("new", Cid(3))))
    assert await resolve(guests) == "vsock:7:80"
    assert source.asked == {WEB_FILE: 1}
    guests.reconfigure([Guest("web", CidFile("/run/other.cid"))])
    assert guests.records()[0].found is None
    assert guests.records()[0].results["success"] == 1, "a counter never goes back"
    guests.reconfigure([])
    assert await resolve(guests) == "guest: the guest 'web' was removed from the configuration"


async def test_the_metrics_show_a_known_cid(guests: Guests, source: Source) -> None:
    registry = Registry(FakeDaemon(guests=guests))
    counted = partial(registry.get_sample_value, "vsockproxy_guest_resolutions_total")
    assert counted({"guest": "web", "result": "success"}) == 0
    assert registry.get_sample_value("vsockproxy_guest_cid", {"guest": "web"}) is None
    await resolve(guests)
    assert registry.get_sample_value("vsockproxy_guest_cid", {"guest": "web"}) == 7
    source.answer = "no VM"
    guests.forget("web")
    await resolve(guests)
    assert counted({"guest": "web", "result": "success"}) == 1
    assert counted({"guest": "web", "result": "failure"}) == 1
    assert registry.get_sample_value("vsockproxy_guest_cid", {"guest": "web"}) is None


# ---- a route to such a guest ----


async def test_a_dial_whose_look_up_fails_is_one_log_line_with_the_cause_and_remedy(
    guests: Guests, source: Source, log: CapturingLogger
) -> None:
    source.answer = "no VM is named 'web': `lsvm` shows them"
    async with serving(Policy(access_log=False), dial_to=WEB_80, guests=guests) as route:
        assert await ends_by_reset(route.connect())
        await until(lambda: route.stats.dial_failures["guest"])
    [line] = log.calls + route.log.calls
    assert line.args == ("dial_failed",)
    assert line.kwargs["target"] == "web:80"
    assert line.kwargs["reason"] == "guest"
    assert line.kwargs["error"] == f"cannot dial web:80: {source.answer}"
    assert "`vsockproxy guests`" in str(line.kwargs["remedy"])


async def ask(front: Path) -> bytes:
    """Return the bytes that a client of the route receives; none if it is reset."""
    async with await trio.open_unix_socket(front) as client:
        try:
            return await read_to_end(client)
        except trio.BrokenResourceError:
            return b""


async def test_a_vm_restarted_at_another_address_is_reached_by_the_next_connection(
    tmp_path: Path,
) -> None:
    guest = Guest("vm", MuxGlob(f"{tmp_path}/run-*/v.sock"))
    front = tmp_path / "front.sock"
    route = Route("web", UnixEndpoint(str(front)), GuestEndpoint("vm", 80, "vsock-mux"))
    daemon = Daemon(Config((route,), guests=(guest,)))
    for run in ("run-1", "run-2"):
        (tmp_path / run).mkdir()
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with mux_server(tmp_path / "run-1/v.sock", {80: says(b"first")}):
            assert await ask(front) == b"first"
        assert await ask(front) == b""
        daemon.supervisor.guests.forget("vm")  # the failure is cached too
        async with mux_server(tmp_path / "run-2/v.sock", {80: says(b"second")}):
            assert await ask(front) == b"second"
            dead_unix_socket(tmp_path / "run-1/v.sock")
            assert await ask(front) == b"second"  # while the answer is cached
            daemon.supervisor.guests.forget("vm")
            assert await ask(front) == b""
        nursery.cancel_scope.cancel()
    [stats] = daemon.supervisor.stats()
    assert stats.dial_failures == {"guest": 2}
    [record] = daemon.supervisor.guests.records()
    assert "2 sockets match" in str(record.last_error)


async def test_a_dial_to_a_stale_cached_address_is_repeated_after_a_look_up(
    tmp_path: Path,
) -> None:
    guest = Guest("vm", MuxGlob(f"{tmp_path}/*.vm"))
    front = tmp_path / "front.sock"
    policy = Policy(send_proxy="v1")
    route = Route("web", UnixEndpoint(str(front)), GuestEndpoint("vm", 80, "vsock-mux"), policy)
    daemon = Daemon(Config((route,), guests=(guest,)))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        for name in ("1.vm", "2.vm", "3.vm"):
            async with mux_server(tmp_path / name, {80: says(name.encode())}):
                assert await ask(front) == name.encode()
        nursery.cancel_scope.cancel()
    assert not daemon.supervisor.stats()[0].dial_failures


async def test_a_source_that_hangs_does_not_delay_other_routes(tmp_path: Path) -> None:
    guests = (
        Guest("stuck", Command(("/bin/sleep", "1000"))),
        Guest("vm", MuxGlob(f"{tmp_path}/*.vm")),
    )
    fronts = [tmp_path / "stuck.front", tmp_path / "vm.front"]
    routes = (
        Route("stuck", UnixEndpoint(str(fronts[0])), GuestEndpoint("stuck", 80)),
        Route("vm", UnixEndpoint(str(fronts[1])), GuestEndpoint("vm", 80, "vsock-mux")),
    )
    daemon = Daemon(Config(routes, guests=guests))
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        async with AsyncExitStack() as clients:
            for _ in range(50):
                await clients.enter_async_context(await trio.open_unix_socket(fronts[0]))
            await until(lambda: len(daemon.supervisor.stats()[0].live) == 50)
            async with mux_server(tmp_path / "1.vm", {80: says(b"hello")}):
                assert await ask(fronts[1]) == b"hello"
            assert len(daemon.supervisor.stats()[0].live) == 50
        nursery.cancel_scope.cancel()
