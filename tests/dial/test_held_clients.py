"""Held clients: their order, and the test whether one has left."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sockets import PAIRS, no_descriptor_left_over, reset
from vsockproxy.address.endpoint import UnixEndpoint
from vsockproxy.config.settings import Policy
from vsockproxy.dial.held_clients import HeldClients, Outcome, Reached, has_left
from vsockproxy.dial.target import Dialer
from vsockproxy.errors import DialError
from vsockproxy.guests.directory import Guests
from vsockproxy.stats import TargetState

FAMILIES = [
    pytest.param(name, marks=[pytest.mark.vsock] if name == "vsock" else []) for name in PAIRS
]


@pytest.fixture
def dialer() -> Dialer:
    return Dialer(TargetState(UnixEndpoint("/guest")), Policy(), Guests(), names={}, log=None)


def leaves(client: socket.socket) -> bool:
    """Return whether a client has left, as `HeldClients` finds out."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return any(has_left(client, events) for _, events in poll.poll(0))


def comes_to_be(condition: Callable[[], bool]) -> bool:
    """Return whether a condition holds within a second: a socket's other end needs a moment."""
    deadline = trio.current_time() + 1
    while not condition():
        if trio.current_time() > deadline:
            return False
    return True


# --- clients that leave -----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_silent_client_has_not_left(family: str) -> None:
    near, far = PAIRS[family]()
    with near, far:
        assert not leaves(far)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_client_that_closes_has_left(family: str) -> None:
    near, far = PAIRS[family]()
    with far:
        near.close()
        assert comes_to_be(lambda: leaves(far))


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_client_that_half_closes_after_its_request_has_not_left(family: str) -> None:
    near, far = PAIRS[family]()
    with near, far:
        near.send(b"request")
        near.shutdown(socket.SHUT_WR)
        poll = select.poll()
        poll.register(far, select.POLLRDHUP)
        assert poll.poll(1000)
        assert not leaves(far)
        assert far.recv(100) == b"request"  # no byte of it was read


@pytest.mark.parametrize("family", ["unix", pytest.param("vsock", marks=pytest.mark.vsock)])
async def test_a_client_that_closes_after_its_request_has_left(family: str) -> None:
    near, far = PAIRS[family]()
    with far:
        near.send(b"request")
        near.close()
        assert comes_to_be(lambda: leaves(far))


@pytest.mark.parametrize("family", ["unix", pytest.param("vsock", marks=pytest.mark.vsock)])
async def test_a_client_that_half_closes_before_any_byte_has_not_left(family: str) -> None:
    near, far = PAIRS[family]()
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert not leaves(far)
        far.send(b"banner")
        near.setblocking(True)
        assert near.recv(100) == b"banner"


async def test_a_tcp_client_that_resets_has_left() -> None:
    near, far = PAIRS["tcp"]()
    with far:
        near.send(b"request")
        reset(near)
        assert comes_to_be(lambda: leaves(far))


# --- the order of clients ---------------------------------------------------------------


class Crowd:
    """Held clients, and the outcome of each."""

    def __init__(self, held: HeldClients, clients: list[socket.socket]) -> None:
        self.held = held
        self.clients = clients
        self.ended: dict[int, Outcome] = {}
        self.scopes: dict[int, trio.CancelScope] = {}

    async def wait(self, number: int, deadline: float) -> None:
        with trio.CancelScope() as self.scopes[number]:
            waiter = self.held.add(self.clients[number].fileno())
            self.ended[number] = await self.held.wait(waiter, deadline)


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for near, far in pairs:
            stack.enter_context(near)
            stack.enter_context(far)
        yield [far for _, far in pairs]


def reached(dialer: Dialer) -> tuple[Reached, socket.socket]:
    near, far = socket.socketpair()
    return Reached(near, dialer, None), far


