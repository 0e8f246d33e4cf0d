"""The guests of a configuration that is built, found by the names in its routes and rules.

Owns: `GuestFinder`, and the sentence for a name that has no guest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vsockproxy.config.document import KeyPath
from vsockproxy.config.guest import Cid, Guest, KnownGuests, Mux, MuxGlob, UnixSockets
from vsockproxy.config.guest_table import check_name, read_guest
from vsockproxy.config.problems import NotedError, Problems
from vsockproxy.config.schema import GuestTable
from vsockproxy.config.tables import nearest
from vsockproxy.errors import AddressError


class GuestFinder:
    """The guests of a document, after those that it is built onto.

    Attributes:
      own: the document's guests.
      known: all of them.
    """

    def __init__(
        self, problems: Problems, unread: Iterable[KeyPath], before: Iterable[Guest]
    ) -> None:
        self._problems = problems
        self._is_unread = ("guests",) in unread
        self.own: list[Guest] = []
        self.known = KnownGuests(before)
        self._names = [guest.name for guest in before]

    def read(self, tables: Mapping[str, GuestTable]) -> None:
        """Add the document's guests; their problems are noted."""
        self._names += tables
        for name, table in tables.items():
            with self._problems.collecting(("guests", name)):
                check_name(name)
                self._check(name)
                guest = read_guest(name, table)
                self.own.append(guest)
                self.known.add(guest)

    def find(self, name: str, *, target: str = "") -> Guest:
        """Return a guest, by its name in a rule or in the text of a target.

        Raises:
          AddressError: there is no such guest.
          NotedError: the guest has a problem.
        """
        self._check(name)
        if guest := self.known.find(name):
            return guest
        hint = nearest(name, self._names)
        remedy = target and f"for a TCP target write tcp:{target}"
        advice = " ".join(filter(None, (hint, remedy)))
        quoted = target and f"{target!r}: "
        raise AddressError(f"{quoted}no guest {name!r} in [guests]" + (advice and f"; {advice}"))

    def cid(self, name: str) -> int:
        """Return the CID of a guest in a list of rules; raises as `find`."""
        locator = self.find(name).locator
        if isinstance(locator, Mux | MuxGlob | UnixSockets):
            raise AddressError(
                f"the guest {name!r} has no CID: its VMM connects for it; use a uid: or gid: rule"
            )
        if not isinstance(locator, Cid):
            raise AddressError(
                f"the CID of the guest {name!r} is looked up at each dial, but a rule needs a fixed"
                " one: give the VM a fixed CID, and write its number here"
            )
        return locator.cid

    def _check(self, name: str) -> None:
        """Raise `NotedError` if a guest has a problem, which is noted at its own key."""
        if self._is_unread or self._problems.are_at(("guests", name)):
            raise NotedError
