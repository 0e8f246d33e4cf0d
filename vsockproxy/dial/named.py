"""Dial a target that one client has named; no state of it is kept.

Clients may name any number of targets, so none has a `Dialer` for longer than its dial, and none
is up or down.  With wait_for_guest, each client dials again on its own.
"""

from __future__ import annotations

import select
import socket
from typing import Final

import trio

from vsockproxy.connection import Connection
from vsockproxy.dial.held_clients import MOST_HELD
from vsockproxy.dial.target import OURS, Dialer
from vsockproxy.errors import DialError, dial_error
from vsockproxy.reasons import ABSENT
from vsockproxy.stats import HeldResult, RouteStats

_FIRST_PAUSE: Final = 0.05  # seconds between two dials; doubled each time
_LONGEST_PAUSE: Final = 2.0


async def dial_named(
    client: int, connection: Connection, dialer: Dialer, stats: RouteStats
) -> socket.socket:
    """Return a socket connected to a target, which the caller owns.

    Within wait_for_guest the dial is repeated, as long as the target may still come up.

    Args:
      client: the client's descriptor, which stays the caller's; no byte of it is read.

    Raises:
      DialError: with reason ``client_left`` where the client left meanwhile.
      EndedError: `Connection.end` was called meanwhile.
    """
    longest = connection.route.policy.wait_for_guest
    try:
        return await dialer.dial(connection.assign, connection.cancellable)
    except DialError as error:
        if longest is None or error.reason not in ABSENT:
            raise
    if stats.held >= MOST_HELD:
        stats.held_results["full"] += 1
        raise dial_error(dialer.state.address, "too_many_held", stats.held)
    began = trio.current_time()
    stats.held += 1
    result: HeldResult = "failed"
    try:
        sock, result = await _hold(client, connection, dialer, began + longest)
    finally:
        stats.held -= 1
        stats.held_results[result] += 1
        connection.held_seconds = trio.current_time() - began
    if isinstance(sock, DialError):
        raise sock
    return sock


async def _hold(
    client: int, connection: Connection, dialer: Dialer, deadline: float
) -> tuple[socket.socket | DialError, HeldResult]:
    """Dial again with growing pauses; return the socket, or why holding has ended."""
    pause = _FIRST_PAUSE
    while True:
        with connection.cancellable():
            await trio.sleep_until(min(trio.current_time() + pause, deadline))
        pause = min(2 * pause, _LONGEST_PAUSE)
        if _has_left(client):
            return dial_error(connection.target, "client_left"), "left"
        try:
            return await dialer.dial(connection.assign, connection.cancellable), "served"
        except DialError as error:
            if error.reason not in ABSENT | OURS:
                return error, "failed"
            if trio.current_time() >= deadline:
                return error.with_context("the client was held for wait_for_guest"), "timeout"


def _has_left(client: int) -> bool:
    """Return whether a client can take no answer; one that half-closed has not left."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(0))
