"""Connecting to the first of several addresses that answers: order, overlap, memory, errors."""

from __future__ import annotations

import errno
import os
import socket
from time import monotonic

import pytest
import trio
import trio.testing

from vsockproxy.address.sockaddr import Address
from vsockproxy.dial import race
from vsockproxy.dial.race import STAGGER, connect_first

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

ONE, TWO, THREE = ((socket.AF_INET, (f"192.0.2.{number}", 80)) for number in (1, 2, 3))
SIX = (socket.AF_INET6, ("2001:db8::1", 80, 0, 0))
SILENT, REFUSED = errno.ETIMEDOUT, errno.ECONNREFUSED


class FakeNetwork:
    """A fake of connecting: addresses fail at once, are silent, or answer after a time.

    Attributes:
      tried: the addresses in the order of their attempts.
      peers: the far end of each socket that was handed out.
      most_open: the most attempts that were under way together.
    """

    def __init__(self) -> None:
        self.tried: list[Address] = []
        self.peers: list[socket.socket] = []
        self.most_open = self._open = 0
        self.errors: dict[Address, int] = {}
        self.seconds: dict[Address, float] = {}

    async def attempt(self, address: Address) -> socket.socket:
        """Connect to an address; a silent one times out after 5 s."""
        self.tried.append(address)
        error = self.errors.get(address)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        try:
            if error == SILENT or address in self.seconds:
                await trio.sleep(self.seconds.get(address, 5))
        finally:
            self._open -= 1
        if error is not None:
            raise OSError(error, os.strerror(error))
        ours, peer = socket.socketpair()
        self.peers.append(peer)
        return ours

    async def connect(self, *addresses: Address) -> Address | int:
        """Connect as a dial of 5 s; return the address that answered, or the errno."""
        try:
            sock = await connect_first(addresses, self.attempt, trio.current_time() + 5)
        except OSError as error:
            return error.errno or 0
        sock.close()
        for peer in self.peers:
            peer.setblocking(False)
            assert peer.recv(1) == b"", "every socket is closed"
            peer.close()
        self.peers.clear()
        return self.tried[-1]


async def answers_later(answer: trio.Event) -> None:
    await trio.sleep(2 * STAGGER)
    answer.set()


@pytest.fixture
def network() -> FakeNetwork:
    """Return a fake network whose addresses answer at once."""
    return FakeNetwork()


