"""Addresses as frozen values: what each kind holds, checks, prints and packs.

Owns: the address kinds, which of them can listen and which can be a target, the byte
layouts of ``sockaddr_vm`` and Hyper-V's service GUIDs.  `grammar` reads the texts that
``str`` of these prints.  Does no I/O and imports nothing but `errors`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import struct
import sys
import uuid
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from vsockproxy.errors import AddressError

AF_VSOCK: Final = 40  # the same number on Linux and Darwin; socket.AF_VSOCK may be missing
CID_ANY: Final = 0xFFFFFFFF
CID_HYPERVISOR: Final = 0
CID_LOCAL: Final = 1
CID_HOST: Final = 2
PORT_ANY: Final = 0xFFFFFFFF
FLAG_TO_HOST: Final = 0x01  # VMADDR_FLAG_TO_HOST of linux/vm_sockets.h

CID_NAMES: Final = {
    "": CID_ANY,
    "-1": CID_ANY,
    "hypervisor": CID_HYPERVISOR,
    "local": CID_LOCAL,
    "host": CID_HOST,
    "any": CID_ANY,
}

_UINT32_MAX: Final = 0xFFFFFFFF
_SUN_PATH: Final = 108 if sys.platform == "linux" else 104
_LINUX_SOCKADDR: Final = struct.Struct("=HHIIB3x")
_DARWIN_SOCKADDR: Final = struct.Struct("=BBHII")
_SERVICE_GUID_TAIL: Final = "-facb-11e6-bd58-64006a7986d3"
_SERVICE_PORT_MAX: Final = 0x7FFFFFFF
GUEST_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_HOST_NAME: Final = re.compile(r"[^\s:/\[\]@,%{}]+")

KINDS: Final = ("tcp", "vsock", "unix", "vsock-mux", "fd")
"""The prefixes that say an address's kind."""

Layout = Literal["linux", "darwin"]
Handshake = Literal["ok", "none"]


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    """A TCP address; ``host`` None is the loopback, 127.0.0.1 and ::1.

    Raises `AddressError` for a host or a port that cannot be one.
    """

    host: str | None
    port: int
    kind: ClassVar[str] = "tcp"

    def __post_init__(self) -> None:
        _check_range("TCP port", self.port, 0xFFFF)
        if self.host is not None:
            _check_host(self.host)

    def __str__(self) -> str:
        if self.host is None:
            return f"tcp:{self.port}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class VsockEndpoint:
    """A vsock address: a context ID, a port, and whether it leaves by the host.

    Both numbers are unsigned 32-bit; -1 is read as ANY.  ``to_host`` sends the
    connection to the hypervisor although the CID looks like a guest's
    (``VMADDR_FLAG_TO_HOST``, for sibling VMs; Linux 5.11).

    Raises `AddressError` for a number that does not fit: CPython's own conversion
    silently wraps it modulo 2**32.
    """

    cid: int = CID_ANY
    port: int = PORT_ANY
    to_host: bool = False
    kind: ClassVar[str] = "vsock"

    def __post_init__(self) -> None:
        if self.cid == -1:
            object.__setattr__(self, "cid", CID_ANY)
        if self.port == -1:
            object.__setattr__(self, "port", PORT_ANY)
        _check_range("vsock CID", self.cid, _UINT32_MAX)
        _check_range("vsock port", self.port, _UINT32_MAX)

    def __str__(self) -> str:
        cid = "any" if self.cid == CID_ANY else self.cid
        port = "any" if self.port == PORT_ANY else self.port
        return f"vsock:{cid}:{port}{',to_host' if self.to_host else ''}"

    def bracketed(self) -> str:
        """``vsock[2:12345]``, as Ookii.VmSockets' VSockEndPoint prints it; ANY is -1 there.

        ``to_host`` is not shown; the rest is read back by `grammar.parse_listen`.
        """
        cid, port = (-1 if number == CID_ANY else number for number in (self.cid, self.port))
        return f"vsock[{cid}:{port}]"

    def to_sockaddr(self, layout: Layout | None = None) -> bytes:
        """Return the address as ``struct sockaddr_vm``: 16 bytes on Linux, 12 on Darwin.

        Numbers are in host byte order (vsock(7)).

        Raises:
          AddressError: ``to_host`` is set, and the layout is Darwin's, which has no flags.
        """
        if _layout(layout) == "linux":
            flags = FLAG_TO_HOST if self.to_host else 0
            return _LINUX_SOCKADDR.pack(AF_VSOCK, 0, self.port, self.cid, flags)
        if self.to_host:
            raise AddressError("to_host needs Linux: Darwin's sockaddr_vm has no flags")
        return _DARWIN_SOCKADDR.pack(_DARWIN_SOCKADDR.size, AF_VSOCK, 0, self.port, self.cid)

    @classmethod
    def from_sockaddr(cls, data: bytes, layout: Layout | None = None) -> VsockEndpoint:
        """Return the address in a ``struct sockaddr_vm``; a longer buffer is accepted.

        Raises:
          AddressError: the buffer is too short, or its family is not AF_VSOCK.
        """
        wanted = _LINUX_SOCKADDR if _layout(layout) == "linux" else _DARWIN_SOCKADDR
        if len(data) < wanted.size:
            raise AddressError(f"a sockaddr_vm has {wanted.size} bytes, not {len(data)}")
        if wanted is _LINUX_SOCKADDR:
            family, _, port, cid, flags = wanted.unpack_from(data)
        else:
            _, family, _, port, cid = wanted.unpack_from(data)
            flags = 0
        if family != AF_VSOCK:
            raise AddressError(f"the address family is {family}, not AF_VSOCK ({AF_VSOCK})")
        return cls(cid, port, bool(flags & FLAG_TO_HOST))


