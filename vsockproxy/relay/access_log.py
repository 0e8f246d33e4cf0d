"""The access log: a line for each connection that has ended."""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from vsockproxy.config.settings import Policy
from vsockproxy.connection import Connection
from vsockproxy.pump.transfer import ENDINGS

# How a load balancer's check ends: with a FIN, a reset, or before the target was dialled; and with
# the daemon, where the target has not answered its FIN.
_CLEAN: Final = frozenset({"finished", "client_reset", "dial_client_left", "drained", "shutdown"})


def log_end(connection: Connection, reason: str, log: Any, seconds: float | None = None) -> None:
    """Write the access line of a connection, unless its route's policy wants none.

    It was open for ``seconds``; by default it has ended now.
    """
    moved = connection.upstream_bytes + connection.downstream_bytes
    if not is_logged(connection.route.policy, reason, moved):
        return
    if seconds is None:
        seconds = monotonic() - connection.opened
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
        seconds=round(seconds, 6),
        reason=reason,
        **words,
    )


# They have a line already, `dial_failed` or `client_rejected`, which is throttled.
_TOLD: Final = ("dial_", "rejected_")


def is_logged(policy: Policy, reason: str, moved: int) -> bool:
    """Return whether a policy wants a line for a connection that has moved so many bytes."""
    if reason.startswith(_TOLD) and reason not in _CLEAN:
        return False
    is_empty = reason in _CLEAN and not moved
    return policy.access_log and (policy.log_empty or not is_empty)
