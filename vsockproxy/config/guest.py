"""How guests of ``[guests]`` are reached, as values.

Owns: one type for each key that reaches a guest.  The static ones (`Cid`, `Mux`, `UnixSockets`)
have an address for every port; the others are looked up at each dial, by `guests`.  ``str``
returns the keys of the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from vsockproxy.address.endpoint import (
    Dialable,
    Handshake,
    MuxEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)

PORT_MARK: Final = "{port}"
LIBVIRT_URI: Final = "qemu:///system"


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
        return UnixEndpoint(self.path.replace(PORT_MARK, str(port)))

    def __str__(self) -> str:
        return _written(unix=self.path)


@dataclass(frozen=True, slots=True)
class MuxGlob:
    """The one VMM's socket whose path matches ``pattern``, as a shell would (glob(7))."""

    pattern: str
    handshake: Handshake = "ok"

    def __str__(self) -> str:
        return _written(
            mux=self.pattern, handshake=None if self.handshake == "ok" else self.handshake
        )


@dataclass(frozen=True, slots=True)
class Libvirt:
    """The CID in the live description of a libvirt domain."""

    domain: str
    uri: str = LIBVIRT_URI

    def __str__(self) -> str:
        return _written(libvirt=self.domain, uri=None if self.uri == LIBVIRT_URI else self.uri)


@dataclass(frozen=True, slots=True)
class Qmp:
    """The CID of the vhost-vsock device that QEMU's monitor at ``path`` reports."""

    path: str

    def __str__(self) -> str:
        return _written(qmp=self.path)


@dataclass(frozen=True, slots=True)
class Machine:
    """The CID that systemd-machined has registered for a machine."""

    name: str

    def __str__(self) -> str:
        return _written(machine=self.name)


@dataclass(frozen=True, slots=True)
class Incus:
    """The CID of an Incus or LXD virtual machine."""

    name: str

    def __str__(self) -> str:
        return _written(incus=self.name)


@dataclass(frozen=True, slots=True)
class CidFile:
    """The CID in a file, in decimal digits."""

    path: str

    def __str__(self) -> str:
        return _written(file=self.path)


@dataclass(frozen=True, slots=True)
class Command:
    """The CID that a program prints; no shell interprets ``argv``."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        return _written(command=self.argv)


StaticWay = Cid | Mux | UnixSockets
"""Has an address for every port."""

DynamicWay = MuxGlob | Libvirt | Qmp | Machine | Incus | CidFile | Command
"""Is looked up at each dial."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM that the configuration names; ``to_host`` applies to a CID that is looked up."""

    name: str
    way: StaticWay | DynamicWay
    to_host: bool = False


def _written(**keys: object) -> str:
    """Return the keys of a TOML table: JSON's texts, numbers and lists are valid TOML."""
    return ", ".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in keys.items()
        if value is not None
    )
