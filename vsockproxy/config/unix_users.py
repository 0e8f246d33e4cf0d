"""Users, groups and file modes as an operator writes them, as the kernel's numbers.

Owns: look-ups in this machine's user database (`pwd`, `grp`).  Changes nothing:
`listen.socket_file` applies the numbers to the socket's file.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable
from typing import Final

from vsockproxy.config.value import AUTO, shown
from vsockproxy.errors import AddressError

_ID_MAX: Final = 0xFFFFFFFE  # chown(2) leaves the owner unchanged for the next number
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,255}\$?")
_MODE: Final = re.compile(r"0?[0-7]{3}")


def user_id(value: object) -> int:
    """Return the number of a user, which is written as a name or a number.

    Raises:
      AddressError: the value is neither, or this machine has no such user.
    """
    return _number(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(value: object) -> int:
    """Return the number of a group, which is written as a name or a number.

    Raises:
      AddressError: the value is neither, or this machine has no such group.
    """
    return _number(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def parse_owner(value: object) -> int | None:
    """Return `user_id`, or None for ``"auto"``: the daemon's own user.

    Raises:
      AddressError: as `user_id`.
    """
    return None if value == AUTO else user_id(value)


def parse_group(value: object) -> int | None:
    """Return `group_id`, or None for ``"auto"``: the daemon's own group.

    Raises:
      AddressError: as `group_id`.
    """
    return None if value == AUTO else group_id(value)


def parse_mode(value: object) -> int | None:
    """Return the bits of a text such as ``"0660"``, or None for ``"auto"``: the umask's.

    Raises:
      AddressError: the value is not such a text; also for a number: an unquoted 660 would be
        decimal.
    """
    if value == AUTO:
        return None
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise AddressError(
            f'{shown(value)} is not a file mode: expected a text in quotes, as in "0660"'
        )
    return int(value, 8)


def write_mode(bits: int) -> str:
    """Return a mode as `parse_mode` reads it."""
    return f"{bits:04o}"


def _number(value: object, what: str, find: Callable[[str], int]) -> int:
    text = str(value) if isinstance(value, int) and 0 <= value <= _ID_MAX else value
    if isinstance(value, bool) or not isinstance(text, str):
        raise _not_a(what, value)
    if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _ID_MAX:
        return int(text)
    if not _NAME.fullmatch(text):
        raise _not_a(what, value)
    try:
        return find(text)
    except KeyError:
        raise AddressError(f"{shown(value)} is not a {what} of this machine") from None


def _not_a(what: str, value: object) -> AddressError:
    return AddressError(f"{shown(value)} is not a {what}: expected a name or a number")
