"""The users of a route whose clients name their targets, and the check of their passwords.

Owns: `Users`, for one file, whose grammar is in `config.credentials`.  The file is read at each
check, so that a change needs no reload.  Reading and hashing are done in threads; a right password
is remembered, for a hash takes a processor a quarter of a second.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import Any, Final

import trio

from vsockproxy.admit.token_bucket import TokenBucket
from vsockproxy.config.access import Peer
from vsockproxy.config.credentials import CredentialsError, missing_bcrypt, read_credentials

_HASHING: Final = trio.CapacityLimiter(2)
"""Threads that hash at the same time, for all routes."""

_FAILURES: Final = 5  # wrong passwords of one source in a row
_FAILURE_RATE: Final = 0.1  # further ones, per second
_MOST: Final = 1024  # sources, and right passwords, that are remembered
_LONGEST: Final = 72  # bytes of a password; bcrypt reads no more


class _Source:
    """The attempts of one source: one at a time, and few that fail."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.failures = TokenBucket(_FAILURE_RATE, _FAILURES)


class Users:
    """The users in one file, ``path``."""

    def __init__(self, path: str, log: Any) -> None:
        """Read nothing yet; ``log`` is a structlog logger for a file that cannot be used."""
        self.path = path
        self._log = log
        self._told = ""
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._sources: OrderedDict[str | None, _Source] = OrderedDict()

    async def check(self, user: str, password: str, peer: Peer) -> bool:
        """Return whether a password is the user's.

        Without a hash it returns False for a source with many failures, and for a file that
        cannot be used, which is logged.

        *Cancellation*: a hash that is under way is finished in its thread and discarded.
        """
        source = self._source(peer.source)
        async with source.lock:
            if source.failures.seconds() > 0:
                return False
            verify = partial(_verify, self.path, user, password, self._key, self._right)
            try:
                right = await trio.to_thread.run_sync(
                    verify, abandon_on_cancel=True, limiter=_HASHING
                )
            except CredentialsError as error:
                self._tell(str(error))
                return False
            self._told = ""
            if right is None:
                source.failures.take()
                return False
            _remember(self._right, right, None)
            return True

    def _source(self, name: str | None) -> _Source:
        source = self._sources.get(name) or _Source()
        _remember(self._sources, name, source)
        return source

    def _tell(self, error: str) -> None:
        """Log an error once, until a check succeeds in reading the file."""
        if error != self._told:
            self._told = error
            self._log.warning("credentials_failed", error=error)


def _remember(table: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Put an item behind the others, and forget the first one of too many."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MOST:
        table.popitem(last=False)


def _verify(
    path: str, user: str, password: str, key: bytes, right: Collection[bytes]
) -> bytes | None:
    """Return what stands for a right user, password and hash; None if they are wrong.

    An unknown user takes as long as a wrong password.  Blocks; raises `CredentialsError`.
    """
    users = read_credentials(path)
    secret = password.encode(errors="surrogatepass")
    if not users or len(secret) > _LONGEST or b"\0" in secret:
        return None
    hashed = users.get(user) or next(iter(users.values()))
    parts = (user.encode(errors="surrogatepass"), secret, hashed)
    digest = hmac.digest(key, b"\0".join(parts), "sha256")
    if user in users and digest in right:
        return digest
    is_right = _bcrypt().checkpw(secret, hashed)  # compares in constant time
    return digest if is_right and user in users else None


def _bcrypt() -> Any:
    try:
        import bcrypt  # noqa: PLC0415 - an extra, and only at its use
    except ImportError as error:
        raise missing_bcrypt() from error
    return bcrypt
