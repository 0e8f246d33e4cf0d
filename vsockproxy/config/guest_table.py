"""From a table of ``[guests]`` to the `Guest` that it describes.

Owns: which keys of a guest can be combined.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from vsockproxy.address.endpoint import check_absolute, check_guest_name
from vsockproxy.config.document import KeyPath
from vsockproxy.config.guest import (
    NAME_MARK,
    PORT_MARK,
    STAR,
    Cid,
    CidFile,
    Command,
    Guest,
    Incus,
    Libvirt,
    Locator,
    Machine,
    Mux,
    MuxGlob,
    Qmp,
    StaticLocator,
    UnixSockets,
)
from vsockproxy.config.problems import KeyProblemError
from vsockproxy.config.schema import GuestTable
from vsockproxy.errors import AddressError

_LOCATORS: Final = (
    *("cid", "mux", "unix"),
    *("libvirt", "qmp", "machine", "incus", "file", "command"),
)
_OVER_VSOCK: Final = frozenset(_LOCATORS) - {"mux", "unix"}
_WITH: Final = {"to_host": _OVER_VSOCK, "handshake": {"mux"}, "uri": {"libvirt"}}
_MISPLACED: Final = {
    "to_host": "needs a guest with a CID: this one has a socket",
    "handshake": "needs mux",
    "uri": "needs libvirt",
}
_SOCKETS: Final = frozenset({"unix", "qmp"})
_PATHS: Final = _SOCKETS | {"mux", "file"}
_NAMED: Final[dict[str, Callable[[Any], Locator]]] = {
    "unix": UnixSockets,
    "qmp": Qmp,
    "machine": Machine,
    "incus": Incus,
    "file": CidFile,
    "command": Command,
}
_PATTERN: Final = re.compile(r"[*?\[]")


def read_guest(name: str, table: GuestTable) -> Guest:
    """Return the guest that a table describes.

    Raises:
      KeyProblemError: the table does not describe a guest.
    """
    path = ("guests", name)
    written = table.model_fields_set
    locators = [key for key in _LOCATORS if key in written]
    if len(locators) != 1:
        read = f"has {' and '.join(locators)}" if locators else "has no address"
        raise KeyProblemError(path, f"{read}: write one of {', '.join(_LOCATORS)}, as in cid = 3")
    [key] = locators
    for other, companions in _WITH.items():
        if other in written and key not in companions:
            raise KeyProblemError((*path, other), _MISPLACED[other])
    _check_text(path, key, getattr(table, key))
    _check_mark(path, key, getattr(table, key))
    locator = _locator(table, key)
    return Guest(name, locator, table.to_host and not isinstance(locator, StaticLocator))


def check_name(name: str) -> None:
    """Raise `AddressError` unless ``name`` can be a guest's, or a pattern with one `STAR`."""
    if STAR not in name:
        check_guest_name(name)
        return
    try:
        check_guest_name(name.replace(STAR, "x", 1))
    except AddressError as error:
        raise AddressError(
            f"{name!r} is not a pattern of guests' names: letters, digits, -, _ and one *"
        ) from error


def _check_mark(path: KeyPath, key: str, value: object) -> None:
    """Check that a pattern has `NAME_MARK` where it makes a difference, and a name nowhere."""
    is_pattern = STAR in str(path[-1])
    is_marked = NAME_MARK in str(value)
    if is_pattern and key == "cid":
        raise KeyProblemError(
            (*path, key), "is the CID of one guest: a pattern needs another way, as in mux or file"
        )
    if is_pattern and not is_marked:
        raise KeyProblemError(
            (*path, key), f"has no {NAME_MARK}: add it, it stands for what * matches"
        )
    if is_marked and not is_pattern:
        raise KeyProblemError(
            (*path, key), f'{NAME_MARK} needs a pattern as the guest\'s name, as in "{path[-1]}-*"'
        )
    if isinstance(value, tuple) and NAME_MARK in value[0]:
        raise KeyProblemError(
            (*path, key), f"a client could choose the program: write {NAME_MARK} in an argument"
        )


def _check_text(path: KeyPath, key: str, value: object) -> None:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise KeyProblemError((*path, key), f"{value!r} is empty or contains a NUL character")
    if key == "unix" and PORT_MARK not in str(value):
        raise KeyProblemError(
            (*path, key), f"{value!r} has no {PORT_MARK}: add it, each port has its own socket"
        )
    if key in _PATHS:
        try:
            check_absolute(str(value), abstract=key in _SOCKETS)
        except AddressError as error:
            raise KeyProblemError((*path, key), str(error)) from error


def _locator(table: GuestTable, key: str) -> Locator:
    value = getattr(table, key)
    if key in _NAMED:
        return _NAMED[key](value)
    match key:
        case "cid":
            return Cid(value, table.to_host)
        case "mux":
            is_pattern = _PATTERN.search(value)
            return (MuxGlob if is_pattern else Mux)(value, table.handshake)
        case _:
            return Libvirt(value, table.uri)
