"""Which routes and connections a request means, and in which order it gets them.

Owns: lookup by name and id, the filters of routes and clients, and the pages of a sorted list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from vsockproxy.address.endpoint import TcpEndpoint, VsockEndpoint
from vsockproxy.address.grammar import parse_listen
from vsockproxy.address.sockaddr import literal_addresses
from vsockproxy.admin.daemon_interface import Daemon
from vsockproxy.admin.rates import Rates
from vsockproxy.admit.peer import peer_at
from vsockproxy.config.access import CidRule, NetworkRule, parse_rule
from vsockproxy.connection import Connection
from vsockproxy.errors import AddressError
from vsockproxy.http.loop_share import every
from vsockproxy.stats import RouteStats

if TYPE_CHECKING:
    from vsockproxy.admin.schema import ConnectionQuery, SortKey

_Position = tuple[Any, int]
"""The value that a connection is sorted by, and its number: no two are equal."""

_TEXTS: Final = frozenset({"route", "client", "target"})
_ASCENDING: Final = _TEXTS | {"id"}
_RUN: Final = 1000  # connections sorted in one turn


def find_route(daemon: Daemon, name: str) -> RouteStats | None:
    """Return the route of a name, a draining one included; None if there is none."""
    return next((stats for stats in daemon.supervisor.stats() if stats.route.name == name), None)


def find_connection(daemon: Daemon, number: int) -> Connection | None:
    """Return the live connection with a number; None if there is none, or it has ended."""
    return next((live for live in live_connections(daemon) if live.number == number), None)


def live_connections(daemon: Daemon, route: str | None = None) -> Iterator[Connection]:
    """Yield the live connections of a route; None is all of them.

    A connection may end, and leave the daemon's table, while the caller iterates.
    """
    for stats in daemon.supervisor.stats():
        if route in (None, stats.route.name):
            yield from list(stats.live)


async def select(
    daemon: Daemon, route: str | None = None, client: str | None = None
) -> list[Connection]:
    """Return the live connections of a route and of a client; None is all of them.

    Raises:
      AddressError: ``client`` can match no client.
    """
    live = await every(live_connections(daemon, route))
    if client is None:
        return live
    matches = _client_filter(client)
    judged = await every((matches(connection), connection) for connection in live)
    return [connection for is_meant, connection in judged if is_meant]


def _client_filter(text: str) -> Callable[[Connection], bool]:
    """Return the filter for a network or CIDs, as in ``allow``, or for one client's address."""
    with suppress(AddressError):
        rule = parse_rule(text)
        if isinstance(rule, NetworkRule | CidRule):
            matches = rule.matches
            return lambda live: matches(peer_at(live.family, live.address))
    if not _is_client(text):
        raise AddressError(f"{text!r} is not a client")
    return lambda live: live.client == text


def _is_client(text: str) -> bool:
    """Return whether a client's address can have this text, see `peer_name`."""
    if text == "unix":
        return True
    try:
        endpoint = parse_listen(text)
    except AddressError:
        return False
    match endpoint:
        case TcpEndpoint():
            return str(endpoint) == f"tcp:{text}" and literal_addresses(endpoint) is not None
        case VsockEndpoint():
            return str(endpoint) == text
    return False


async def page(
    connections: Iterable[Connection], query: ConnectionQuery, rates: Rates[Connection]
) -> tuple[list[Connection], str | None]:
    """Return one page of connections in the query's order, and the cursor of the next one.

    Under an order that changes, such as by rate, a connection can be on two pages or on none.

    Raises:
      AddressError: if the query's cursor is not one of this order.
    """
    position = _position_by(query.sort, rates)
    order = query.order or ("asc" if query.sort in _ASCENDING else "desc")
    descending = order == "desc"
    placed = await every((position(connection), connection) for connection in connections)
    if query.after is not None:
        last = _read_cursor(query.after, query.sort)
        placed = [pair for pair in placed if (pair[0] < last if descending else pair[0] > last)]
    best = await _in_order(placed, query.limit + 1, descending=descending)
    shown = best[: query.limit]
    more = len(best) > query.limit
    return [live for _, live in shown], _write_cursor(shown[-1][0]) if more else None


async def busiest(
    connections: Iterable[Connection], number: int, rates: Rates[Connection]
) -> list[Connection]:
    """Return the connections with the highest rates, the highest first."""
    position = _position_by("rate", rates)
    placed = await every((position(connection), connection) for connection in connections)
    return [live for _, live in await _in_order(placed, number, descending=True)]


async def _in_order(
    placed: list[tuple[_Position, Connection]], number: int, *, descending: bool
) -> list[tuple[_Position, Connection]]:
    """Return the first ones in the order of their positions.

    One sort of ten thousand would keep the loop: the rest of a merge costs only what is shown.
    """
    runs = await every(
        sorted(placed[start : start + _RUN], key=itemgetter(0), reverse=descending)
        for start in range(0, len(placed), _RUN)
    )
    merged = merge(*runs, key=itemgetter(0), reverse=descending)
    return await every(islice(merged, number))


def _position_by(sort: SortKey, rates: Rates[Connection]) -> Callable[[Connection], _Position]:
    values: dict[str, Callable[[Connection], Any]] = {
        "id": lambda live: live.number,
        "route": lambda live: live.route.name,
        "client": lambda live: live.client,
        "target": lambda live: str(live.target),
        "age": lambda live: -live.opened,
        "idle": lambda live: live.idle_seconds,
        "dial": lambda live: live.dial_seconds or 0.0,
        "bytes": lambda live: live.upstream_bytes + live.downstream_bytes,
        "upstream_bytes": lambda live: live.upstream_bytes,
        "downstream_bytes": lambda live: live.downstream_bytes,
        "rate": lambda live: sum(rates.of(live)),
        "upstream_rate": lambda live: rates.of(live)[0],
        "downstream_rate": lambda live: rates.of(live)[1],
    }
    value = values[sort]
    return lambda live: (value(live), live.number)


def _write_cursor(position: _Position) -> str:
    return json.dumps(position)


def _read_cursor(text: str, sort: SortKey) -> _Position:
    kind = str if sort in _TEXTS else int | float
    try:
        value, number = json.loads(text)
        if isinstance(value, kind) and isinstance(number, int):
            return value, number
    except (ValueError, TypeError, RecursionError):
        pass
    raise AddressError(f"{text!r} is not the next of a page sorted by {sort}")
