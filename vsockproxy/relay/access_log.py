"""The access log: a line for each connection that has ended."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from vsockproxy.connection import Connection
from vsockproxy.pump.transfer import ENDINGS

# How a load balancer's check ends: with a FIN, a reset, or before the target was dialled.
_CLEAN: Final = frozenset({"finished", "client_reset", "dial_client_left"})


def log_end(connection: Connection, reason: str, log: Any) -> None:
    """Write the access line of a connection, unless its route's policy wants none."""
    if not _is_logged(connection, reason):
        return
    words: dict[str, object] = {"why": ENDINGS[reason]} if reason in ENDINGS else {}
    if connection.dial_seconds is not None:
        words["dial_seconds"] = round(connection.dial_seconds, 6)
    if connection.vmm_port is not None:
        words["vmm_port"] = connection.vmm_port
    if connection.held_seconds:
        words["held_seconds"] = round(connection.held_seconds, 6)
    log.info(
        "connection_closed",
        **connection.names(),
        upstream_bytes=connection.upstream_bytes,
        downstream_bytes=connection.downstream_bytes,
        seconds=round(monotonic() - connection.opened, 6),
        reason=reason,
        **words,
    )


# They have a line already, `dial_failed` or `client_rejected`, which is throttled.
_TOLD: Final = ("dial_", "rejected_")


def _is_logged(connection: Connection, reason: str) -> bool:
    if reason.startswith(_TOLD) and reason not in _CLEAN:
        return False
    policy = connection.route.policy
    is_empty = reason in _CLEAN and not connection.upstream_bytes + connection.downstream_bytes
    return policy.access_log and (policy.log_empty or not is_empty)
