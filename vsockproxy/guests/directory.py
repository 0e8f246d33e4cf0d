"""Where guests are: asked for at each dial, remembered for a moment.

Owns: `Guests`, one for the daemon, and what it knows of each guest.  A source that hangs or
fails is its own guest's trouble alone.  Must not know how a source is asked, nor who dials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import Dialable, GuestEndpoint
from vsockproxy.config.guest import Cid, DynamicWay, Guest, Mux, StaticWay
from vsockproxy.errors import AddressError, dial_error
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.sources import look_up

REMEMBERED: Final = 1.0
"""Seconds for which an answer serves further dials."""

_FAILURE_REMEMBERED: Final = 0.25  # seconds: a program is not run for each of many clients
_PATIENCE: Final = 6.0  # seconds for a source; a little more than a command's own bound
_NEVER: Final = float("-inf")

LookUp = Callable[[DynamicWay, trio.CapacityLimiter], Awaitable[Cid | Mux]]
"""Asks a source; raises `GuestError`."""


class GuestRecord:
    """What is known of one guest.

    Attributes:
      guest: as the configuration has it.
      found: where it was found; None before it is looked for, and while it is not found.
      last_error: why it was not found when it was looked for last, or None.
      results: how many look-ups ended in ``success`` and in ``failure``.
    """

    def __init__(self, guest: Guest, look_up: LookUp, log: Any) -> None:
        self.guest = guest
        self.found: Cid | Mux | None = None
        self.last_error: str | None = None
        self.results: Counter[str] = Counter(success=0, failure=0)
        self._look_up = look_up
        self._log = log
        self._answered = _NEVER
        self._expires = _NEVER
        self._asking = trio.Lock()
        # One, so that a source that hangs takes one thread and not one for each client.
        self._threads = trio.CapacityLimiter(1)

    def forget(self) -> None:
        """Ask anew at the next dial."""
        self._expires = _NEVER

    async def locate(self, deadline: float) -> Cid | Mux:
        """Where the guest is, asked for unless somebody just has; raises `GuestError`."""
        wanted = trio.current_time()
        if wanted >= self._expires:
            with trio.move_on_at(deadline) as waiting:
                await self._asking.acquire()
            if waiting.cancelled_caught:
                raise GuestError(self._silence())
            try:
                # Whoever asked before us may have done it for all who waited meanwhile.
                if self._answered < wanted:
                    await self._ask(deadline)
            finally:
                self._asking.release()
        if self.found is None:
            raise GuestError(str(self.last_error))
        return self.found

    async def _ask(self, deadline: float) -> None:
        assert not isinstance(self.guest.way, StaticWay)
        bound = trio.current_time() + _PATIENCE
        with trio.move_on_at(min(deadline, bound)):
            try:
                self._note(await self._look_up(self.guest.way, self._threads))
            except GuestError as error:
                self._note_failure(str(error), _FAILURE_REMEMBERED)
            except Exception as error:  # noqa: BLE001 - a source that breaks harms no other guest
                self._note_defect(error)
            return
        self._note_failure(self._silence(), 0.0)
        if deadline < bound:  # others may have more time than this client has
            self._answered = _NEVER

    def _note(self, found: Cid | Mux) -> None:
        if isinstance(found, Cid):
            found = replace(found, to_host=self.guest.to_host)
        if found != self.found and self._log is not None:
            self._log.info("guest_found", guest=self.guest.name, at=str(found))
        self.found, self.last_error = found, None
        self._remember("success", REMEMBERED)

    def _note_defect(self, error: Exception) -> None:
        """What no source has words for, such as that no descriptor is left to ask with."""
        words = isinstance(error, OSError) and error.strerror
        sentence = f"{self.guest.way} cannot be looked up: {words or _described(error)}"
        self._note_failure(sentence, _FAILURE_REMEMBERED, exc_info=error)

    def _note_failure(self, error: str, seconds: float, **more: object) -> None:
        if error != self.last_error and self._log is not None:
            self._log.warning("guest_not_found", guest=self.guest.name, error=error, **more)
        self.found, self.last_error = None, error
        self._remember("failure", seconds)

    def _remember(self, result: str, seconds: float) -> None:
        self.results[result] += 1
        self._answered = trio.current_time()
        self._expires = self._answered + seconds

    def _silence(self) -> str:
        return f"no answer in time about {self.guest.way}"


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class Guests:
    """Finds the guests whose way is dynamic; `adopt` follows a reload."""

    def __init__(
        self, guests: Iterable[Guest] = (), *, look_up: LookUp = look_up, log: Any = None
    ) -> None:
        """``log`` hears of each change, in structlog's way."""
        self._look_up = look_up
        self._log = log
        self._records: dict[str, GuestRecord] = {}
        self.adopt(guests)

    def adopt(self, guests: Iterable[Guest]) -> None:
        """Know these guests from now on; what was found of one that stays as it was is kept."""
        known = {record.guest: record for record in self._records.values()}
        self._records = {
            guest.name: known.get(guest) or GuestRecord(guest, self._look_up, self._log)
            for guest in guests
            if not isinstance(guest.way, StaticWay)
        }

    async def resolve(self, endpoint: GuestEndpoint, deadline: float) -> Dialable:
        """The address of a guest's port, by ``deadline`` in trio's time.

        Raises `DialError` with reason ``guest``.
        """
        record = self._records.get(endpoint.guest)
        if record is None:  # a client that came before the reload
            sentence = f"no guest {endpoint.guest!r} is under guests any more"
            raise dial_error(endpoint, "guest", sentence)
        try:
            return (await record.locate(deadline)).address(endpoint.port)
        except (AddressError, GuestError) as error:
            raise dial_error(endpoint, "guest", str(error)) from error

    def forget(self, name: str) -> None:
        """Ask anew for a guest at its next dial: the answer led nowhere."""
        if name in self._records:
            self._records[name].forget()

    def records(self) -> list[GuestRecord]:
        """What is known of each guest."""
        return list(self._records.values())
