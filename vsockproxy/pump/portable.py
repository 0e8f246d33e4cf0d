"""The portable pump: the same transfer in trio alone, where the native pump cannot run.

Owns: `PortablePump`.  It ends every connection as the native pump does; the conformance suite
tests both.  One difference remains, because trio waits for readable and writable and not for an
error: a reset that comes after its side's EOF, or a client's while the target takes nothing, is
seen only with the next byte or time-out.
"""

from __future__ import annotations

import errno
import math
import select
import socket
from time import monotonic
from typing import Final, Literal

import trio

from vsockproxy.address.sockaddr import borrowed
from vsockproxy.pump.bandwidth import Bucket, Share, allowance, shares_of
from vsockproxy.pump.closing import close, closing_of
from vsockproxy.pump.peer import is_exiting
from vsockproxy.pump.transfer import Accepted, Bounds, EndReason, Meter, SharedBandwidth, Transfer

_CHUNK: Final = 65536
_HELD_POLL: Final = 0.05  # seconds; trio waits for no hang-up


class PortablePump:
    """Moves bytes with two trio tasks a connection."""

    name = "portable"

    def __init__(self, why: str) -> None:
        self.why = why

    def accept(self, listener: int, room: int) -> list[Accepted]:
        """See `transfer.Pump.accept`."""
        clients: list[Accepted] = []
        with borrowed(listener) as sock:
            try:
                while len(clients) < room:
                    client, address = sock.accept()
                    clients.append((client.detach(), address))
            except OSError:
                if not clients:
                    raise
        return clients

    async def transfer(self, client: int, target: int, bounds: Bounds, meter: Meter) -> Transfer:
        """See `transfer.Pump.transfer`."""
        run = _PortableTransfer(socket.socket(fileno=client), socket.socket(fileno=target), bounds)
        meter.follow(run)
        reason: EndReason = "killed"
        try:
            reason = await run.until_end()
        finally:
            await run.close(reason)
            meter.settle(run.upstream.bytes, run.downstream.bytes)
        return Transfer(run.upstream.bytes, run.downstream.bytes, reason)

    @property
    def limit(self) -> None:
        """See `Pump.limit`."""

    def route(self) -> None:
        """See `Pump.route`."""

    def share(self, bandwidth: int) -> SharedBandwidth:
        """See `transfer.Pump.share`."""
        return Bucket(bandwidth)

    async def alive(self) -> None:
        """See `transfer.Pump.alive`; this pump runs in the loop that asks."""
        await trio.lowlevel.checkpoint()


class _Side:
    """One socket; ``error`` is the errno that ended it, or 0."""

    __slots__ = ("error", "sock", "vmm")

    def __init__(self, sock: socket.socket, *, vmm: bool = False) -> None:
        self.sock = sock
        self.error = 0
        self.vmm = vmm

    def is_gone(self) -> bool:
        """Return whether the peer has closed: it takes nothing more."""
        return _polls(self.sock, 0)  # poll(2) reports POLLHUP and POLLERR always

    def is_unix(self) -> bool:
        return self.sock.family == getattr(socket, "AF_UNIX", None)

    def is_tcp(self) -> bool:
        return self.sock.family in (socket.AF_INET, socket.AF_INET6)


Flow = Literal[
    "flowing",
    "whole",  # its source's EOF was read, and the receiving socket took every byte
    "given_up",  # the receiver has closed; no byte is known to be lost, no EOF was read
    "truncated",  # bytes were thrown away, or the source failed before its EOF
]


class _Half:
    """One direction.

    Attributes:
      flow: how far it is.
      sending: it holds bytes that the receiving socket has not taken yet.
    """

    __slots__ = ("bytes", "flow", "scope", "sending", "shares")

    def __init__(self, shares: list[Share]) -> None:
        self.shares = shares
        self.bytes = 0
        self.flow: Flow = "flowing"
        self.sending = False
        self.scope = trio.CancelScope()

    @property
    def done(self) -> bool:
        """Whether it flows no more."""
        return self.flow != "flowing"