@dataclass(frozen=True, slots=True)
class UnixEndpoint:
    """A Unix stream socket; a path that starts with ``@`` is in the abstract namespace.

    Raises `AddressError` for a path that cannot be a socket's, such as one that is too long.

    Attributes:
      vmm: the socket is a VMM's, for one port of its guest.
    """

    path: str
    vmm: bool = False
    kind: ClassVar[str] = "unix"

    def __post_init__(self) -> None:
        _check_path(self.path)

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class MuxEndpoint:
    """A guest's port behind a VMM's Unix socket (Firecracker, Cloud Hypervisor, ...).

    As a target: connect to ``path`` and ask for ``port`` with the CONNECT handshake;
    ``handshake`` says whether the VMM answers OK, or nothing at all.
    As a listener: the guest's connections to host port ``port`` arrive, without a
    handshake, at `listen_path`.

    Raises `AddressError` for a port or a path that cannot be one, and for an abstract name.
    """

    path: str
    port: int
    handshake: Handshake = "ok"
    kind: ClassVar[str] = "vsock-mux"

    def __post_init__(self) -> None:
        _check_range("vsock port", self.port, _UINT32_MAX)
        _check_path(self.path)
        _check_path(self.listen_path)
        if self.path.startswith("@"):
            raise AddressError("a vsock-mux socket is a file, not an abstract name")

    @property
    def listen_path(self) -> str:
        """Return the socket that the VMM connects to for this port: ``PATH_PORT``."""
        return f"{self.path}_{self.port}"

    def __str__(self) -> str:
        option = "" if self.handshake == "ok" else f",handshake={self.handshake}"
        return f"vsock-mux:{self.path}:{self.port}{option}"


@dataclass(frozen=True, slots=True)
class FdEndpoint:
    """A listening socket passed by systemd, by its ``FileDescriptorName=``.

    Raises `AddressError` for a name that systemd does not allow.
    """

    name: str
    kind: ClassVar[str] = "fd"

    def __post_init__(self) -> None:
        # sd_listen_fds_with_names(3): ASCII, no colon, no control character, at most 255.
        if not re.fullmatch(r"[!-9;-~]{1,255}", self.name):
            raise AddressError(f"{self.name!r} is not a FileDescriptorName=")

    def __str__(self) -> str:
        return f"fd:{self.name}"


@dataclass(frozen=True, slots=True)
class GuestEndpoint:
    """A port of a guest that the configuration names; its address is looked up at each dial.

    ``over`` is the kind of its address: AF_VSOCK's, or a VMM's socket's.  The written form does
    not contain it.

    Raises `AddressError` for a name or a port that cannot be one.
    """

    guest: str
    port: int
    over: Literal["vsock", "vsock-mux"] = "vsock"
    kind: ClassVar[str] = "guest"

    def __post_init__(self) -> None:
        check_guest_name(self.guest)
        _check_range("vsock port", self.port, _UINT32_MAX)

    def __str__(self) -> str:
        return f"{self.guest}:{self.port}"


