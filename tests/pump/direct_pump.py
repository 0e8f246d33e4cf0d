"""The native pump as a direct route uses it: its threads accept the client and dial the target.

`DirectPump` gives the conformance tests a connection that no call of Python has accepted or
dialled; all else is the native pump's.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import trio

from tests.sockets import AF_VSOCK, CID_LOCAL, PAIRS
from vsockproxy.address.sockaddr import packed
from vsockproxy.config.settings import PumpChoice, PumpSettings
from vsockproxy.pump.choice import open_pump
from vsockproxy.pump.direct import Dialled, DirectTarget, Ending, Opening
from vsockproxy.pump.transfer import Bounds, LiveTransfer, Meter, Pump, Transfer

PATIENCE = 30.0
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


KINDS = ("native", "portable", "direct")


@asynccontextmanager
async def opened(kind: str, threads: int = 2) -> AsyncIterator[Pump]:
    """Run a pump of a kind: ``direct`` is the native one by its direct routes."""
    choice: PumpChoice = "portable" if kind == "portable" else "native"
    async with open_pump(PumpSettings(choice, threads=threads)) as pump:
        yield DirectPump(pump) if kind == "direct" else pump


class Joined(NamedTuple):
    """Both outer ends of a connection through a pump, and the call that relays until its end."""

    left: socket.socket
    right: socket.socket
    transfer: Callable[[], Awaitable[Transfer]]


def join(pump: Pump, families: tuple[str, str], bounds: Bounds, meter: Meter) -> Joined:
    """Connect two ends through a pump; a client's family is the first one."""
    if isinstance(pump, DirectPump):
        return pump.join(families, bounds, meter)
    left, client = PAIRS[families[0]]()
    target, right = PAIRS[families[1]]()

    async def transfer() -> Transfer:
        return await pump.transfer(client.detach(), target.detach(), bounds, meter)

    return Joined(left, right, transfer)


class DirectPump:
    """A native pump whose connections are those of direct routes."""

    def __init__(self, pump: Any) -> None:
        self._pump = pump
        pump.limit.allow(1_000_000)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pump, name)

    def join(self, families: tuple[str, str], bounds: Bounds, meter: Meter) -> Joined:
        """See `join`: the threads have accepted and dialled on return."""
        with listening(families[0]) as front, listening(families[1]) as back:
            route = self._pump.route()
            route.limit.allow(10)
            one = _OneClient(meter, route)
            target = DirectTarget(
                _address_of(back), PATIENCE, None, b"", False, _options(back), bounds
            )
            with _serving(self._pump, route, front, target, one):
                try:
                    left = _dial(front)
                except ConnectionResetError:  # this process stood still for longer than a bound
                    self._await_news(lambda: one.reason is not None)
                    assert one.reason in ("idle_timeout", "max_lifetime")
                    return self.join(families, bounds, meter)
                right, _ = back.accept()
                # A reset before the pump has reported the target's answer fails the dial.
                self._await_news(lambda: one.is_connected)
        for sock in (left, right):
            sock.setblocking(False)
            if sock.family == socket.AF_INET:
                sock.setsockopt(*NODELAY)
        return Joined(left, right, one.wait)

    def _await_news(self, have_come: Callable[[], bool]) -> None:
        """Have the pump tell its news until the awaited ones have come."""
        from vsockproxy.pump._native._pump import lib  # noqa: PLC0415 - where it is compiled

        descriptor = lib.vsp_pump_fd(self._pump._pump)
        while not have_come():
            lib.vsp_pump_ask(self._pump._pump)  # it tells of an opening later
            select.select([descriptor], [], [], PATIENCE)
            self._pump._reap()


class _OneClient:
    """Hears of the one client of a route; see `vsockproxy.pump.direct.Clients`."""

    def __init__(self, meter: Meter, route: Any) -> None:
        self.is_connected = False
        self._meter = meter
        self._route = route
        self._known = trio.Event()
        self._ending: Ending | None = None
        self._ended = trio.Event()

    @property
    def reason(self) -> str | None:
        """The reason of the end; None before it."""
        return self._ending and self._ending.reason

    def opened(self, _: Opening, running: LiveTransfer) -> Meter:
        self._meter.follow(running)
        self._known.set()
        return self._meter

    def connected(self, meter: Meter, dialled: Dialled) -> None:
        assert meter is self._meter
        assert dialled.seconds >= 0
        self.is_connected = True

    def ended(self, meter: Meter, ending: Ending) -> None:
        assert meter.running is None
        assert (meter.upstream_bytes, meter.downstream_bytes) == ending[-2:]
        self._ending = ending
        self._known.set()
        self._ended.set()

    def passed(self, _: Opening, dialled: Dialled | None, ending: Ending) -> None:
        assert dialled is not None
        self.is_connected = True
        self._meter.settle(ending.upstream_bytes, ending.downstream_bytes)
        self.ended(self._meter, ending)

    async def wait(self) -> Transfer:
        """Return the transfer at its end; cancelled, end it first."""
        try:
            await self._ended.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._known.wait()
                if self._meter.running is not None:
                    self._meter.running.stop()
                await self._ended.wait()
            raise
        self._route.close()
        assert self._ending is not None
        assert self._ending.reason is not None
        return Transfer(
            self._ending.upstream_bytes, self._ending.downstream_bytes, self._ending.reason
        )


@contextmanager
def _serving(
    pump: Any, route: Any, front: socket.socket, target: DirectTarget, clients: _OneClient
) -> Iterator[None]:
    """Accept at a listening socket for a block, in which the event loop does not run."""

    async def serve() -> None:
        await route.serve(front.fileno(), target, clients)

    serving = serve()
    serving.send(None)  # up to its wait for a limit, of which no task is to be woken
    try:
        yield
    finally:
        serving.close()


@contextmanager
def listening(family: str) -> Iterator[socket.socket]:
    """Listen at an address of a family that the kernel chooses."""
    sock = {
        "tcp": lambda: socket.create_server(("127.0.0.1", 0)),
        "unix": lambda: _bound(socket.socket(socket.AF_UNIX), ""),
        "vsock": lambda: _bound(socket.socket(AF_VSOCK), (0xFFFFFFFF, 0xFFFFFFFF)),
    }[family]()
    with sock:
        if family == "tcp":
            sock.setsockopt(*NODELAY)
        sock.settimeout(PATIENCE)  # non-blocking for the pump's threads
        yield sock


def _bound(sock: socket.socket, address: Any) -> socket.socket:
    sock.bind(address)
    sock.listen()
    return sock


def _dial(front: socket.socket) -> socket.socket:
    sock = socket.socket(front.family)
    sock.settimeout(PATIENCE)
    sock.connect(
        (CID_LOCAL, front.getsockname()[1]) if front.family == AF_VSOCK else front.getsockname()
    )
    return sock


def _address_of(back: socket.socket) -> bytes:
    if back.family == AF_VSOCK:
        return struct.pack("=HHIIB3x", AF_VSOCK, 0, back.getsockname()[1], CID_LOCAL, 0)
    return packed(back.family, back.getsockname())


def _options(back: socket.socket) -> tuple[tuple[int, int, int], ...]:
    return (NODELAY,) if back.family == socket.AF_INET else ()