async def test_a_silent_address_costs_one_client_a_quarter_of_a_second(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.errors[ONE] = SILENT
    assert await network.connect(ONE, TWO) == TWO
    assert trio.current_time() == pytest.approx(STAGGER)
    for _ in range(3):
        assert await network.connect(ONE, TWO) == TWO
    assert trio.current_time() == pytest.approx(STAGGER)
    assert network.tried == [ONE, TWO, TWO, TWO, TWO]


async def test_few_attempts_are_open_at_a_time_and_the_last_address_gets_its_turn(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    many = [(socket.AF_INET, (f"192.0.2.{number}", 80)) for number in range(1, 17)]
    network.errors = dict.fromkeys(many[:-1], SILENT)
    assert await network.connect(*many) == many[-1]
    assert network.tried == many
    assert network.most_open == 4


async def test_the_only_attempt_that_is_open_goes_on_however_many_were_refused_since(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    refusing = [(socket.AF_INET, (f"198.51.100.{number}", 80)) for number in range(10)]
    network.errors = dict.fromkeys(refusing, REFUSED)
    network.seconds = {ONE: 1.0}
    assert not isinstance(await network.connect(ONE, *refusing), int), "it has answered"


async def test_a_refused_address_delays_the_next_one_by_nothing(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.errors[ONE] = REFUSED
    assert await network.connect(ONE, TWO) == TWO
    assert trio.current_time() == 0


async def test_a_refused_address_keeps_its_place(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.errors = {ONE: REFUSED, TWO: SILENT}
    assert await network.connect(ONE, TWO, THREE) == THREE
    network.errors.clear()
    assert await network.connect(TWO, ONE, THREE) == ONE


async def test_a_silent_address_is_tried_first_again_after_ten_minutes(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    network.errors[ONE] = SILENT
    await network.connect(ONE, TWO)
    now = monotonic()
    monkeypatch.setattr(race, "monotonic", lambda: now + 601)
    del network.errors[ONE], network.tried[:]
    assert await network.connect(ONE, TWO) == ONE
    assert network.tried == [ONE]


async def test_an_address_that_answers_again_gets_its_place_back(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.errors[ONE] = SILENT
    assert await network.connect(ONE, TWO) == TWO
    network.errors = {TWO: REFUSED}
    assert await network.connect(ONE, TWO) == ONE
    network.errors.clear()
    assert await network.connect(ONE, TWO) == ONE


async def test_addresses_that_answer_keep_the_order_of_the_resolver(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.errors[TWO] = SILENT
    assert await network.connect(TWO, ONE, THREE) == ONE
    assert await network.connect(THREE, TWO, ONE) == THREE
    assert await network.connect(ONE, THREE, TWO) == ONE


async def test_a_slow_first_address_still_wins_over_a_silent_second(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    network.seconds[ONE] = 1.0
    network.errors[TWO] = SILENT
    await network.connect(ONE, TWO)
    assert trio.current_time() == pytest.approx(1.0)
    assert network.tried == [ONE, TWO]


async def test_when_two_addresses_answer_at_once_one_socket_is_closed(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    answer = trio.Event()

    async def attempt(address: Address) -> socket.socket:
        await answer.wait()
        return await network.attempt(address)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answers_later, answer)
        with await connect_first([ONE, TWO], attempt, trio.current_time() + 5):
            assert set(network.tried) == {ONE, TWO}
    first, second = network.peers
    with first, second:
        assert first.recv(1) == second.recv(1) == b""


async def test_a_dial_cancelled_as_an_address_answers_leaves_no_socket() -> None:
    with trio.CancelScope() as scope:

        async def answers(_address: Address) -> socket.socket:
            scope.cancel()
            ours, peer = socket.socketpair()
            peer.close()
            return ours

        await connect_first([ONE, TWO], answers, trio.current_time() + 5)
    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        ((ONE, SILENT), (TWO, REFUSED), REFUSED),
        ((ONE, REFUSED), (TWO, SILENT), REFUSED),
        ((SIX, errno.EADDRNOTAVAIL), (ONE, SILENT), SILENT),
        ((ONE, SILENT), (SIX, errno.EAFNOSUPPORT), SILENT),
        ((SIX, errno.EAFNOSUPPORT), (SIX, errno.EAFNOSUPPORT), errno.EAFNOSUPPORT),
    ],
)
async def test_the_most_useful_failure_is_the_reason(
    network: FakeNetwork,
    first: tuple[Address, int],
    second: tuple[Address, int],
    result: int,
    autojump_clock: trio.testing.MockClock,
) -> None:
    network.errors = dict([first, second])
    assert await network.connect(first[0], second[0]) == result


async def test_every_address_is_tried_however_many_and_however_short_the_time(
    network: FakeNetwork, autojump_clock: trio.testing.MockClock
) -> None:
    many = [(socket.AF_INET, (f"192.0.2.{number}", 80)) for number in range(50)]
    network.errors = dict.fromkeys(many, SILENT)
    await network.connect(*many)
    assert network.tried == many
    assert trio.current_time() < 5 + 5, "the last one, silent for 5 s, began within the 5 s"


async def test_the_memory_of_silent_addresses_is_bounded(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(race, "_MOST", 1)
    network.errors = {ONE: SILENT, TWO: SILENT}
    await network.connect(ONE, THREE)
    await network.connect(TWO, THREE)
    network.tried.clear()
    await network.connect(ONE, TWO, THREE)
    assert network.tried == [ONE, THREE], "the older one is forgotten"
