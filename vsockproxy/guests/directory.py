"""The directory of guests: their addresses, looked up at each dial and cached for a second.

Owns: `Guests`, one for the daemon, and a `GuestRecord` for each guest.  A source that hangs or
fails affects only its guest, or the guests of patterns.  Knows neither the sources' protocols
nor the callers.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import Any, Final

import trio

from vsockproxy.address.endpoint import Dialable, GuestEndpoint
from vsockproxy.config.guest import Cid, DynamicLocator, Guest, KnownGuests, Mux, StaticLocator
from vsockproxy.errors import AddressError, dial_error
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.sources import look_up

CACHED: Final = 1.0
"""Seconds for which an answer is used again."""

_FAILURE_CACHED: Final = 0.25  # seconds; many clients at once start a program only once
_TIMEOUT: Final = 6.0  # seconds for a source; more than a command's own timeout
_NEVER: Final = float("-inf")
_MOST_BY_PATTERN: Final = 1024  # records; clients choose the names
_THREADS_BY_PATTERN: Final = 8  # for all of them together

LookUp = Callable[[DynamicLocator, trio.CapacityLimiter], Awaitable[Cid | Mux]]
"""Asks a source, in threads of the limiter; raises `GuestError`."""


class GuestRecord:
    """One guest, its address and the results of its look-ups.

    Attributes:
      guest: the guest in the configuration.
      found: its address; None before the first look-up and after a failed one.
      last_error: the error of the last look-up if it failed, else None.
      results: the number of look-ups that ended in ``success`` and in ``failure``.
    """

    def __init__(
        self,
        guest: Guest,
        look_up: LookUp,
        log: Any,
        threads: trio.CapacityLimiter | None = None,
    ) -> None:
        """Look ``guest`` up in ``threads``; without them, in a new one."""
        self.guest = guest
        self.found: Cid | Mux | None = None
        self.last_error: str | None = None
        self.results: Counter[str] = Counter(success=0, failure=0)
        self._look_up = look_up
        self._log = log
        self._answered = _NEVER
        self._expires = _NEVER
        self._asking = trio.Lock()
        # One: a source that hangs occupies one thread, not one for each client.
        self._threads = threads or trio.CapacityLimiter(1)

    def forget(self) -> None:
        """Discard the cached answer: the next dial looks the guest up."""
        self._expires = _NEVER

    async def locate(self, deadline: float) -> Cid | Mux:
        """Return the guest's address, from the cache or its source.

        ``deadline`` is in trio's time.  Concurrent callers share one look-up.

        Raises:
          GuestError: the guest was not found, or not by ``deadline``.  Every other error of a
            source, a bug included, becomes one.

        *Cancellation*: ends the look-up; callers that share it repeat it.
        """
        called = trio.current_time()
        if called >= self._expires:
            with trio.move_on_at(deadline) as scope:
                await self._asking.acquire()
            if scope.cancelled_caught:
                raise GuestError(self._timeout_message())
            try:
                # A look-up that ended after this call began serves this caller too.
                if self._answered < called:
                    await self._ask(deadline)
            finally:
                self._asking.release()
        if self.found is None:
            raise GuestError(str(self.last_error))
        return self.found

    async def _ask(self, deadline: float) -> None:
        assert not isinstance(self.guest.locator, StaticLocator)
        timeout = trio.current_time() + _TIMEOUT
        with trio.move_on_at(min(deadline, timeout)):
            try:
                self._note(await self._look_up(self.guest.locator, self._threads))
            except GuestError as error:
                self._note_failure(str(error), _FAILURE_CACHED)
            except Exception as error:  # noqa: BLE001 - a defect in a source must not affect other guests
                sentence = f"{self.guest.locator} cannot be looked up: {_described(error)}"
                self._note_failure(sentence, _FAILURE_CACHED)
            return
        self._note_failure(self._timeout_message(), 0.0)
        if deadline < timeout:  # other callers may have a later deadline
            self._answered = _NEVER

    def _note(self, found: Cid | Mux) -> None:
        if isinstance(found, Cid):
            found = replace(found, to_host=self.guest.to_host)
        if found != self.found and self._log is not None:
            self._log.info("guest_found", guest=self.guest.name, at=str(found))
        self.found, self.last_error = found, None
        self._remember("success", CACHED)

    def _note_failure(self, error: str, seconds: float) -> None:
        self.found, self.last_error = None, error
        self._remember("failure", seconds)

    def _remember(self, result: str, seconds: float) -> None:
        self.results[result] += 1
        self._answered = trio.current_time()
        self._expires = self._answered + seconds

    def _timeout_message(self) -> str:
        return f"{self.guest.locator}: the look-up timed out"


def _described(error: Exception) -> str:
    """Return the words for an error that a source did not expect, such as a full file table."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    frames = extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


