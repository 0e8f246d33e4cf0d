"""The portable pump: the same transfer in trio alone, where the native pump cannot run.

Owns: `PortablePump`.  It ends every connection as the native pump does; the conformance suite
tests both.  One difference remains: while the target takes nothing, a client's reset is seen only
with the next byte or time-out, because trio waits for readable and writable, not for an error.
"""

from __future__ import annotations

import errno
import select
import socket
from time import monotonic
from typing import Final

import trio

from vsockproxy.address.sockaddr import borrowed
from vsockproxy.pump.reset import reset
from vsockproxy.pump.transfer import Accepted, Bounds, EndReason, Meter, SharedBandwidth, Transfer

_CHUNK: Final = 65536
_BURST: Final = 0.1  # seconds whose bytes a full bucket holds
_THROTTLED: Final = 0.02  # seconds until a direction without bandwidth tries again


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
            meter.settle(run.upstream.bytes, run.downstream.bytes)
            run.close(reason)
        return Transfer(run.upstream.bytes, run.downstream.bytes, reason)

    def share(self, bandwidth: int) -> SharedBandwidth:
        """See `transfer.Pump.share`."""
        return _Bucket(bandwidth)

    async def alive(self) -> None:
        """See `transfer.Pump.alive`; this pump runs in the loop that asks."""
        await trio.lowlevel.checkpoint()


class _Bucket:
    """A token bucket: full, it holds the bytes of `_BURST`."""

    __slots__ = ("_filled", "_level", "_rate")

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._level = 0.0
        self._filled = trio.current_time()

    def take(self, most: int) -> int:
        """Take up to ``most`` bytes of bandwidth; return how many, possibly 0."""
        now = trio.current_time()
        burst = max(1.0, self._rate * _BURST)
        self._level = min(burst, self._level + self._rate * (now - self._filled))
        self._filled = now
        taken = min(most, int(self._level))
        self._level -= taken
        return taken

    def put_back(self, unused: int) -> None:
        self._level += unused


