"""One entry of ``[forward]`` or ``[[route]]``: what was written, and where each part stands.

Owns: `Entry`.  What its parts mean is `load`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from vsockproxy.address.endpoint import Handshake
from vsockproxy.config.document import KeyPath
from vsockproxy.config.settings import Policy


@dataclass(frozen=True, slots=True)
class Entry:
    """The texts of an entry; ``own`` are the keys that stand in itself, not in the defaults."""

    listen: str
    targets: tuple[str, ...]
    policy: Policy
    path: KeyPath
    name: str | None = None
    to_host: bool = False
    handshake: Handshake | None = None
    long: bool = False
    own: frozenset[str] = frozenset()

    def at(self, key: str) -> KeyPath:
        """Where a key of it stands; in the short form all of it is one key."""
        return (*self.path, key) if self.long else self.path

    @property
    def at_target(self) -> KeyPath:
        """Where its target, or its targets, stand."""
        return self.at("targets" if "targets" in self.own else "target")

    def at_policy(self, key: str) -> KeyPath:
        """Where a key of its policy stands: here, or in the defaults."""
        if key == "target":
            return self.at_target
        return (*self.path, key) if key in self.own else ("defaults", key)