async def test_sockets_go_to_held_clients_in_the_order_of_arrival(
    clients: list[socket.socket], dialer: Dialer
) -> None:
    held = HeldClients()
    crowd = Crowd(held, clients)
    async with trio.open_nursery() as nursery:
        for number in (2, 0, 1):
            nursery.start_soon(crowd.wait, number, trio.current_time() + 10)
            await trio.testing.wait_all_tasks_blocked()
        for number in (2, 0, 1):
            one, far = reached(dialer)
            held.hand_over(one)
            await trio.testing.wait_all_tasks_blocked()
            assert crowd.ended.pop(number) is one
            one.sock.close()
            far.close()
    assert len(held) == 0


async def test_a_socket_without_a_held_client_is_closed(dialer: Dialer) -> None:
    with no_descriptor_left_over():
        one, far = reached(dialer)
        HeldClients().hand_over(one)
        assert far.recv(1) == b""
        far.close()


async def test_a_socket_for_a_cancelled_client_is_closed(
    clients: list[socket.socket], dialer: Dialer
) -> None:
    held = HeldClients()
    crowd = Crowd(held, clients)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.wait, 0, trio.current_time() + 10)
        await trio.testing.wait_all_tasks_blocked()
        crowd.scopes[0].cancel()
        one, far = reached(dialer)
        held.hand_over(one)
    assert not crowd.ended
    assert far.recv(1) == b""
    far.close()


async def test_a_client_released_at_its_deadline_gets_its_socket_or_a_timeout(
    clients: list[socket.socket], dialer: Dialer, autojump_clock: trio.testing.MockClock
) -> None:
    held = HeldClients()
    crowd = Crowd(held, clients)
    one, far = reached(dialer)
    deadline = trio.current_time() + 1  # virtual: the clock jumps to it

    async def call() -> None:
        await trio.sleep_until(deadline)
        held.hand_over(one)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(crowd.wait, 0, deadline)
        nursery.start_soon(call)
    assert (crowd.ended[0] is one) == (one.sock.fileno() >= 0)
    assert crowd.ended[0] in (one, "timeout")
    one.sock.close()
    far.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "cancel", "hand over", "let run"]), st.integers(0, 3))
)


@given(STEPS)
@settings(max_examples=150)
def test_no_socket_is_lost_or_shared_in_any_order_of_events(
    steps: list[tuple[str, int]],
) -> None:
    """Hold, cancel and hand over in any order."""
    with no_descriptor_left_over(), ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        for pair in pairs:
            for end in pair:
                stack.enter_context(end)
        trio.run(_play, steps, [far for _, far in pairs])


async def _play(steps: list[tuple[str, int]], clients: list[socket.socket]) -> None:
    held = HeldClients()
    crowd = Crowd(held, clients)
    dialer = Dialer(TargetState(UnixEndpoint("/guest")), Policy(), Guests(), names={}, log=None)
    fars: list[socket.socket] = []
    given_to: list[Reached] = []
    async with trio.open_nursery() as nursery:
        for step, number in steps:
            if step == "enter" and number not in crowd.scopes:
                crowd.scopes[number] = trio.CancelScope()
                nursery.start_soon(crowd.wait, number, trio.current_time() + 60)
                await trio.testing.wait_all_tasks_blocked()
            elif step == "cancel" and number in crowd.scopes:
                crowd.scopes[number].cancel()
            elif step == "hand over":
                one, far = reached(dialer)
                fars.append(far)
                given_to.append(one)
                held.hand_over(one)
            elif step == "let run":
                await trio.testing.wait_all_tasks_blocked()
        held.dismiss(DialError(UnixEndpoint("/guest"), "denied", "no"))
    kept = [outcome for outcome in crowd.ended.values() if isinstance(outcome, Reached)]
    assert len({id(one) for one in kept}) == len(kept)
    for one in given_to:
        assert (one.sock.fileno() >= 0) == any(one is other for other in kept)
        one.sock.close()
    for far in fars:
        far.close()
    assert len(held) == 0
