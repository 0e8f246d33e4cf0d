"""How guests of ``[guests]`` are reached, as values.

Owns: one type for each key that reaches a guest.  The static ones (`Cid`, `Mux`, `UnixSockets`)
have an address for every port; the others are looked up at each dial, by `guests`.  ``str``
returns the keys of the file.  `KnownGuests` finds a guest by its name or by a pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Literal

from vsockproxy.address.endpoint import (
    Dialable,
    Handshake,
    MuxEndpoint,
    UnixEndpoint,
    VsockEndpoint,
    check_guest_name,
)
from vsockproxy.errors import AddressError

PORT_MARK: Final = "{port}"
NAME_MARK: Final = "{name}"
STAR: Final = "*"

Over = Literal["vsock", "vsock-mux"]
"""The kind of a guest's address: AF_VSOCK's, or a VMM's socket's."""
LIBVIRT_URI: Final = "qemu:///system"

# No - in front: as an argument of a command it would be an option.
_MATCHED: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Cid:
    """Over AF_VSOCK; ``to_host`` as in `VsockEndpoint`."""

    cid: int
    to_host: bool = False

    def address(self, port: int) -> Dialable:
        """Return the address of a port of the guest."""
        return VsockEndpoint(self.cid, port, self.to_host)

    def __str__(self) -> str:
        return _written(cid=self.cid, to_host=self.to_host or None)


@dataclass(frozen=True, slots=True)
class Mux:
    """Over a VMM's Unix socket, which expects a CONNECT line; see `MuxEndpoint`."""

    path: str
    handshake: Handshake = "ok"

    def address(self, port: int) -> Dialable:
        """Return the address of a port of the guest.

        Raises:
          AddressError: the path is too long for a socket.
        """
        return MuxEndpoint(self.path, port, self.handshake)

    def __str__(self) -> str:
        return _written(mux=self.path, handshake=None if self.handshake == "ok" else self.handshake)


@dataclass(frozen=True, slots=True)
class UnixSockets:
    """Over one Unix socket per port; `PORT_MARK` in ``path`` is replaced by the port."""

    path: str

    def address(self, port: int) -> Dialable:
        """Return the address of a port of the guest.

        Raises:
          AddressError: the path is too long for a socket.
        """
        return UnixEndpoint(self.path.replace(PORT_MARK, str(port)), vmm=True)

    def __str__(self) -> str:
        return _written(unix=self.path)


@dataclass(frozen=True, slots=True)
class MuxGlob:
    """The one VMM's socket whose path matches ``pattern``, as a shell would (glob(7))."""

    pattern: str
    handshake: Handshake = "ok"
    over: ClassVar[Over] = "vsock-mux"

    def __str__(self) -> str:
        return _written(
            mux=self.pattern, handshake=None if self.handshake == "ok" else self.handshake
        )


@dataclass(frozen=True, slots=True)
class Libvirt:
    """The CID in the live description of a libvirt domain."""

    domain: str
    uri: str = LIBVIRT_URI
    over: ClassVar[Over] = "vsock"

    def __str__(self) -> str:
        return _written(libvirt=self.domain, uri=None if self.uri == LIBVIRT_URI else self.uri)


@dataclass(frozen=True, slots=True)
class Qmp:
    """The CID of the vhost-vsock device that QEMU's monitor at ``path`` reports."""

    path: str
    over: ClassVar[Over] = "vsock"

    def __str__(self) -> str:
        return _written(qmp=self.path)


@dataclass(frozen=True, slots=True)
class Machine:
    """The CID that systemd-machined has registered for a machine."""

    name: str
    over: ClassVar[Over] = "vsock"

    def __str__(self) -> str:
        return _written(machine=self.name)


@dataclass(frozen=True, slots=True)
class Incus:
    """The CID of an Incus or LXD virtual machine."""

    name: str
    over: ClassVar[Over] = "vsock"

    def __str__(self) -> str:
        return _written(incus=self.name)


@dataclass(frozen=True, slots=True)
class CidFile:
    """The CID in a file, in decimal digits."""

    path: str
    over: ClassVar[Over] = "vsock"

    def __str__(self) -> str:
        return _written(file=self.path)


@dataclass(frozen=True, slots=True)
class Command:
    """The CID that a program prints; no shell interprets ``argv``."""

    argv: tuple[str, ...]
    over: ClassVar[Over] = "vsock"

    def __str__(self) -> str:
        return _written(command=self.argv)


StaticLocator = Cid | Mux | UnixSockets
"""Has an address for every port."""

DynamicLocator = MuxGlob | Libvirt | Qmp | Machine | Incus | CidFile | Command
"""Is looked up at each dial."""

Locator = StaticLocator | DynamicLocator


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM that the configuration names; ``to_host`` applies to a CID that is looked up.

    With `STAR` in ``name`` it stands for every guest of such a name; `NAME_MARK` in ``locator`` is
    replaced by what the star matches.
    """

    name: str
    locator: Locator
    to_host: bool = False

    @property
    def is_pattern(self) -> bool:
        """Return whether it stands for many guests."""
        return STAR in self.name

    def named(self, name: str) -> Guest | None:
        """Return the guest of a name that the pattern matches; None if it does not match."""
        matched = between(self.name, STAR, name)
        if matched is None or not _MATCHED.fullmatch(matched):
            return None
        return replace(self, name=name, locator=_with_name(self.locator, matched))


class KnownGuests:
    """The guests of ``[guests]``, to be found by name: a fixed one first, then by a pattern."""

    def __init__(self, guests: Iterable[Guest] = ()) -> None:
        self.fixed: dict[str, Guest] = {}
        self.patterns: list[Guest] = []
        for guest in guests:
            self.add(guest)

    def add(self, guest: Guest) -> None:
        """Add a guest behind the others."""
        if guest.is_pattern:
            self.patterns.append(guest)
        else:
            self.fixed[guest.name] = guest

    def find(self, name: str) -> Guest | None:
        """Return a guest by a name, which may be any text; None if there is none."""
        if name in self.fixed:
            return self.fixed[name]
        try:
            check_guest_name(name)
        except AddressError:
            return None
        return next(filter(None, (pattern.named(name) for pattern in self.patterns)), None)


def between(pattern: str, mark: str, text: str) -> str | None:
    """Return the part of a text that stands for ``mark`` in a pattern; None without a match."""
    before, _, after = pattern.partition(mark)
    fits = len(text) > len(before) + len(after)
    if not (fits and text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]


def _with_name(locator: Locator, name: str) -> Locator:
    values: dict[str, Any] = {one.name: getattr(locator, one.name) for one in fields(locator)}
    return replace(locator, **{key: _with_mark(value, name) for key, value in values.items()})


def _with_mark(value: Any, name: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_with_mark(item, name) for item in value)
    return value.replace(NAME_MARK, name) if isinstance(value, str) else value


def _written(**keys: object) -> str:
    """Return the keys of a TOML table: JSON's texts, numbers and lists are valid TOML."""
    return ", ".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in keys.items()
        if value is not None
    )
