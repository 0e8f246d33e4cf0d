"""Dial a TCP target: resolve its name, check the addresses, connect to the first that answers."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.address.sockaddr import Address, errno_of, literal_addresses
from vsockproxy.config.destination import Destinations
from vsockproxy.config.reach import Reach
from vsockproxy.dial.connecting import connected, open_socket
from vsockproxy.dial.own_address import is_own
from vsockproxy.dial.race import connect_first
from vsockproxy.dial.resolver import RESOLVER
from vsockproxy.dial.sockopt import Options
from vsockproxy.errors import DialError, dial_error


async def dial(
    endpoint: TcpEndpoint,
    deadline: float,
    options: Options,
    destinations: Destinations | Reach,
    *,
    passed: Callable[[], object] | None,
    chosen_by: str | None,
) -> socket.socket:
    """Return a socket connected to one of the endpoint's addresses; see `dial.dial`.

    Raises `DialError`, and OSError for a single address.
    """
    addresses = await _addresses(endpoint, deadline, destinations, passed, chosen_by)
    return await _connect_any(endpoint, addresses, deadline, options)


async def _addresses(
    endpoint: TcpEndpoint,
    deadline: float,
    destinations: Destinations | Reach,
    passed: Callable[[], object] | None,
    chosen_by: str | None,
) -> list[Address]:
    """Return the addresses to connect to, in their order; raise `DialError`."""
    addresses = literal_addresses(endpoint)
    if addresses is None:
        addresses = await RESOLVER.get().addresses(endpoint, deadline, chosen_by)
        if passed is not None:
            passed()
    if isinstance(destinations, Reach):
        return _within(endpoint, addresses, destinations)
    return _admitted(endpoint, addresses, destinations) if destinations else addresses


def _admitted(
    endpoint: TcpEndpoint, addresses: list[Address], destinations: Destinations
) -> list[Address]:
    admitted = [one for one in addresses if destinations.admits(endpoint, one[1][0])]
    if not admitted:
        first, *others = (address[0] for _, address in addresses)
        more = f" and {len(others)} more" if others else ""
        raise dial_error(endpoint, "forbidden", f"{first}{more}")
    return admitted


def _within(endpoint: TcpEndpoint, addresses: list[Address], reach: Reach) -> list[Address]:
    """Return the addresses that a client which named the endpoint may reach."""
    objections = [(one, reach.objection(endpoint, one[1][0], is_own)) for one in addresses]
    within = [address for address, objection in objections if objection is None]
    if not within:
        _, first = objections[0]
        raise dial_error(endpoint, "out_of_reach", first)
    return within


async def _connect_any(
    endpoint: TcpEndpoint, addresses: Sequence[Address], deadline: float, options: Options
) -> socket.socket:
    async def attempt(address: Address) -> socket.socket:
        connect = partial(_connect, address=address[1], deadline=deadline)
        return await open_socket(address[0], connect, options)

    if len(addresses) == 1:
        return await attempt(addresses[0])
    if endpoint.host is None:  # the loopback answers at once, and a race costs 90 us
        with suppress(ConnectionRefusedError):
            return await attempt(addresses[0])
    try:
        return await connect_first(addresses, attempt, deadline)
    except OSError as error:
        found = dial_error(endpoint, errno_of(error))
        sentence = f"{found.explanation} ({len(addresses)} addresses tried)"
        raise DialError(
            endpoint, found.reason, sentence, error.errno, remedy=found.remedy
        ) from error


async def _connect(sock: socket.socket, address: tuple[Any, ...], deadline: float) -> None:
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        # On the loopback the answer has arrived: asking costs less than waiting for it.
        code = sock.connect_ex(address)
        if code in (errno.EALREADY, errno.EISCONN):
            code = errno.EINPROGRESS
    await connected(sock, code, deadline)
    own = sock.getsockname()
    if own[1] == address[1] and own == sock.getpeername():
        # The kernel chose the target's port for our end: TCP's simultaneous open met itself.
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
