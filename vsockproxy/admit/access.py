"""Which clients a route takes: its allow and deny lists, and its limit for each source.

Owns: `AccessRules`. How a rule is written and what it matches is `config.access`'s.
"""

from __future__ import annotations

from typing import Literal

from vsockproxy.admit.peer import peer_at
from vsockproxy.config.access import Access, Peer
from vsockproxy.config.settings import Policy
from vsockproxy.connection import Connection
from vsockproxy.stats import RouteStats

AccessReason = Literal["max_connections_per_source", "denied"]
"""Why a client is not taken."""


class AccessRules:
    """The access rules of one route.

    Attributes:
      has_any: whether there are any; without them no client has to be judged.
    """

    __slots__ = ("_access", "_most", "_stats", "has_any")

    def __init__(self, policy: Policy, stats: RouteStats) -> None:
        """Follow a policy; connections that are open already count for their source."""
        self._access = Access(policy.allow, policy.deny)
        self._most = policy.max_connections_per_source
        self._stats = stats
        self.has_any = bool(self._access) or self._most is not None
        if self._most is not None:
            self._count_sources()

    def judge(self, peer: Peer, connection: Connection) -> AccessReason | None:
        """Return why a client is rejected; None counts it for its source."""
        if not self._access.admits(peer):
            return "denied"
        if self._most is not None and (source := peer.source) is not None:
            if self._stats.sources.get(source, 0) >= self._most:
                return "max_connections_per_source"
            self._stats.count_source(connection, source)
        return None

    def _count_sources(self) -> None:
        """Count open connections whose source is not known yet; Unix clients' never is."""
        for connection in self._stats.live:
            if connection.source is None:
                source = peer_at(connection.family, connection.address).source
                self._stats.count_source(connection, source)
