"""One connection from start to end: header, dial, transfer, accounting, log.

Owns: `Relay`, whose `serve` is one trio task for each connection, and the only catch-all of the
data path: a defect in one connection ends that connection alone.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import trio

from vsockproxy.address.endpoint import ends_with_vmm, is_behind_a_mux
from vsockproxy.address.sockaddr import borrowed
from vsockproxy.admit.gate import Gate, RejectReason
from vsockproxy.config.by_name import ByName
from vsockproxy.config.settings import Route
from vsockproxy.connection import Connection, EndedError
from vsockproxy.dial.selection import Selection
from vsockproxy.dial.unix import is_of_a_vmm
from vsockproxy.errors import DialError, dial_error
from vsockproxy.pump.reset import reset_descriptor
from vsockproxy.pump.transfer import Bounds, Pump
from vsockproxy.relay.access_log import log_end
from vsockproxy.relay.by_name import ByNameTargets, NamedTarget, hang_up
from vsockproxy.relay.failed_dial_log import FailedDials
from vsockproxy.relay.preamble import (
    NoHeaderError,
    follow_header,
    has_sent,
    header_of,
    read_header,
    send_header,
)
from vsockproxy.relay.proxy_protocol import build_header
from vsockproxy.stats import RouteStats


@dataclass(frozen=True, slots=True)
class Relay:
    """Serve the admitted clients of one route."""

    stats: RouteStats
    gate: Gate
    pump: Pump
    bounds: Bounds
    selection: Selection
    log: Any
    failed_dials: FailedDials
    by_name: ByNameTargets | None = None

    async def serve(self, client: int, connection: Connection) -> None:
        """Relay between an admitted client and a target until both sides have ended.

        It owns the client's descriptor. A client whose dial fails is reset, so that it does not
        take the failure for an empty answer, or told so in the protocol of its request.
        Cancelled, it closes both sides and counts the connection under ``connection.ending``.
        Raises `trio.Cancelled` alone.
        """
        # An idle connection keeps this frame and the pump's alive, and no other. A local for the
        # target's descriptor would keep its number as well.
        try:
            reason: str = (
                await self.pump.transfer(
                    client, *await self._connect(client, connection), connection
                )
            ).reason
        except EndedError as ended:
            reason = ended.reason
        except Exception:  # noqa: BLE001 - the catch-all: `_note_defect` logs it
            reason = self._note_defect(connection)
        except BaseException:  # cancelled: alone, or in the group that a nursery makes of it
            self._end(connection, connection.ending)
            raise
        self._end(connection, connection.ending if reason == "killed" else reason)

    def _bounds_of(self, connection: Connection, target: socket.socket) -> Bounds:
        """Return the bounds of a connection: max_lifetime, for one, counts from the accept."""
        bounds = self.bounds
        if self.by_name is not None:
            assert not isinstance(connection.target, ByName)  # it has been dialled
            hold = connection.route.half_close_hold_to(mux=is_behind_a_mux(connection.target))
            bounds = bounds._replace(half_close_hold=hold)
        vmm = is_of_a_vmm(target)
        if bounds.vmm != vmm:
            bounds = bounds._replace(vmm=vmm)
        left = connection.lifetime_left()
        return bounds if left is None else bounds._replace(max_lifetime=left)

    def _note_defect(self, connection: Connection) -> str:
        with suppress(Exception):  # no memory is left, not even for the line
            self.log.exception("connection_error", **connection.names())
        return "error"

    def _end(self, connection: Connection, reason: str) -> None:
        try:
            self.gate.leave(connection, reason)
            log_end(connection, reason, self.log)
        except Exception:  # noqa: BLE001 - the catch-all: `_note_defect` logs it
            self._note_defect(connection)

    # ---- before bytes move ----

    async def _connect(self, client: int, connection: Connection) -> tuple[int, Bounds]:
        """Return the descriptor of a connected target, and the bounds of the transfer.

        On any failure, close the client.

        Raises `EndedError` with the reason of the connection's end.
        """
        family = connection.family  # a PROXY header may name another
        policy = connection.route.policy
        named: NamedTarget | None = None
        try:
            if connection.is_killed:  # before this task ran
                raise EndedError("killed")
            if policy.accept_proxy:
                await self._identify(client, connection)
            if policy.dial_on_data:
                await self._await_data(client, family, connection)
            if self.by_name is not None:
                named = await self.by_name.ask(client, family, connection)
            started = monotonic()
            target = await (
                self.selection.connect(client, connection) if named is None else named.dial()
            )
            if named is not None or policy.send_proxy != "off":
                dialled = monotonic() - started - connection.held_seconds
                left = max(0.0, policy.connect_timeout - dialled)
                await self._send_first(client, target, connection, named, left)
            connection.dial_seconds = monotonic() - started - connection.held_seconds
            if not connection.held_seconds:  # a held client's target was dialled beforehand
                self.stats.dial_seconds.observe(connection.dial_seconds)
            if connection.is_killed:  # as the target answered
                target.close()
                raise EndedError("killed")
        except DialError as error:
            try:
                reason = self.failed_dials.note(connection, error)
            finally:
                reply = b"" if named is None else named.refused(error)
                await self._hang_up(client, family, connection, reply)
            raise EndedError(reason) from None
        except EndedError as ended:
            await self._hang_up(client, family, connection, ended.reply)
            raise
        except BaseException:
            reset_descriptor(client, family)
            raise
        bounds = self._bounds_of(connection, target)
        return target.detach(), bounds

    async def _hang_up(
        self, client: int, family: int, connection: Connection, reply: bytes
    ) -> None:
        """Close a client that is not served; see `hang_up`."""
        if not reply or connection.is_killed:
            reset_descriptor(client, family)
            return
        with suppress(EndedError), connection.cancellable():
            await hang_up(client, family, reply, connection.route.policy.linger_timeout)

    async def _identify(self, client: int, connection: Connection) -> None:
        """Learn the client's address from its PROXY header; raise `EndedError` to reject it."""
        try:
            with borrowed(client, connection.family) as sock, connection.cancellable("silent"):
                header = await read_header(sock, connection.route.policy.connect_timeout)
            follow_header(connection, header)
            rejection: RejectReason | None = self.gate.identify(connection)
        except NoHeaderError as error:
            if error.left:
                raise dial_error(connection.target, "client_left") from error
            rejection = "proxy_timeout" if error.slow else "proxy_malformed"
        if rejection is not None:
            self.gate.reject(connection, rejection)
            raise EndedError(f"rejected_{rejection}")

    async def _await_data(self, client: int, family: int, connection: Connection) -> None:
        """Wait for the client's first byte, for idle_timeout at most."""
        longest = connection.route.policy.idle_timeout
        with borrowed(client, family) as sock, connection.cancellable("silent"):
            with trio.move_on_after(math.inf if longest is None else longest):
                if not await has_sent(sock):
                    raise dial_error(connection.target, "client_left")
                return
        raise EndedError("idle_timeout")

    async def _send_first(
        self,
        client: int,
        target: socket.socket,
        connection: Connection,
        named: NamedTarget | None,
        seconds: float,
    ) -> None:
        """Send a connected target what comes before the stream, and answer the client's request.

        The target is closed on failure. It has the ``seconds`` that the dial has left of
        connect_timeout; with none, what the socket's buffer takes at once is still sent.
        """
        version = connection.route.policy.send_proxy
        deadline = trio.current_time() + seconds
        try:
            with borrowed(client) as sock:  # not of `family`, which an accepted header may name
                first = b"" if named is None else named.asked.replay
                if version != "off":
                    first = build_header(version, header_of(connection, sock)) + first
                if first:
                    with connection.cancellable():
                        await send_header(target, connection.target, first, deadline)
                if named is not None:
                    named.answer(sock, target)
        except BaseException as error:
            target.close()
            if isinstance(error, DialError):
                self.stats.keep_error(connection.target, error)
            raise


def bounds_of(route: Route, pump: Pump) -> Bounds:
    """Return the bounds of a route's connections, which share its bandwidth."""
    policy = route.policy
    shared = policy.bandwidth and (pump.share(policy.bandwidth), pump.share(policy.bandwidth))
    return Bounds(
        idle_timeout=policy.idle_timeout,
        half_close_timeout=policy.half_close_timeout,
        half_close_hold=route.half_close_hold,
        bandwidth=policy.connection_bandwidth,
        shared=shared or None,
        max_lifetime=policy.max_lifetime,
        linger_timeout=policy.linger_timeout,
        vmm=any(map(ends_with_vmm, route.targets)),
    )