class _Side:
    """One socket; ``error`` is the errno that ended it, or 0."""

    __slots__ = ("error", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.error = 0

    def is_gone(self) -> bool:
        """Return whether the peer has closed: it takes nothing more."""
        return _polls(self.sock, 0)  # poll(2) reports POLLHUP and POLLERR always

    def is_unix(self) -> bool:
        return self.sock.family == getattr(socket, "AF_UNIX", None)


class _Half:
    """One direction.

    Attributes:
      done: nothing more goes this way.
      dropped: the stream is truncated: some of it was thrown away.
      sending: it holds bytes that the receiving socket has not taken yet.
    """

    __slots__ = ("buckets", "bytes", "done", "dropped", "scope", "sending")

    def __init__(self, buckets: list[_Bucket]) -> None:
        self.buckets = buckets
        self.bytes = 0
        self.done = False
        self.dropped = False
        self.sending = False
        self.scope = trio.CancelScope()


class _PortableTransfer:
    """One transfer under way; the `LiveTransfer` that its meter reads."""

    def __init__(self, client: socket.socket, target: socket.socket, bounds: Bounds) -> None:
        self.client = _Side(client)
        self.target = _Side(target)
        upstream, downstream = bounds.shared or (None, None)
        self.upstream = _Half(_buckets(upstream, bounds.bandwidth))
        self.downstream = _Half(_buckets(downstream, bounds.bandwidth))
        self._bounds = bounds
        self._idle = trio.CancelScope()
        self._life = trio.CancelScope()
        self._killed = trio.CancelScope()
        self._active = 0.0
        self._answered = True  # the last byte went downstream, or there was none yet
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
        self._killed.cancel()

    async def until_end(self) -> EndReason:
        """Move both directions until both are done or a bound has passed; return why it ended."""
        if self._bounds.max_lifetime is not None:
            self._life.deadline = trio.current_time() + self._bounds.max_lifetime
        self._touch()
        with self._killed, self._life, self._idle:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._move, self.upstream, self.client, self.target)
                nursery.start_soon(self._move, self.downstream, self.target, self.client)
        if self._killed.cancelled_caught:
            return "killed"
        if self._life.cancelled_caught:
            return "max_lifetime"
        if self._idle.cancelled_caught:
            return self._bound()[1]
        return self._reason()

    def close(self, reason: EndReason) -> None:
        """Close both sockets; reset a side that would take a truncated stream for a whole one."""
        upstream_whole = self.upstream.done and not self.upstream.dropped
        if reason in ("target_reset", "killed", "max_lifetime"):
            reset(self.client.sock)
        if reason == "client_reset" and not upstream_whole:
            reset(self.target.sock)
        self.client.sock.close()
        self.target.sock.close()

    async def _move(self, half: _Half, source: _Side, sink: _Side) -> None:
        with half.scope:
            try:
                while data := await self._receive(half, source):
                    half.sending = True
                    await self._send(half, sink, data)
                    half.sending = False
                    await (
                        trio.lowlevel.checkpoint()
                    )  # other tasks get their turn beside a fast stream
            except _ReceiveError as error:
                source.error = error.errno or errno.EIO
            except _SendError as error:
                half.dropped = True
                if error.errno != errno.EPIPE:
                    sink.error = error.errno or errno.EIO
        self._finish(half, source, sink)

    def _finish(self, half: _Half, source: _Side, sink: _Side) -> None:
        half.done = True
        whole = not source.error or (source is self.client and source.is_unix())
        half.dropped = half.dropped or not whole
        held = half is self.upstream and self._bounds.hold_half_close and not self._answered
        if not half.dropped and not held:
            _send_eof(sink.sock)
        self._touch()
        back = self.downstream if half is self.upstream else self.upstream
        if source.error or source.is_gone():
            self._give_up(back, sink)
        if source is self.client and not whole:
            back.scope.cancel()

    def _give_up(self, half: _Half, source: _Side) -> None:
        """End a direction that has nothing to send, as its sink is gone; else its send fails."""
        if not (half.done or half.sending or _polls(source.sock, select.POLLIN)):
            half.scope.cancel()

    async def _receive(self, half: _Half, source: _Side) -> bytes:
        while True:
            size = await _allowance(half.buckets)
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
                for bucket in half.buckets:
                    bucket.put_back(size - len(data))
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
                self._answered = half is self.downstream
                self._touch()

    def _bound(self) -> tuple[float | None, EndReason]:
        """Return the time-out on silence that is in force, and its `EndReason`."""
        idle, half_close = self._bounds[:2]
        half_closed = self.upstream.done != self.downstream.done
        if half_closed and half_close is not None and (idle is None or half_close < idle):
            return half_close, "half_close_timeout"
        return idle, "idle_timeout"

    def _touch(self) -> None:
        self._active = monotonic()
        seconds, _ = self._bound()
        if seconds is not None:
            self._idle.deadline = trio.current_time() + seconds

    def _reason(self) -> EndReason:
        if self.target.error:
            return "target_reset"
        if self.client.error:
            return "client_reset"
        if self.upstream.dropped:
            return "target_reset"
        if self.downstream.dropped:
            return "client_reset"
        return "finished"


class _ReceiveError(OSError):
    """The source ended with an error."""


class _SendError(OSError):
    """The sink takes nothing more."""


def _buckets(shared: _Bucket | None, bandwidth: int | None) -> list[_Bucket]:
    own = _Bucket(bandwidth) if bandwidth else None
    return [bucket for bucket in (own, shared) if bucket is not None]


async def _allowance(buckets: list[_Bucket]) -> int:
    """Wait until there is bandwidth; return how many bytes may be read."""
    while True:
        size = _CHUNK
        for index, bucket in enumerate(buckets):
            less = bucket.take(size)
            for before in buckets[:index]:
                before.put_back(size - less)
            size = less
        if size:
            return size
        await trio.sleep(_THROTTLED)


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