class _PortableTransfer:
    """One transfer under way; the `LiveTransfer` that its meter reads."""

    def __init__(self, client: socket.socket, target: socket.socket, bounds: Bounds) -> None:
        self.client = _Side(client)
        self.target = _Side(target, vmm=bounds.vmm)
        upstream, downstream = bounds.shared or (None, None)
        self.upstream = _Half(shares_of(upstream, bounds.bandwidth))
        self.downstream = _Half(shares_of(downstream, bounds.bandwidth))
        self._bounds = bounds
        self._silence = trio.CancelScope()
        self._silent_at = math.inf
        self._is_silent = False
        self._life = trio.CancelScope()
        self._killed = trio.CancelScope()
        self._closing = trio.CancelScope(shield=True)
        self._held = trio.CancelScope()
        self._stops = 0
        self._active = 0.0
        for side in (self.client, self.target):
            side.sock.setblocking(False)

    def upstream_bytes(self) -> int:
        return self.upstream.bytes

    def downstream_bytes(self) -> int:
        return self.downstream.bytes

    def active(self) -> float:
        return self._active

    def upstream_done(self) -> bool:
        return self.upstream.done

    def downstream_done(self) -> bool:
        return self.downstream.done

    def descriptor(self, target: bool) -> int:
        return (self.target if target else self.client).sock.fileno()

    def duplicate(self, target: bool) -> int:
        return (self.target if target else self.client).sock.dup().detach()

    def stop(self) -> None:
        self._stops += 1
        self._killed.cancel()
        if self._stops > 1:
            self._closing.cancel()

    async def until_end(self) -> EndReason:
        """Move both directions until both are done or a bound has passed; return why it ended.

        Cancellation counts as the first `stop`.
        """
        if self._bounds.max_lifetime is not None:
            self._life.deadline = trio.current_time() + self._bounds.max_lifetime
        self._touch()
        try:
            with self._killed, self._life:
                async with trio.open_nursery() as moving:
                    moving.start_soon(self._end_on_silence, moving.cancel_scope)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._move, self.upstream, self.client, self.target)
                        nursery.start_soon(self._move, self.downstream, self.target, self.client)
                    moving.cancel_scope.cancel()
        except trio.Cancelled:
            self._stops += 1
            raise
        if self._killed.cancelled_caught:
            return "killed"
        if self._life.cancelled_caught:
            return "max_lifetime"
        if self._is_silent:
            return self._bound()[1]
        return self._reason()

    async def close(self, reason: EndReason) -> None:
        """Close both sockets, each as `closing_of` says; cancellation does not end the waiting."""
        with self._closing:
            async with trio.open_nursery() as nursery:
                for side, sent, received in (
                    (self.client, self.upstream, self.downstream),
                    (self.target, self.downstream, self.upstream),
                ):
                    how = closing_of(
                        reason,
                        client=side is self.client,
                        whole=received.flow == "whole",
                        ended=bool(side.error) or sent.flow == "whole",
                        tcp=side.is_tcp(),
                    )
                    nursery.start_soon(close, side.sock, how, self._bounds.linger_timeout)

    async def _end_on_silence(self, moving: trio.CancelScope) -> None:
        while True:
            with self._silence:
                await trio.sleep_forever()
            # Bytes that came while the loop was busy elsewhere are no silence: they move first.
            await trio.lowlevel.checkpoint()
            if self._silent_at <= trio.current_time():
                self._is_silent = True
                moving.cancel()
                return
            self._silence = trio.CancelScope(deadline=self._silent_at)

    async def _move(self, half: _Half, source: _Side, sink: _Side) -> None:
        flow: Flow | None = None
        with half.scope:
            try:
                while data := await self._receive(half, source):
                    half.sending = True
                    await self._send(half, sink, data)
                    half.sending = False
                    await (
                        trio.lowlevel.checkpoint()
                    )  # other tasks get their turn beside a fast stream
                flow = self._flow_at_eof(source)
            except _ReceiveError as error:
                source.error = error.errno or errno.EIO
                flow = self._flow_at_eof(source)
            except _SendError as error:
                flow = "truncated"
                if error.errno != errno.EPIPE:
                    sink.error = error.errno or errno.EIO
        if flow is None:  # TCP is gone by a reset, which may have thrown away what was sent
            flow = "truncated" if half.bytes and sink.is_tcp() else "given_up"
        half.flow = flow
        self._touch()
        back = self.downstream if half is self.upstream else self.upstream
        if source.error or source.is_gone():
            self._give_up(back, sink)
        if half is self.upstream and flow == "truncated" and source.error:
            back.scope.cancel()
        if half is self.downstream:
            self._held.cancel()
        if flow == "whole" and not back.done:
            await self._pass_eof(half, sink)

    def _flow_at_eof(self, source: _Side) -> Flow:
        # A process that ends closes its sockets as one does that has finished.
        if not source.error and source.vmm and is_exiting(source.sock):
            source.error = errno.ECONNRESET
        # A Unix client's reset only says that it left bytes unread.
        lossless = source is self.client and source.is_unix()
        return "truncated" if source.error and not lossless else "whole"

    async def _pass_eof(self, half: _Half, sink: _Side) -> None:
        """Pass the end of a whole direction on; a client's FIN may be held before."""
        hold = self._bounds.half_close_hold
        if half is self.upstream and hold is not None:
            with self._held:
                await self._hold(hold)
            if self.downstream.done:  # the close sends the FIN
                return
        _send_eof(sink.sock)
        self._touch()  # half_close_timeout counts from the FIN

    async def _hold(self, seconds: float) -> None:
        """Wait until both directions were silent for ``seconds``, or the client has closed."""
        while not self.client.is_gone():
            left = self._active + seconds - monotonic()
            if left <= 0 and not self.downstream.sending:
                return
            await trio.sleep(min(max(left, _HELD_POLL / 10), _HELD_POLL))

    def _give_up(self, half: _Half, source: _Side) -> None:
        """End a direction that has nothing to send, as its sink is gone; else its send fails."""
        if not (half.done or half.sending or _polls(source.sock, select.POLLIN)):
            half.scope.cancel()

    async def _receive(self, half: _Half, source: _Side) -> bytes:
        while True:
            size = await allowance(half.shares, _CHUNK)
            data = b""
            try:
                data = source.sock.recv(size)
            except BlockingIOError:
                pass
            except OSError as error:
                raise _ReceiveError(*error.args) from error
            else:
                return data
            finally:
                for share in half.shares:
                    share.put_back(size - len(data))
            await trio.lowlevel.wait_readable(source.sock)

    async def _send(self, half: _Half, sink: _Side, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                sent = sink.sock.send(rest)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sink.sock)
            except OSError as error:
                raise _SendError(*error.args) from error
            else:
                rest = rest[sent:]
                half.bytes += sent
                self._touch()

    def _bound(self) -> tuple[float | None, EndReason]:
        """Return the time-out on silence that is in force, and its `EndReason`."""
        idle, half_close = self._bounds[:2]
        half_closed = self.upstream.done != self.downstream.done
        if half_closed and half_close is not None and (idle is None or half_close <= idle):
            return half_close, "half_close_timeout"
        return idle, "idle_timeout"

    def _touch(self) -> None:
        self._active = monotonic()
        seconds, _ = self._bound()
        if seconds is not None:
            self._silence.deadline = self._silent_at = trio.current_time() + seconds

    def _reason(self) -> EndReason:
        if self.target.error:
            return "target_reset"
        if self.client.error:
            return "client_reset"
        if self.upstream.flow == "truncated":
            return "target_reset"
        if self.downstream.flow == "truncated":
            return "client_reset"
        return "finished"


class _ReceiveError(OSError):
    """The source ended with an error."""


class _SendError(OSError):
    """The sink takes nothing more."""


def _polls(sock: socket.socket, events: int) -> bool:
    """Return whether poll(2) reports one of these events for a socket now."""
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(0))


def _send_eof(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        # The peer has closed already: it needs no FIN.
        if error.errno not in (errno.ENOTCONN, errno.EPIPE):
            raise
