"""What the person at the keys has chosen: order, filter, row, and what is being asked.

Owns: `Panel`, which every key goes to.  Draws nothing and asks no daemon: what is to be done
comes back as an `Order`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from vsockproxy.top.traffic import Answer

ORDERS: Final = ("rate", "bytes", "age", "idle", "id", "route", "client")
"""By what connections are sorted, in the order of the key; words of the API."""

_ASCEND: Final = frozenset({"id", "route", "client"})
_ROWS_A_PAGE: Final = 10

Asking = Literal["nothing", "filter", "kill", "help"]


class Order(NamedTuple):
    """What a key wants done beyond the screen; ``connection`` is the one to kill."""

    verb: Literal["quit", "kill", "look"]
    connection: int = 0


class Panel:
    """The state of the screen.

    Attributes:
      sort: one of `ORDERS`; ``is_reversed`` is against its natural direction.
      filter: what a connection's texts must contain, in any case; empty for all.
      is_paused: whether the numbers stand still.
      selected: the id of the connection that the keys mean; None for the first.
      asking: what the keys answer now.
      typed: the filter as far as it is typed.
      said: what came of the last order, for one line.
    """

    def __init__(self) -> None:
        self.sort = ORDERS[0]
        self.is_reversed = False
        self.filter = ""
        self.is_paused = False
        self.selected: int | None = None
        self.asking: Asking = "nothing"
        self.typed = ""
        self.said = ""
        self._rows: list[Answer] = []

    @property
    def direction(self) -> Literal["asc", "desc"]:
        """The API's word for the direction of the order."""
        return "asc" if (self.sort in _ASCEND) != self.is_reversed else "desc"

    def arrange(self, connections: Sequence[Answer]) -> list[Answer]:
        """The connections that pass the filter, in order; the keys move among them."""
        self._rows = sorted(
            filter(self._passes, connections), key=self._key, reverse=self.direction == "desc"
        )
        if self.row is None and self.asking != "kill":  # the one that was meant has ended
            self.selected = None
        return self._rows

    @property
    def row(self) -> int | None:
        """Which of the arranged connections is selected; None for none of them."""
        for index, connection in enumerate(self._rows):
            if connection["id"] == self.selected:
                return index
        return 0 if self._rows and self.selected is None else None

    def press(self, key: str) -> Order | None:
        """Follow a key: a character, or the name of a key (`terminal.KEYS`)."""
        self.said = ""
        match self.asking:
            case "filter":
                return self._type(key)
            case "kill":
                return self._confirm(key)
            case "help":
                self.asking = "nothing"
                return None
        return self._command(key)

    def _command(self, key: str) -> Order | None:
        match key:
            case "q" | "interrupt":
                return Order("quit")
            case "s":
                self.sort = ORDERS[(ORDERS.index(self.sort) + 1) % len(ORDERS)]
                return Order("look")
            case "r":
                self.is_reversed = not self.is_reversed
                return Order("look")
            case "p" | " ":
                self.is_paused = not self.is_paused
                return Order("look")
            case "/":
                self.asking, self.typed = "filter", self.filter
            case "escape" if self.filter:
                self.filter = ""
                return Order("look")
            case "?" | "h":
                self.asking = "help"
            case "k" | "delete":
                self._ask_to_kill()
            case _:
                self._move(key)
        return None

    def _move(self, key: str) -> None:
        here = self.row or 0
        last = len(self._rows) - 1
        places = {
            "up": here - 1,
            "down": here + 1,
            "page up": here - _ROWS_A_PAGE,
            "page down": here + _ROWS_A_PAGE,
            "home": 0,
            "end": last,
        }
        if self._rows and key in places:
            self.selected = self._rows[max(0, min(places[key], last))]["id"]

    def _ask_to_kill(self) -> None:
        if self.row is None:
            self.said = "no connection is selected"
        else:
            self.selected = self._rows[self.row]["id"]
            self.asking = "kill"

    def _confirm(self, key: str) -> Order | None:
        self.asking = "nothing"
        if key in ("y", "Y") and self.selected is not None:
            return Order("kill", self.selected)
        self.said = "nothing was ended"
        return None

    def _type(self, key: str) -> Order | None:
        match key:
            case "enter":
                self.filter, self.asking = self.typed, "nothing"
                return Order("look")
            case "escape" | "interrupt":
                self.asking = "nothing"
            case "backspace":
                self.typed = self.typed[:-1]
            case _ if len(key) == 1:
                self.typed += key
        return None

    def _passes(self, connection: Answer) -> bool:
        texts = (str(connection[key]) for key in ("id", "route", "client", "target", "state"))
        return self.filter.lower() in " ".join(texts).lower()

    def _key(self, connection: Answer) -> Any:
        number = connection["id"]
        match self.sort:
            case "bytes" | "rate" as what:
                return connection[f"upstream_{what}"] + connection[f"downstream_{what}"], number
            case "age" | "idle" as what:
                return connection[f"{what}_seconds"], number
            case "id":
                return (number,)
        return connection[self.sort], number
