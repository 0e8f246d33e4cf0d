"""Users, groups and file modes as an operator writes them, as the numbers of the kernel.

Owns: asking this machine's user database (`pwd`, `grp`).  Changes nothing: `binding` does.
"""

from __future__ import annotations

import grp
import pwd
import re
from collections.abc import Callable
from typing import Final

from vsockproxy.config.duration import AUTO, shown
from vsockproxy.errors import AddressError

_ID_MAX: Final = 0xFFFFFFFE  # the one above is chown(2)'s "leave it"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,255}\$?")
_MODE: Final = re.compile(r"0?[0-7]{3}")


def user_id(value: object) -> int:
    """The number of a user; raises `AddressError` where there is none of that name."""
    return _number(value, "user", lambda name: pwd.getpwnam(name).pw_uid)


def group_id(value: object) -> int:
    """The number of a group; raises `AddressError` where there is none of that name."""
    return _number(value, "group", lambda name: grp.getgrnam(name).gr_gid)


def parse_owner(value: object) -> int | None:
    """`user_id`, or None for ``"auto"``: whoever runs the daemon."""
    return None if value == AUTO else user_id(value)


def parse_group(value: object) -> int | None:
    """`group_id`, or None for ``"auto"``: the group of whoever runs the daemon."""
    return None if value == AUTO else group_id(value)


def parse_mode(value: object) -> int | None:
    """The bits of a text such as ``"0660"``, or None for ``"auto"``: what the umask leaves.

    Raises `AddressError`, also for a number: 660 without quotes would be decimal.
    """
    if value == AUTO:
        return None
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise AddressError(f'{shown(value)} is no file mode: write it in quotes, as in "0660"')
    return int(value, 8)


def _number(value: object, what: str, find: Callable[[str], int]) -> int:
    text = str(value) if isinstance(value, int) and 0 <= value <= _ID_MAX else value
    if isinstance(value, bool) or not isinstance(text, str):
        raise AddressError(f"{shown(value)} is no {what}: write its name or its number")
    if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _ID_MAX:
        return int(text)
    if not _NAME.fullmatch(text):
        raise AddressError(f"{shown(value)} is no {what}: write its name or its number")
    try:
        return find(text)
    except KeyError:
        raise AddressError(f"{shown(value)}: this machine has no {what} of that name") from None
