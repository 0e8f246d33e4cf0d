"""The state of the screen that the keys control: sort key, filter, selected row, prompt.

Owns: `Panel`, which receives every key.  Draws nothing and sends no requests: an action that
needs the daemon or the session is returned as an `Action`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from vsockproxy.top.traffic import Answer

SORT_KEYS: Final = ("rate", "bytes", "age", "idle", "id", "route", "client")
"""The sort keys of connections, in the order in which `s` cycles through them; the API's words."""

_ASCEND: Final = frozenset({"id", "route", "client"})
_MOVES: Final = {
    "up": -1,
    "down": 1,
    "page up": -10,
    "page down": 10,
    "home": -sys.maxsize,
    "end": sys.maxsize,
}
"""The keys that select another row, and how many rows further down it is."""

Prompt = Literal["nothing", "filter", "kill", "help"]


class Action(NamedTuple):
    """An action beyond the screen that a key asks for; ``connection`` is the one to kill."""

    verb: Literal["quit", "kill", "refresh"]
    connection: int = 0


class Panel:
    """The state of the screen.

    Attributes:
      sort: one of `SORT_KEYS`.
      is_reversed: whether the order is the opposite of the sort key's default.
      filter: text that a shown connection contains, ignoring case; empty for all.
      is_paused: whether the screen has stopped refreshing.
      scrolls_routes: whether the arrow keys scroll the routes instead of the connections.
      first_route: the index of the first route to show while they do.
      selected: the id of the selected connection; None selects the first row.
      prompt: the prompt that is open.
      typed: the filter text entered so far.
      message: result of the last action, for the bottom line.
    """

    def __init__(self) -> None:
        self.sort = SORT_KEYS[0]
        self.is_reversed = False
        self.filter = ""
        self.is_paused = False
        self.scrolls_routes = False
        self.first_route = 0
        self.selected: int | None = None
        self.prompt: Prompt = "nothing"
        self.typed = ""
        self.message = ""
        self._rows: list[Answer] = []
        self._last_first_route = 0

    @property
    def direction(self) -> Literal["asc", "desc"]:
        """Return the sort direction as the API names it."""
        return "asc" if (self.sort in _ASCEND) != self.is_reversed else "desc"

    def arrange(self, connections: Sequence[Answer]) -> list[Answer]:
        """Return the connections that match the filter, sorted; the keys select among them."""
        self._rows = sorted(
            filter(self._passes, connections), key=self._key, reverse=self.direction == "desc"
        )
        if self.row is None and self.prompt != "kill":  # the selected connection has closed
            self.selected = None
        return self._rows

    @property
    def row(self) -> int | None:
        """Return the index of the selected connection in `arrange`; None if none is selected."""
        for index, connection in enumerate(self._rows):
            if connection["id"] == self.selected:
                return index
        return 0 if self._rows and self.selected is None else None

    def press(self, key: str) -> Action | None:
        """Process a key: a character, or the name of a key (`terminal.KEYS`)."""
        self.message = ""
        match self.prompt:
            case "filter":
                return self._type(key)
            case "kill":
                return self._confirm(key)
            case "help":
                self.prompt = "nothing"
                return None
        return self._command(key)

    def _command(self, key: str) -> Action | None:
        match key:
            case "q" | "interrupt":
                return Action("quit")
            case "s":
                self.sort = SORT_KEYS[(SORT_KEYS.index(self.sort) + 1) % len(SORT_KEYS)]
                return Action("refresh")
            case "r":
                self.is_reversed = not self.is_reversed
                return Action("refresh")
            case "p" | " ":
                self.is_paused = not self.is_paused
                return Action("refresh")
            case "tab":
                self.scrolls_routes = not self.scrolls_routes
            case "/":
                self.prompt, self.typed = "filter", self.filter
            case "escape" if self.filter:
                self.filter = ""
                return Action("refresh")
            case "?" | "h":
                self.prompt = "help"
            case "k" | "delete":
                self._prompt_to_kill()
            case _ if self.scrolls_routes and key in _MOVES:
                self.first_route = _moved(self.first_route, key, self._last_first_route)
            case _ if self._rows and key in _MOVES:
                row = _moved(self.row or 0, key, len(self._rows) - 1)
                self.selected = self._rows[row]["id"]
        return None

    def window(self, routes: int, room: int) -> int:
        """Return the index of the first of the routes to show in ``room`` rows."""
        self._last_first_route = max(0, routes - room)
        self.first_route = min(self.first_route, self._last_first_route)
        return self.first_route

    def _prompt_to_kill(self) -> None:
        if self.row is None:
            self.message = "no connection is selected"
        else:
            self.selected = self._rows[self.row]["id"]
            self.prompt = "kill"

    def _confirm(self, key: str) -> Action | None:
        self.prompt = "nothing"
        if key in ("y", "Y") and self.selected is not None:
            return Action("kill", self.selected)
        self.message = "no connection was ended"
        return None

    def _type(self, key: str) -> Action | None:
        match key:
            case "enter":
                self.filter, self.prompt = self.typed, "nothing"
                return Action("refresh")
            case "escape" | "interrupt":
                self.prompt = "nothing"
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
            case "bytes" | "rate" as key:
                return connection[f"upstream_{key}"] + connection[f"downstream_{key}"], number
            case "age" | "idle" as key:
                return connection[f"{key}_seconds"], number
            case "id":
                return (number,)
        return connection[self.sort], number


def _moved(row: int, key: str, last: int) -> int:
    return max(0, min(row + _MOVES[key], last))