ListenEndpoint = TcpEndpoint | VsockEndpoint | UnixEndpoint | MuxEndpoint | FdEndpoint
Dialable = TcpEndpoint | VsockEndpoint | UnixEndpoint | MuxEndpoint
"""A target whose guest, if it had one, has been resolved."""

Target = Dialable | GuestEndpoint
"""A route's target: `GuestEndpoint` only where an address must be looked up at each dial."""


def is_behind_a_mux(target: Target) -> bool:
    """Return whether a target is behind a vsock-mux, as far as the configuration says."""
    return isinstance(target, MuxEndpoint) or (
        isinstance(target, GuestEndpoint) and target.over == "vsock-mux"
    )


def ends_with_vmm(target: Target) -> bool:
    """Return whether connections to a target end when a VMM's process does."""
    return is_behind_a_mux(target) or (isinstance(target, UnixEndpoint) and target.vmm)


def check_guest_name(name: str) -> None:
    """Raise `AddressError` unless ``name`` can be told from a CID, a host and a prefix."""
    if not GUEST_NAME.fullmatch(name):
        raise AddressError(
            f"{name!r} is not a guest's name: letters, digits, - and _, no digit or - in front"
        )
    if name in CID_NAMES or name in KINDS:
        raise AddressError(
            f"{name!r} is a word of the address grammar: give the guest another name"
        )


def check_absolute(path: str, *, abstract: bool = False) -> None:
    """Raise `AddressError` unless a path is absolute.

    ``abstract``: it may also be a socket's name in the abstract namespace.
    """
    if path.startswith("/") or (abstract and path.startswith("@")):
        return
    if path.startswith("@"):
        raise AddressError(f"{path!r} is an abstract socket, and a file is needed: write its path")
    raise AddressError(
        f"{path!r} is relative, and a daemon's working directory is /: write the whole path"
    )


def check_path(endpoint: ListenEndpoint | Target) -> None:
    """Raise `AddressError` if an endpoint is a socket's file with a relative path."""
    if isinstance(endpoint, UnixEndpoint | MuxEndpoint):
        check_absolute(endpoint.path, abstract=isinstance(endpoint, UnixEndpoint))


def port_to_service_guid(port: int) -> uuid.UUID:
    """Return the Hyper-V service GUID under which a Linux guest's vsock port appears.

    ``<port as 8 hex digits>-facb-11e6-bd58-64006a7986d3``, ports to 0x7FFFFFFF
    (net/vmw_vsock/hyperv_transport.c).

    Raises:
      AddressError: the port is out of that range.
    """
    _check_range("Hyper-V vsock port", port, _SERVICE_PORT_MAX)
    return uuid.UUID(f"{port:08x}{_SERVICE_GUID_TAIL}")


def service_guid_to_port(guid: uuid.UUID) -> int:
    """Return the vsock port of a Hyper-V service GUID; the inverse of `port_to_service_guid`.

    Raises:
      AddressError: the GUID is not that of a vsock port.
    """
    text = str(guid)
    if not text.endswith(_SERVICE_GUID_TAIL):
        raise AddressError(
            f"{text} is not a vsock service: it does not end in {_SERVICE_GUID_TAIL}"
        )
    port = int(text[:8], 16)
    _check_range("Hyper-V vsock port", port, _SERVICE_PORT_MAX)
    return port


def _check_range(what: str, value: int, largest: int) -> None:
    if not 0 <= value <= largest:
        raise AddressError(f"{value} is not a {what}: 0 to {largest}")


def _check_host(host: str) -> None:
    if host == "*":
        raise AddressError("'*' is not a host: for every address write 0.0.0.0 or [::]")
    if ":" in host or re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise AddressError(f"{host!r} is not an IP address") from error
    elif not _HOST_NAME.fullmatch(host):
        raise AddressError(f"{host!r} is not a host name")


def _check_path(path: str) -> None:
    try:
        size = len(os.fsencode(path))
    except UnicodeEncodeError as error:  # half a surrogate pair cannot be in a file name
        raise AddressError(f"{path!r} is not a socket's path") from error
    # An abstract name needs no final NUL, but its @ stands for the leading one.
    if path in ("", "@") or "\0" in path:
        raise AddressError(f"{path!r} is not a socket's path")
    if size >= _SUN_PATH:
        raise AddressError(
            f"{path!r} has {size} bytes: a socket's path has at most {_SUN_PATH - 1}"
        )


def _layout(layout: Layout | None) -> Layout:
    return layout or ("darwin" if sys.platform == "darwin" else "linux")
