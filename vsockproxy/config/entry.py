"""One entry of ``[forward]`` or ``[[route]]``: its texts, and the key path of each.

Owns: `Entry`, and that its ranges of ports are of equal length.  Must not know what the texts
mean: that is `load`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vsockproxy.address.endpoint import Handshake
from vsockproxy.config.by_name import ByName
from vsockproxy.config.document import KeyPath
from vsockproxy.config.settings import Policy
from vsockproxy.errors import AddressError
from vsockproxy.readable import count


@dataclass(frozen=True, slots=True)
class Entry:
    """The texts of an entry.

    Attributes:
      path: the key path of the entry.
      long: the entry is a ``[[route]]``.
      own: the keys that are set in the entry itself, not in ``[defaults]``.
      by_name: how clients name their targets; then there are no ``targets``.
    """

    listen: str
    targets: tuple[str, ...]
    policy: Policy
    path: KeyPath
    name: str | None = None
    to_host: bool = False
    handshake: Handshake | None = None
    long: bool = False
    own: frozenset[str] = frozenset()
    by_name: ByName | None = None

    def at(self, key: str) -> KeyPath:
        """Return the path of a key; an entry of ``[forward]`` is a single key."""
        return (*self.path, key) if self.long else self.path

    def route_name(self, listen: str, *, spread: bool) -> str:
        """Return the name of the route at one listener; ``spread``: of several, one per port."""
        if self.name is None:
            return listen
        return f"{self.name}-{listen.rpartition(':')[2]}" if spread else self.name

    @property
    def at_target(self) -> KeyPath:
        """Return the path of ``target``, ``targets`` or ``to``."""
        if self.by_name is not None:
            return self.at("to")
        return self.at("targets" if "targets" in self.own else "target")

    def at_policy(self, key: str) -> KeyPath:
        """Return the path of a policy key: in the entry, or in ``[defaults]``."""
        if key == "target":
            return self.at_target
        return (*self.path, key) if key in self.own else ("defaults", key)


def check_lengths(
    target: str, ports: Sequence[str], listen: str, listen_ports: Sequence[str]
) -> None:
    """Raise `AddressError` if a target and a listener have different numbers of ports."""
    if len(ports) != len(listen_ports):
        raise AddressError(
            f"{target!r} has {count(len(ports), 'port')} and {listen!r} has"
            f" {count(len(listen_ports), 'port')}: use ranges of equal length"
        )
