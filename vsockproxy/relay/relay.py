"""One connection from start to end: header, dial, transfer, account, log.

Owns: `Relay`, whose `serve` is one trio task a connection, and the only catch-all of the
program: whatever goes wrong in one connection stays in it.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import trio

from vsockproxy.admit.admission import Gate, RejectReason
from vsockproxy.connection import Connection
from vsockproxy.dial.selection import Targets
from vsockproxy.errors import DialError
from vsockproxy.log.output import Throttle
from vsockproxy.pump.reset import reset, reset_descriptor
from vsockproxy.pump.transfer import ENDINGS, Bounds, Pump, Transfer
from vsockproxy.relay.preamble import (
    NoHeaderError,
    follow_header,
    header_of,
    read_header,
    send_header,
)
from vsockproxy.relay.proxy_protocol import build_header
from vsockproxy.stats import RouteStats


@dataclass(frozen=True, slots=True)
class Relay:
    """What every connection of one route needs."""

    stats: RouteStats
    gate: Gate
    pump: Pump
    bounds: Bounds
    targets: Targets
    log: Any
    failures: Throttle

    async def serve(self, client: int, connection: Connection) -> None:
        """Serve one client that the gate has admitted; owns its descriptor from the call on.

        The client is reset when the target cannot be dialled, so that it does not take
        the failure for an empty answer.  Cancelled, both sides are closed and the
        connection is counted under ``connection.ending``.  Raises nothing but
        `trio.Cancelled`.
        """
        # While the bytes move, this frame and the pump's are all that waits: what an idle
        # connection costs.
        try:
            begun = await self._begin(client, connection)
            if not isinstance(begun, str):
                begun = (await begun).reason
        except Exception:  # noqa: BLE001 - the program's catch-all: `_note_defect` logs it
            begun = self._note_defect(connection)
        except BaseException:  # cancelled: alone, or in the group that a nursery makes of it
            self._end(connection, connection.ending)
            raise
        self._end(connection, connection.ending if begun == "killed" else begun)

    def _note_defect(self, connection: Connection) -> str:
        self.log.exception("connection_error", **connection.names())
        return "error"

    def _end(self, connection: Connection, reason: str) -> None:
        self.gate.leave(connection, reason)
        if connection.route.policy.access_log:
            self._log_end(connection, reason)

    async def _begin(self, client: int, connection: Connection) -> Awaitable[Transfer] | str:
        """Dial and hand over to the pump: the transfer, or why there is none."""
        if connection.ending == "killed":  # before this task ran, so there was nothing to stop
            reset_descriptor(client, connection.family)
            return connection.ending
        started = monotonic()
        policy = connection.route.policy
        if policy.accept_proxy or policy.send_proxy != "off":
            return await self._begin_slowly(client, connection)
        try:
            target = self.targets.connect_at_once()
        except DialError as error:
            reset_descriptor(client, connection.family)
            return self._note_failure(connection, error)
        except BaseException:
            reset_descriptor(client, connection.family)
            raise
        if target is None:
            return await self._begin_slowly(client, connection)
        return self._hand_over(client, target, connection, started)

    def _hand_over(
        self, client: int, target: socket.socket, connection: Connection, started: float
    ) -> Awaitable[Transfer]:
        connection.dial_seconds = monotonic() - started - connection.held_seconds
        if not connection.held_seconds:  # else it was dialled beforehand
            self.stats.dial_seconds.observe(connection.dial_seconds)
        return self.pump.transfer(client, target.detach(), self.bounds, connection)

    async def _begin_slowly(
        self, descriptor: int, connection: Connection
    ) -> Awaitable[Transfer] | str:
        """`_begin` where something must be waited for."""
        client = socket.socket(connection.family, socket.SOCK_STREAM, 0, descriptor)
        try:
            if connection.route.policy.accept_proxy:
                ended = await self._identify(client, connection)
                if ended is not None:
                    reset(client)
                    return ended
            started = monotonic()
            target = await self._wait_for_target(client, connection)
            if target is None:
                reset(client)
                return connection.ending
            return self._hand_over(client.detach(), target, connection, started)
        except DialError as error:
            reset(client)
            return self._note_failure(connection, error)
        except BaseException:
            reset(client)
            raise

    async def _wait_for_target(
        self, client: socket.socket, connection: Connection
    ) -> socket.socket | None:
        """The target's socket, or None when somebody has ended the connection."""
        target = None
        with trio.CancelScope() as scope:
            connection.dialling = scope
            target = await self._dial(client, connection)
        connection.dialling = None
        if scope.cancel_called and target is not None:  # ended as the target answered
            target.close()
            target = None
        return target

    async def _dial(self, client: socket.socket, connection: Connection) -> socket.socket:
        if connection.route.policy.send_proxy != "off":
            return await self._dial_and_tell(client, connection)
        return await self.targets.connect(client, connection)

    def _note_failure(self, connection: Connection, error: DialError) -> str:
        """Count and log a failed dial; what the connection's end is called."""
        if error.reason == "client_left":
            return f"dial_{error.reason}"
        self.stats.dial_failed(error.reason, str(error))
        if error.reason == "no_descriptors":
            self.gate.recount()
        self.failures.warning(
            "dial_failed", connection.names, reason=error.reason, error=str(error)
        )
        return f"dial_{error.reason}"

    async def _identify(self, client: socket.socket, connection: Connection) -> str | None:
        """Learn from the client's header whose connection it is; why it ends here, if it does."""
        rejection: RejectReason | None = None
        with trio.CancelScope() as scope:
            connection.dialling = scope
            rejection = await self._follow_header(client, connection)
        connection.dialling = None
        if scope.cancel_called:
            return connection.ending
        if rejection is None:
            return None
        self.gate.reject(connection, rejection)
        return f"rejected_{rejection}"

    async def _follow_header(
        self, client: socket.socket, connection: Connection
    ) -> RejectReason | None:
        try:
            header = await read_header(client, connection.route.policy.connect_timeout)
        except NoHeaderError as error:
            return "proxy_timeout" if error.slow else "proxy_malformed"
        follow_header(connection, header)
        return self.gate.identify(connection)

    async def _dial_and_tell(self, client: socket.socket, connection: Connection) -> socket.socket:
        """The target, which has been told who its client is."""
        policy = connection.route.policy
        assert policy.send_proxy != "off"
        target = await self.targets.connect(client, connection)
        deadline = trio.current_time() + policy.connect_timeout
        try:
            header = build_header(policy.send_proxy, header_of(connection, client))
            await send_header(target, connection.target, header, deadline)
        except BaseException:
            target.close()
            raise
        return target

    def _log_end(self, connection: Connection, reason: str) -> None:
        """The access line: one for every connection, at its end."""
        words: dict[str, object] = {"why": ENDINGS[reason]} if reason in ENDINGS else {}
        if connection.dial_seconds is not None:
            words["dial_seconds"] = round(connection.dial_seconds, 6)
        if connection.vmm_port is not None:
            words["vmm_port"] = connection.vmm_port
        if connection.held_seconds:
            words["held_seconds"] = round(connection.held_seconds, 6)
        self.log.info(
            "connection_closed",
            **connection.names(),
            upstream_bytes=connection.upstream_bytes,
            downstream_bytes=connection.downstream_bytes,
            seconds=round(monotonic() - connection.opened, 6),
            reason=reason,
            **words,
        )
