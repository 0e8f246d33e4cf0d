"""Look-ups of host names: shared by their clients, in threads that nothing else needs."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.sockets import no_descriptor_left_over
from tests.waiting import PATIENCE, until
from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.dial import resolver
from vsockproxy.dial.dial import dial
from vsockproxy.errors import DialError

CLIENTS = 60  # more than trio has threads


class FakeNameServer:
    """A fake of the system's resolver: a name with ``silent`` in it blocks until ``answers``.

    One with ``full`` in it finds no descriptor, and one with ``missing`` in it does not exist.

    Attributes:
      asked: how many look-ups of each name have begun.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.answers = threading.Event()

    def getaddrinfo(
        self, host: bytes | str, port: int, _family: int, kind: int, _proto: int, flags: int
    ) -> list[tuple[object, ...]]:
        """Answer as getaddrinfo(3) does: at once for a number, else in a thread."""
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        assert isinstance(host, bytes)
        name = host.decode()
        self.asked[name] += 1
        if "silent" in name:
            assert self.answers.wait(PATIENCE)
        if "full" in name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if "missing" in name:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, kind, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def name_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNameServer]:
    """Replace the system's resolver; end the threads that it blocks after the test."""
    server = FakeNameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.answers.set()


@pytest.fixture
def service() -> Iterator[int]:
    """Return the TCP port of a listener on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0), backlog=CLIENTS) as server:
        yield server.getsockname()[1]


async def reaches(host: str, port: int, chosen_by: str | None = None) -> None:
    (await dial(TcpEndpoint(host, port), PATIENCE, chosen_by=chosen_by)).close()


async def fails(host: str, timeout: float, chosen_by: str | None = None) -> DialError:
    with no_descriptor_left_over(), pytest.raises(DialError) as caught:
        await dial(TcpEndpoint(host, 80), timeout, chosen_by=chosen_by)
    return caught.value


async def test_many_clients_of_a_silent_name_delay_no_other_name_and_no_other_thread(
    name_server: FakeNameServer, service: int
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(reaches, "silent.example", service)
        await until(lambda: name_server.asked["silent.example"])
        await trio.testing.wait_all_tasks_blocked()
        assert not trio.to_thread.current_default_thread_limiter().borrowed_tokens
        await reaches("other.example", service)
        assert name_server.asked == {"silent.example": 1, "other.example": 1}
        name_server.answers.set()  # and every client of the silent name is connected


async def test_clients_that_give_up_leave_their_look_up_to_the_next_client(
    name_server: FakeNameServer, service: int
) -> None:
    for _ in range(3):
        error = await fails("silent.example", 0.01)
        assert (error.reason, "'silent.example'" in str(error)) == ("timeout", True)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reaches, "silent.example", service)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaches, "silent.example", service)
        await trio.testing.wait_all_tasks_blocked()
        name_server.answers.set()
    assert name_server.asked["silent.example"] == 1


async def test_names_whose_clients_have_left_are_not_looked_up_before_those_of_others(
    name_server: FakeNameServer, service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_AT_ONCE", 2)
    async with trio.open_nursery() as nursery:
        for name in ("a.silent.example", "b.silent.example"):  # both threads
            nursery.start_soon(reaches, name, service)
        await until(lambda: name_server.asked.total() == 2)
        async with trio.open_nursery() as leaving:
            for number in range(CLIENTS):
                leaving.start_soon(fails, f"{number}.example", 0.05)
        nursery.start_soon(reaches, "other.example", service)
        await trio.testing.wait_all_tasks_blocked()
        name_server.answers.set()
    assert name_server.asked.total() == 3


async def test_a_name_is_looked_up_again_once_its_look_up_has_ended(
    name_server: FakeNameServer, service: int
) -> None:
    await reaches("other.example", service)
    await reaches("other.example", service)
    assert name_server.asked["other.example"] == 2


async def test_clients_of_a_missing_name_get_an_error_each(name_server: FakeNameServer) -> None:
    errors: list[DialError] = []

    async def client() -> None:
        errors.append(await fails("missing.example", PATIENCE))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(client)
    assert name_server.asked["missing.example"] == 1
    assert [error.reason for error in errors] == ["name", "name"]
    assert errors[0] is not errors[1]


async def test_a_name_beyond_the_bound_waits_until_another_look_up_has_ended(
    name_server: FakeNameServer, service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_AT_ONCE", 2)
    for name in ("one.silent.example", "two.silent.example", "other.example"):
        assert (await fails(name, 0.01)).reason == "timeout"
    assert name_server.asked["other.example"] == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaches, "other.example", service)
        await trio.testing.wait_all_tasks_blocked()
        name_server.answers.set()
    assert name_server.asked["other.example"] == 1


async def test_names_that_one_client_has_chosen_delay_no_name_of_others(
    name_server: FakeNameServer, service: int
) -> None:
    """Its look-ups go on after it has left; those beyond its share wait, also for an answer."""
    for number in range(300):
        await fails(f"{number}.silent.example", 0.001, "vsock:3")
    assert name_server.asked.total() == 16
    error = await fails("other.example", 0.001, "vsock:3")
    assert "too many names had no answer before it" in str(error)
    await reaches("other.example", service)
    await reaches("other.example", service, "vsock:4")


async def test_names_that_many_clients_have_chosen_delay_no_name_of_the_configuration(
    name_server: FakeNameServer, service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_AT_ONCE", 2)
    for number in range(4):
        await fails(f"{number}.silent.example", 0.01, f"vsock:{number + 3}")
    assert name_server.asked.total() == 2
    await reaches("other.example", service)


async def test_a_client_does_not_wait_for_the_look_up_that_another_one_waits_for(
    name_server: FakeNameServer, service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_AT_ONCE_FOR_ONE", 1)
    await fails("one.silent.example", 0.01, "vsock:3")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaches, "other.example", service, "vsock:3")
        await trio.testing.wait_all_tasks_blocked()
        await reaches("other.example", service, "vsock:4")
        name_server.answers.set()


async def test_a_client_that_leaves_as_its_look_up_gets_a_thread_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same turn of the event loop, in one order or the other."""
    answers = trio.Event()

    async def getaddrinfo(*_: object, **__: object) -> list[tuple[object, ...]]:
        await answers.wait()
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(resolver, "_AT_ONCE", 1)
    monkeypatch.setattr(trio.socket, "getaddrinfo", getaddrinfo)
    ask = resolver.Resolver().addresses
    deadline = trio.current_time() + PATIENCE
    for _ in range(30):
        answers = trio.Event()
        async with trio.open_nursery() as nursery, trio.open_nursery() as leaving:
            nursery.start_soon(ask, TcpEndpoint("first.example", 80), deadline)
            await trio.testing.wait_all_tasks_blocked()
            leaving.start_soon(ask, TcpEndpoint("second.example", 80), deadline)
            await trio.testing.wait_all_tasks_blocked()
            answers.set()
            leaving.cancel_scope.cancel()
    assert await ask(TcpEndpoint("second.example", 80), deadline)


async def test_thousands_of_addresses_of_a_name_are_not_all_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = [(socket.AF_INET, 1, 6, "", (f"127.0.{n // 250}.{n % 250 + 1}", 0)) for n in range(3000)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: many)
    found = await resolver.RESOLVER.get().addresses(
        TcpEndpoint("many.example", 80), trio.current_time() + PATIENCE
    )
    assert len(found) == 16


async def test_a_look_up_without_a_thread_is_no_resources_and_the_next_one_works(
    name_server: FakeNameServer, service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("trio._threads.start_thread_soon", no_thread)
        error = await fails("other.example", PATIENCE)
    assert (error.reason, "can't start new thread" in str(error)) == ("no_resources", True)
    assert "TasksMax=" in error.remedy
    await reaches("other.example", service)
    assert name_server.asked["other.example"] == 1


async def test_a_look_up_without_a_descriptor_is_no_descriptors(
    name_server: FakeNameServer,
) -> None:
    assert (await fails("full.example", PATIENCE)).reason == "no_descriptors"


async def test_a_non_ascii_name_is_looked_up_by_idna_2008(
    name_server: FakeNameServer, service: int
) -> None:
    await reaches("straße.example", service)
    assert name_server.asked == {"xn--strae-oqa.example": 1}
