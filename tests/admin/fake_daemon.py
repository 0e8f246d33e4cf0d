"""A daemon of which only its health is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio


class Observed:
    """What `admin.observe` asks, with the answers that a test wants.

    ``unreachable`` are the routes whose target cannot be dialled; a hung one never is alive,
    and its dials never end.

    Attributes:
      dialled: the routes whose targets were dialled, in order.
      dialling: how many dials are under way.
    """

    def __init__(
        self, not_ready: Sequence[str] = (), unreachable: Sequence[str] = (), *, hung: bool = False
    ) -> None:
        self._lacking = not_ready
        self._unreachable = unreachable
        self._hung = hung
        self.dialled: list[str] = []
        self.dialling = 0

    def not_ready(self) -> list[str]:
        """What is not ready."""
        return list(self._lacking)

    async def alive(self) -> None:
        """Return at once, or never."""
        await trio.sleep(math.inf if self._hung else 0)

    async def reach(self, name: str) -> str | None:
        """Why a route's target cannot be dialled."""
        self.dialled.append(name)
        self.dialling += 1
        try:
            await trio.sleep(math.inf if self._hung else 0)
        finally:
            self.dialling -= 1
        return "nothing listens there" if name in self._unreachable else None