class Guests:
    """All guests, and the records of those whose locator is dynamic.

    The guests of a pattern have records too, but only those asked for last: a client can ask for
    any number of names.
    """

    def __init__(
        self, guests: Iterable[Guest] = (), *, look_up: LookUp = look_up, log: Any = None
    ) -> None:
        """Create a record for each guest; ``log`` is a structlog logger for changes."""
        self._look_up = look_up
        self._log = log
        self._known = KnownGuests()
        self._records: dict[str, GuestRecord] = {}
        self._by_pattern: OrderedDict[str, GuestRecord] = OrderedDict()
        self._threads = trio.CapacityLimiter(_THREADS_BY_PATTERN)
        self.reconfigure(guests)

    def reconfigure(self, guests: Iterable[Guest]) -> None:
        """Replace the guests after a reload; keep the records of those that have not changed."""
        self._known = KnownGuests(guests)
        known = {record.guest: record for record in self._records.values()}
        before = self._records
        self._records = {
            guest.name: known.get(guest) or GuestRecord(guest, self._look_up, self._log)
            for guest in self._known.fixed.values()
            if not isinstance(guest.locator, StaticLocator)
        }
        for name in self._records.keys() & before.keys():  # a counter never goes back
            self._records[name].results = before[name].results
        self._by_pattern.clear()

    def find(self, name: str) -> Guest | None:
        """Return the guest of a name, which may be any text; None if ``[guests]`` has none."""
        return self._known.find(name)

    def _record(self, name: str) -> GuestRecord | None:
        """Return the record of a guest; None without such a guest, or if its locator is static."""
        if name in self._records:
            return self._records[name]
        if name in self._by_pattern:
            self._by_pattern.move_to_end(name)
            return self._by_pattern[name]
        guest = self.find(name)
        if guest is None or isinstance(guest.locator, StaticLocator):
            return None
        # No log: a client that asks for names would fill it.
        record = GuestRecord(guest, self._look_up, None, self._threads)
        self._by_pattern[name] = record
        if len(self._by_pattern) > _MOST_BY_PATTERN:
            self._by_pattern.popitem(last=False)
        return record

    async def resolve(self, endpoint: GuestEndpoint, deadline: float) -> Dialable:
        """Return the address of a guest's port.

        Args:
          deadline: the end of the look-up, in trio's time.

        Raises:
          DialError: with the reason ``guest``; the cause and the remedy are the source's.
        """
        record = self._record(endpoint.guest)
        if record is None:  # the client was accepted before the reload
            sentence = f"the guest {endpoint.guest!r} was removed from the configuration"
            raise dial_error(endpoint, "guest", sentence)
        try:
            return (await record.locate(deadline)).address(endpoint.port)
        except (AddressError, GuestError) as error:
            raise dial_error(endpoint, "guest", str(error)) from error

    def forget(self, name: str) -> None:
        """Discard a guest's cached address after a failed dial."""
        record = self._records.get(name) or self._by_pattern.get(name)
        if record is not None:
            record.forget()

    async def locate(self, name: str, deadline: float) -> Cid | StaticLocator | None:
        """Return where a guest is, by ``deadline`` in trio's time; None if it was not found."""
        guest, record = self.find(name), self._record(name)
        if record is not None:
            with suppress(GuestError):
                return await record.locate(deadline)
        elif guest is not None and isinstance(guest.locator, StaticLocator):
            return guest.locator
        return None

    async def locate_all(self, timeout: float) -> list[GuestRecord]:
        """Look up all guests at once, each for at most ``timeout`` seconds; return the records."""
        records = self.records()

        async def locate(record: GuestRecord) -> None:
            with suppress(GuestError):  # the record keeps it
                await record.locate(trio.current_time() + timeout)

        async with trio.open_nursery() as nursery:
            for record in records:
                nursery.start_soon(locate, record)
        return records

    def records(self) -> list[GuestRecord]:
        """Return the record of each guest that is no pattern's."""
        return list(self._records.values())
