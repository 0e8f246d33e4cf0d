r"""The PROXY protocol, versions 1 and 2, without I/O: building a header, and reading one.

Owns: the bytes of a header, their bounds, and `HeaderReader`, which takes one header out of
a stream and not a byte more.  Knows nothing of sockets or time: `preamble` does.

The specification is HAProxy's doc/proxy-protocol.txt.  A header without an address that it has a
family for is UNKNOWN in version 1, and the command LOCAL in version 2: the specification has every
receiver accept that, while HAProxy 2.6 and others close a connection with PROXY and UNSPEC.

* A vsock client is such a one.  Version 2 adds a TLV of type `TLV_VSOCK` whose value is the
  client's CID and port, 32 bits each in network byte order.
* Two Unix sockets' paths are AF_UNIX in version 2 and UNKNOWN in version 1.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Literal, NamedTuple

TLV_VSOCK: Final = 0xE5
"""A type of 0xE0 to 0xEF, the range for applications."""

HEADER_MAX: Final = 4096
"""The longest accepted header; without certificates in its TLVs it has at most 232 bytes."""

LINE_MAX: Final = 107
"""The longest line of version 1, CRLF included."""

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_WORD: Final = b"PROXY "
_FIXED: Final = struct.Struct("!12sBBH")
_TRANSPORT: Final = 13  # the offset of the byte with the family and the protocol
_TLV: Final = struct.Struct("!BH")
_VSOCK: Final = struct.Struct("!II")
_UNIX_PATH: Final = 108
_LOCAL: Final = 0x20  # version 2 in the upper half
_PROXY: Final = 0x21
_UNSPEC: Final = 0x00
_STREAMS: Final = {4: 0x11, 6: 0x21}
_UNIX_STREAM: Final = 0x31
_FAMILIES: Final = 3
_PROTOCOLS: Final = 2
_ADDRESSES: Final = {0x1: 12, 0x2: 36, 0x3: 216}  # bytes, by the family's half of the byte
_NUMBER: Final = rb"(0|[1-9][0-9]{0,4})"
_LINE: Final = re.compile(rb"PROXY TCP([46]) ([!-~]+) ([!-~]+) %b %b\r\n" % (_NUMBER, _NUMBER))
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")

Version = Literal["v1", "v2"]


class InetAddress(NamedTuple):
    """The address of a TCP client."""

    ip: IPv4Address | IPv6Address
    port: int


class VsockAddress(NamedTuple):
    """The address of a vsock client."""

    cid: int
    port: int


class UnixAddress(NamedTuple):
    """A Unix socket's path in the kernel's form: empty for none, NUL first for an abstract one."""

    path: bytes


Source = InetAddress | VsockAddress | UnixAddress


class Header(NamedTuple):
    """The ends of the client's connection; without ``source``, the sender itself is the client."""

    source: Source | None = None
    destination: Source | None = None


class MalformedHeaderError(ValueError):
    """The peer sent no valid header; ``data`` has its first bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data[:64]
        super().__init__(f"{self.data!r} is not a PROXY header")


# ---- building ----


def build_header(version: Version, header: Header) -> bytes:
    """Return a header's bytes; they must be the first of the connection."""
    source, destination = _alike(header)
    if version == "v1":
        return _build_line(source, destination)
    command, transport, body = _build_block(source, destination)
    return _FIXED.pack(SIGNATURE, command, transport, len(body)) + body


def _alike(header: Header) -> tuple[Source | None, Source | None]:
    """Return both addresses in one version of IP: a single IPv4 address becomes IPv6."""
    source, destination = header
    if (
        isinstance(source, InetAddress)
        and isinstance(destination, InetAddress)
        and source.ip.version != destination.ip.version
    ):
        return _widened(source), _widened(destination)
    return source, destination


def _widened(address: InetAddress) -> InetAddress:
    if isinstance(address.ip, IPv6Address):
        return address
    return InetAddress(IPv6Address(b"\0" * 10 + b"\xff\xff" + address.ip.packed), address.port)


def _build_line(source: Source | None, destination: Source | None) -> bytes:
    if not isinstance(source, InetAddress) or not isinstance(destination, InetAddress):
        return b"PROXY UNKNOWN\r\n"
    version = source.ip.version
    ends = f"{source.ip} {destination.ip} {source.port} {destination.port}"
    return f"PROXY TCP{version} {ends}\r\n".encode("ascii")


def _build_block(source: Source | None, destination: Source | None) -> tuple[int, int, bytes]:
    """Return the bytes of the command and the transport, and those after the fixed part."""
    if isinstance(source, InetAddress) and isinstance(destination, InetAddress):
        ips = source.ip.packed + destination.ip.packed
        ports = struct.pack("!HH", source.port, destination.port)
        return _PROXY, _STREAMS[source.ip.version], ips + ports
    if isinstance(source, UnixAddress):
        path = destination.path if isinstance(destination, UnixAddress) else b""
        return _PROXY, _UNIX_STREAM, _unix_path(source.path) + _unix_path(path)
    if isinstance(source, VsockAddress):
        return _LOCAL, _UNSPEC, _TLV.pack(TLV_VSOCK, _VSOCK.size) + _VSOCK.pack(*source)
    return _LOCAL, _UNSPEC, b""


def _unix_path(path: bytes) -> bytes:
    return path[:_UNIX_PATH].ljust(_UNIX_PATH, b"\0")


# ---- reading ----


