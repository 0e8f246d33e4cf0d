"""The file of a route's users: ``NAME:HASH`` lines with bcrypt hashes, as ``htpasswd -B`` has them.

Owns: the grammar and the limits of the file.  `load` reads it to report its faults, and
`admit.credentials` reads it at each check.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Final

from vsockproxy.address.endpoint import check_absolute
from vsockproxy.errors import AddressError

_LARGEST: Final = 1 << 20  # bytes of the file
_COST_MAX: Final = 14  # two to this power rounds: about a second
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


def missing_bcrypt() -> CredentialsError:
    """Return the error where the module that checks hashes is missing."""
    return CredentialsError('the module bcrypt is missing: pip install "vsockproxy[credentials]"')


def read_credentials(path: str) -> dict[str, bytes]:
    """Return the hashes in a file by user.

    Raises:
      CredentialsError: the file cannot be read, or a line of it is not a user.
    """
    try:
        # O_NONBLOCK: do not wait for the writer of a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
            data = file.read(_LARGEST + 1) or b""
    except OSError as error:
        raise CredentialsError(f"the file {path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise CredentialsError(f"the file {path} has more than {_LARGEST} bytes")
    lines = enumerate(data.decode(errors="surrogateescape").splitlines(), 1)
    written = ((number, line.strip()) for number, line in lines)
    return dict(_user(path, number, line) for number, line in written if line and line[0] != "#")


def _user(path: str, number: int, line: str) -> tuple[str, bytes]:
    user, _, written = line.partition(":")
    match = _HASH.fullmatch(written)
    if match is None:
        raise CredentialsError(
            f"{path}:{number}: expected NAME:HASH with a bcrypt hash: htpasswd -B writes it"
        )
    if int(match["cost"]) > _COST_MAX:
        raise CredentialsError(
            f"{path}:{number}: the hash has the cost {match['cost']}: the maximum is {_COST_MAX}"
        )
    return user, written.encode()
