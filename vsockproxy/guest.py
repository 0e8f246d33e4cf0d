"""The ways to a guest, as values: what ``[guests]`` says about one VM.

Owns: one type for each way.  The static ways (`Cid`, `Mux`, `UnixSockets`) have an address
for every port; the others say where to ask for one of those, at each dial.  Asks nothing
itself: `guests` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vsockproxy.endpoint import Dialable, Handshake, MuxEndpoint, UnixEndpoint, VsockEndpoint

PORT_MARK: Final = "{port}"
LIBVIRT_URI: Final = "qemu:///system"


@dataclass(frozen=True, slots=True)
class Cid:
    """Over AF_VSOCK; ``to_host`` as in `VsockEndpoint`."""

    cid: int
    to_host: bool = False

    def address(self, port: int) -> Dialable:
        """A port of the guest."""
        return VsockEndpoint(self.cid, port, self.to_host)


@dataclass(frozen=True, slots=True)
class Mux:
    """Over a VMM's Unix socket, which asks for a CONNECT line; see `MuxEndpoint`."""

    path: str
    handshake: Handshake = "ok"

    def address(self, port: int) -> Dialable:
        """A port of the guest; raises `AddressError` where the path is no socket's."""
        return MuxEndpoint(self.path, port, self.handshake)


@dataclass(frozen=True, slots=True)
class UnixSockets:
    """Over one Unix socket for each port; `PORT_MARK` in ``path`` stands for the port."""

    path: str

    def address(self, port: int) -> Dialable:
        """A port of the guest; raises `AddressError` where the path is no socket's."""
        return UnixEndpoint(self.path.replace(PORT_MARK, str(port)))


@dataclass(frozen=True, slots=True)
class MuxGlob:
    """The one VMM's socket whose path matches ``pattern``, as a shell would (glob(7))."""

    pattern: str
    handshake: Handshake = "ok"


@dataclass(frozen=True, slots=True)
class Libvirt:
    """The CID in the live description of a libvirt domain."""

    domain: str
    uri: str = LIBVIRT_URI


@dataclass(frozen=True, slots=True)
class Qmp:
    """The CID of the vhost-vsock device that QEMU's monitor at ``path`` speaks of."""

    path: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The CID under which systemd-machined has registered a machine."""

    name: str


@dataclass(frozen=True, slots=True)
class Incus:
    """The CID of an Incus or LXD virtual machine."""

    name: str


@dataclass(frozen=True, slots=True)
class CidFile:
    """The CID that stands in a file, in decimal digits."""

    path: str


@dataclass(frozen=True, slots=True)
class Command:
    """The CID that a program prints; ``argv`` goes through no shell."""

    argv: tuple[str, ...]


StaticWay = Cid | Mux | UnixSockets
"""A way that has an address for every port."""

DynamicWay = MuxGlob | Libvirt | Qmp | Machine | Incus | CidFile | Command
"""A way that is found out at each dial."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM that the configuration names; ``to_host`` is for a CID that is found out."""

    name: str
    way: StaticWay | DynamicWay
    to_host: bool = False