class HeaderReader:
    """Collect one header from pieces of any size.

    Peek at up to `room` bytes, `feed` them, then consume as many as it says: the bytes
    behind the header belong to the stream.
    """

    __slots__ = ("_data", "_size")

    def __init__(self) -> None:
        self._data = b""
        self._size: int | None = None  # of the complete header, once it is known

    @property
    def room(self) -> int:
        """Return how many more bytes the header may have; 0 once it is complete."""
        return (self._largest() if self._size is None else self._size) - len(self._data)

    @property
    def done(self) -> bool:
        """Whether the header is complete."""
        return self._size == len(self._data)

    @property
    def data(self) -> bytes:
        """Return the header's bytes read so far."""
        return self._data

    def feed(self, data: bytes) -> int:
        """Take the header's part of ``data``; return its number of bytes.

        Raises `MalformedHeaderError` as soon as what has come cannot begin a header.
        """
        before = len(self._data)
        both = self._data + data[: self.room]
        self._size = _size_of(both) if self._size is None else self._size
        self._data = both if self._size is None else both[: self._size]
        return len(self._data) - before

    def _largest(self) -> int:
        """Return how many bytes may be read while the size is unknown."""
        return LINE_MAX if self._data.startswith(_WORD[:1]) or not self._data else _FIXED.size


def _size_of(data: bytes) -> int | None:
    """Return the size of a header from its first bytes; None while it is unknown."""
    if data.startswith(_WORD) or _WORD.startswith(data):
        end = data.find(b"\r\n")
        if end < 0 and (len(data) >= LINE_MAX or b"\n" in data):
            raise MalformedHeaderError(data)
        return None if end < 0 else end + 2
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        raise MalformedHeaderError(data)
    if len(data) < _FIXED.size:
        return None
    size = _FIXED.size + int.from_bytes(data[14:16], "big")
    if size > HEADER_MAX:
        raise MalformedHeaderError(data)
    return size


def parse_header(data: bytes) -> Header:
    """Return the addresses of a complete header; raise `MalformedHeaderError`."""
    return _parse_block(data) if data.startswith(SIGNATURE) else _parse_line(data)


def _parse_line(line: bytes) -> Header:
    if len(line) <= LINE_MAX and _UNKNOWN.fullmatch(line):
        return Header()
    match = _LINE.fullmatch(line)
    if match is None or len(line) > LINE_MAX:
        raise MalformedHeaderError(line)
    read = IPv4Address if match[1] == b"4" else IPv6Address
    ports = int(match[4]), int(match[5])
    try:
        ips = read(match[2].decode()), read(match[3].decode())
    except ValueError:
        raise MalformedHeaderError(line) from None
    if max(ports) > 0xFFFF or b"%" in line:  # a scope has no meaning on another machine
        raise MalformedHeaderError(line)
    return Header(InetAddress(ips[0], ports[0]), InetAddress(ips[1], ports[1]))


def _parse_block(data: bytes) -> Header:
    if len(data) < _FIXED.size:
        raise MalformedHeaderError(data)
    _, command, transport, size = _FIXED.unpack_from(data)
    family, protocol = transport >> 4, transport & 0xF
    body = data[_FIXED.size :]
    if command not in (_LOCAL, _PROXY) or len(body) != size:
        raise MalformedHeaderError(data)
    if command == _LOCAL:
        return _parse_local(data)
    if family > _FAMILIES or protocol > _PROTOCOLS or size < _ADDRESSES.get(family, 0):
        raise MalformedHeaderError(data)
    tlvs = dict(_tlvs(data, body[_ADDRESSES.get(family, 0) :]))
    return _guest(tlvs) if transport == _UNSPEC else _addresses(transport, body)


def _parse_local(data: bytes) -> Header:
    """Return the guest in a LOCAL header; its other fields must be ignored, valid or not."""
    if data[_TRANSPORT] != _UNSPEC:
        return Header()
    with suppress(MalformedHeaderError):
        return _guest(dict(_tlvs(data, data[_FIXED.size :])))
    return Header()


def _guest(tlvs: Mapping[int, bytes]) -> Header:
    value = tlvs.get(TLV_VSOCK, b"")
    return Header(VsockAddress(*_VSOCK.unpack(value))) if len(value) == _VSOCK.size else Header()


def _addresses(transport: int, body: bytes) -> Header:
    """Return the addresses of a stream; ignore datagrams and unknown families."""
    if transport == _UNIX_STREAM:
        paths = body[:_UNIX_PATH], body[_UNIX_PATH : 2 * _UNIX_PATH]
        return Header(*(UnixAddress(_path(path)) for path in paths))
    if transport not in _STREAMS.values():
        return Header()
    width = 4 if transport == _STREAMS[4] else 16
    ips = (ipaddress.ip_address(body[at : at + width]) for at in (0, width))
    ports = struct.unpack_from("!HH", body, 2 * width)
    return Header(*(InetAddress(ip, port) for ip, port in zip(ips, ports, strict=True)))


def _path(field: bytes) -> bytes:
    """Return a field's path: up to the first NUL, or for an abstract name without trailing NULs."""
    return field.rstrip(b"\0") if field.startswith(b"\0") else field.partition(b"\0")[0]


def _tlvs(data: bytes, rest: bytes) -> Iterator[tuple[int, bytes]]:
    while rest:
        if len(rest) < _TLV.size:
            raise MalformedHeaderError(data)
        kind, size = _TLV.unpack_from(rest)
        value, rest = rest[_TLV.size : _TLV.size + size], rest[_TLV.size + size :]
        if len(value) != size:
            raise MalformedHeaderError(data)
        yield kind, value
