"""The file of a route's users: ``NAME:HASH`` lines with bcrypt hashes, as ``htpasswd -B`` has them.

Owns: the grammar and the limits of the file.  `load` reads it to report its faults, and
`admit.credentials` reads it at each check.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from vsockproxy.address.endpoint import check_absolute
from vsockproxy.bounded_read import read_start
from vsockproxy.config.by_name import ByName
from vsockproxy.errors import AddressError

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config

_LARGEST: Final = 1 << 20  # bytes of the file
_COST_MAX: Final = 14  # two to this power rounds: about a second
_WRITER: Final = "htpasswd -B writes it"
_REMEDIES: Final = {
    errno.ENOENT: "; create it: htpasswd -B -c {path} NAME",
    errno.EACCES: "; let the daemon's user or group read it",
}
_HASH: Final = re.compile(r"\$2[aby]\$(?P<cost>[0-9]{2})\$[./A-Za-z0-9]{53}")


class CredentialsError(AddressError):
    """The file of users cannot be used; the text has the cause and the remedy."""


def check_credentials(path: str) -> None:
    """Raise `AddressError` unless a file has users, and their passwords can be checked."""
    check_absolute(path)
    if find_spec("bcrypt") is None:
        raise missing_bcrypt()
    if not read_credentials(path):
        raise CredentialsError(f"the file {path} has no users: add one with htpasswd -B")


def exposures(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield each route whose file of users every user can read, a sentence, and the remedy."""
    for route in config.routes:
        path = route.target.credentials if isinstance(route.target, ByName) else None
        if path is not None and _is_readable_by_all(path):
            sentence = f"every user of this machine can read the hashes in {path}"
            yield f"route {route.name}", sentence, f"run chmod o= {path}"


def _is_readable_by_all(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)  # noqa: PTH116 - as it is opened
    except OSError:
        return False


def missing_bcrypt() -> CredentialsError:
    """Return the error where the module that checks hashes is missing."""
    return CredentialsError('the module bcrypt is missing: pip install "vsockproxy[credentials]"')


def read_credentials(path: str) -> dict[str, bytes]:
    """Return the hashes in a file by user.

    Raises:
      CredentialsError: the file cannot be read, or a line of it is not a user.
    """
    try:
        data = read_start(path, _LARGEST + 1)
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "").format(path=path)
        raise CredentialsError(
            f"the file {path} cannot be read: {error.strerror}{remedy}"
        ) from error
    if len(data) > _LARGEST:
        raise CredentialsError(f"the file {path} has more than {_LARGEST} bytes")
    lines = enumerate(data.decode(errors="surrogateescape").splitlines(), 1)
    written = ((number, line.strip()) for number, line in lines)
    users: dict[str, bytes] = {}
    for number, line in written:
        if line and line[0] != "#":
            user, hashed = _user(f"{path}:{number}", line)
            if user in users:
                raise CredentialsError(f"{path}:{number}: {user!r} has a line above: remove one")
            users[user] = hashed
    return users


def _user(place: str, line: str) -> tuple[str, bytes]:
    user, colon, written = line.partition(":")
    if not user or not colon:
        raise CredentialsError(f"{place}: expected NAME:HASH with a bcrypt hash: {_WRITER}")
    match = _HASH.fullmatch(written)
    if match is None:
        # Without the name: at run time the file may be any that the daemon can read.
        raise CredentialsError(f"{place}: the user's password is not a bcrypt hash: {_WRITER}")
    if int(match["cost"]) > _COST_MAX:
        raise CredentialsError(
            f"{place}: the hash has the cost {match['cost']}: the maximum is {_COST_MAX}"
        )
    return user, written.encode()
