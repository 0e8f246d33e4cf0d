"""A direct route's target for the pump: its address, and the options and limits of its dial.

Owns: the translation of a `Route`, and of a failed dial's errno or line, which `dial` does for
dials in Python.
"""

from __future__ import annotations

import os
import socket

from vsockproxy.address.endpoint import (
    Dialable,
    GuestEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.address.sockaddr import literal_addresses, packed, unix_address
from vsockproxy.config.settings import Route
from vsockproxy.dial.connecting import failed
from vsockproxy.dial.mux_line import connect_request
from vsockproxy.dial.sockopt import target_options
from vsockproxy.errors import DialError, dial_error
from vsockproxy.pump.direct import DialFailure, DirectTarget
from vsockproxy.pump.transfer import Bounds
from vsockproxy.stats import CONNECTION_BOUNDS, DIAL_BOUNDS


def direct_target_of(route: Route, bounds: Bounds) -> DirectTarget:
    """Return the target of a route for which `why_not_direct` has no reason."""
    [target], policy = route.targets, route.policy
    assert not isinstance(target, GuestEndpoint)
    family, address = _sockaddr(target)
    is_mux = isinstance(target, MuxEndpoint)
    return DirectTarget(
        address=address,
        connect_timeout=policy.connect_timeout,
        handshake_timeout=policy.handshake_timeout if is_mux else None,
        request=connect_request(target.port) if isinstance(target, MuxEndpoint) else b"",
        answers=isinstance(target, MuxEndpoint) and target.handshake == "ok",
        options=tuple(target_options(policy).get(family, ())),
        bounds=bounds,
        buckets=None if policy.access_log else (DIAL_BOUNDS, CONNECTION_BOUNDS),
    )


def _sockaddr(target: Dialable) -> tuple[int, bytes]:
    match target:
        case TcpEndpoint():
            addresses = literal_addresses(target)
            assert addresses is not None
            [(family, address)] = addresses
            return family, packed(family, address)
        case VsockEndpoint():
            raw = target.to_sockaddr()
            return int.from_bytes(raw[:2], "little"), raw
        case UnixEndpoint(path=path) | MuxEndpoint(path=path):
            return socket.AF_UNIX, packed(socket.AF_UNIX, unix_address(path))


def error_of(target: Dialable, failure: DialFailure) -> DialError:
    """Return the error of a dial that the pump has made."""
    if failure.cause == "closed_before_ok":
        return dial_error(target, "closed_before_ok", errno=failure.errno or None)
    if failure.cause == "protocol":
        return dial_error(target, "protocol", repr(failure.line))
    return failed(target, OSError(failure.errno, os.strerror(failure.errno)))
