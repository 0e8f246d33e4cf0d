"""The address grammar: text to endpoint, as `str` of an endpoint is the way back.

| written | kind | listen | target |
|---|---|---|---|
| ``tcp:HOST:PORT``, ``HOST:PORT``, ``tcp:PORT`` | `TcpEndpoint` | yes | yes |
| ``PORT`` | `TcpEndpoint` | yes | - |
| ``vsock:CID:PORT``, ``vsock::PORT``, ``vsock[CID:PORT]`` | `VsockEndpoint` | yes | yes |
| ``CID:PORT`` as a target | `VsockEndpoint` | - | yes |
| ``GUEST:PORT`` as a target | `GuestEndpoint` | - | yes |
| ``unix:PATH``, ``unix:@NAME`` | `UnixEndpoint` | yes | yes |
| ``vsock-mux:PATH:PORT`` | `MuxEndpoint` | yes | yes |
| ``fd:NAME`` | `FdEndpoint` | yes | - |

``parse_listen(str(x)) == x`` for everything that can listen, and the same for targets.
The notation is systemd's where systemd has one (systemd.socket(5), ``ListenStream=``).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Final

from vsockproxy.address.endpoint import (
    CID_ANY,
    CID_NAMES,
    GUEST_NAME,
    KINDS,
    PORT_ANY,
    FdEndpoint,
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.errors import AddressError

_RANGE: Final = re.compile(
    r"(?P<head>(?:.*:)?)(?P<first>[0-9]{1,10})-(?P<last>[0-9]{1,10})", re.DOTALL
)
_PORTS: Final = re.compile(r"[0-9]+(-[0-9]*)?")
_RANGE_EXAMPLE: Final = "write a range as 8000-8010"
_WORD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]*(%.*)?")


def parse_listen(text: str) -> ListenEndpoint:
    """Return the address in ``text``, as that of a listener.

    Raises:
      AddressError: with the text and what is expected.
    """
    endpoint = _parse_prefixed(text) or _parse_bare(_parse_bare_tcp, text)
    if isinstance(endpoint, GuestEndpoint):
        raise AddressError(f"{text!r} cannot listen")
    if isinstance(endpoint, MuxEndpoint) and endpoint.handshake == "none":
        raise AddressError(f"{text!r} cannot listen: a guest's connection has no handshake anyway")
    return endpoint


def parse_target(text: str) -> Target:
    """Return the address in ``text``, as that of a target.

    Without a prefix, ``X:PORT`` is a vsock CID when X is a number or a CID's name, TCP
    when X is an IP address or has a dot, and else a guest of ``[guests]``.

    Raises:
      AddressError: with the text and what is expected.
    """
    endpoint = _parse_prefixed(text) or _parse_bare(_parse_bare_target, text)
    if isinstance(endpoint, FdEndpoint):
        raise AddressError(f"{text!r} cannot be a target: an inherited socket only listens")
    if isinstance(endpoint, VsockEndpoint) and endpoint.cid == CID_ANY:
        raise AddressError(f"{text!r} cannot be a target: name one CID, not any")
    if getattr(endpoint, "port", None) == PORT_ANY:
        raise AddressError(f"{text!r} cannot be a target: name one port, not any")
    if isinstance(endpoint, TcpEndpoint) and endpoint.port == 0:
        raise AddressError(f"{text!r} cannot be a target: TCP ports start at 1")
    if isinstance(endpoint, TcpEndpoint) and _is_every_address(endpoint.host):
        own = "[::1]" if "[" in text else "127.0.0.1"
        raise AddressError(
            f"{text!r} cannot be a target: it is every address of a listener; for this machine"
            f" write {own}"
        )
    return endpoint


def _is_every_address(host: str | None) -> bool:
    """Return whether a host is 0.0.0.0 or [::], which connect(2) takes for the loopback."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_unspecified


def expand_ports(text: str) -> tuple[str, ...]:
    """Return one text for each port of a text that ends in a port range, else the text.

    ``tcp:8000-8002`` is three texts; the end of a path is not a range.

    Raises:
      AddressError: the range is reversed or has over 65536 ports.
    """
    if text.startswith(("unix:", "fd:")):
        return (text,)
    match = _RANGE.fullmatch(text)
    if match is None:
        return (text,)
    first, last = int(match["first"]), int(match["last"])
    if last < first:
        raise AddressError(f"the port range of {text!r} is reversed: write the lower port first")
    if last - first > 0xFFFF:
        raise AddressError(f"the port range of {text!r} has more than 65536 ports")
    return tuple(f"{match['head']}{port}" for port in range(first, last + 1))


_Endpoint = TcpEndpoint | VsockEndpoint | UnixEndpoint | MuxEndpoint | FdEndpoint | GuestEndpoint


def _parse_prefixed(text: str) -> _Endpoint | None:
    """Return the endpoint of a text with a prefix; None without a prefix."""
    if text.startswith("vsock[") and text.endswith("]"):  # Ookii.VmSockets' ToString
        return _parse_vsock(text, text[len("vsock[") : -1])
    prefix, colon, rest = text.partition(":")
    reader = _PREFIXES.get(prefix) if colon else None
    return reader(text, rest) if reader else None


def _parse_tcp(text: str, rest: str) -> TcpEndpoint:
    if rest.isdecimal():
        return TcpEndpoint(None, _number(text, rest, "TCP port"))
    host, colon, port = rest.rpartition(":")
    if not colon and _PORTS.fullmatch(rest):
        raise AddressError(f"{text!r} is not a TCP port; {_RANGE_EXAMPLE}")
    if not colon:
        raise AddressError(f"{text!r} has no port: write HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise AddressError(f"{text!r}: only an IPv6 address can be in brackets")
    elif ":" in host and not _IPV6.fullmatch(host):
        raise AddressError(f"{text!r}: {host!r} is not a host: expected tcp:HOST:PORT")
    elif ":" in host:
        raise AddressError(f"{text!r}: put an IPv6 address in brackets: [{host}]:{port}")
    return TcpEndpoint(host, _number(text, port, "TCP port"))


def _parse_vsock(text: str, rest: str) -> VsockEndpoint:
    rest, comma, option = rest.partition(",")
    if comma and option != "to_host":
        raise AddressError(f"{text!r}: the only option of a vsock address is to_host")
    cid, colon, port = rest.partition(":")
    if not colon:
        raise AddressError(f"{text!r} has no port: write vsock:CID:PORT (vsock::PORT: any CID)")
    return VsockEndpoint(
        CID_NAMES[cid] if cid in CID_NAMES else _number(text, cid, "vsock CID"),
        PORT_ANY if port in ("any", "-1") else _number(text, port, "vsock port"),
        bool(comma),
    )


def _parse_mux(text: str, rest: str) -> MuxEndpoint:
    path, colon, rest = rest.rpartition(":")
    if not colon:
        raise AddressError(f"{text!r} has no port: write vsock-mux:PATH:PORT")
    port, comma, option = rest.partition(",")
    if comma and option != "handshake=none":
        raise AddressError(f"{text!r}: the only option of a vsock-mux is handshake=none")
    return MuxEndpoint(path, _number(text, port, "vsock port"), "none" if comma else "ok")


_PREFIXES: Final[dict[str, Callable[[str, str], _Endpoint]]] = {
    "tcp": _parse_tcp,
    "vsock": _parse_vsock,
    "vsock-mux": _parse_mux,
    "unix": lambda _, rest: UnixEndpoint(rest),
    "fd": lambda _, rest: FdEndpoint(rest),
}


def _parse_bare(parse: Callable[[str], _Endpoint], text: str) -> _Endpoint:
    """Return ``parse`` of a text without a prefix; a misspelt prefix is an error."""
    try:
        return parse(text)
    except AddressError:
        if "://" in text:
            raise AddressError(f"{text!r} is a URL: write tcp:HOST:PORT") from None
        kind = text.partition(":")[0]
        meant = _nearest_kind(kind) if kind != text else None
        if meant is None:
            raise
        sentence = f"{text!r}: {kind!r} is not a kind of address: did you mean {meant}:?"
        raise AddressError(sentence) from None


def _nearest_kind(kind: str) -> str | None:
    """Return the kind of address closest to a word; None for a possible IPv6 address."""
    from difflib import get_close_matches  # noqa: PLC0415 - for errors only

    if not _WORD.fullmatch(kind) or _IPV6.fullmatch(kind):
        return None
    known = {**dict(zip(KINDS, KINDS, strict=True)), "mux": "vsock-mux"}
    close = get_close_matches(kind.lower(), known, n=1)
    return known[close[0]] if close else None


def _parse_bare_tcp(text: str) -> TcpEndpoint:
    """Return the endpoint of ``PORT`` or ``HOST:PORT``."""
    host, colon, _ = text.rpartition(":")
    if colon and host.isdecimal():
        raise AddressError(
            f"{text!r}: {host} is not a host name; for a vsock listener write vsock:{text}"
        )
    return _parse_tcp(text, text)


def _parse_bare_target(text: str) -> Target:
    head, colon, port = text.rpartition(":")
    if text.startswith(("/", "@")):
        raise AddressError(
            f"{text!r} is not a target: write unix:PATH, or vsock-mux:PATH:PORT for a VMM's socket"
        )
    if not colon:
        if _PORTS.fullmatch(text):
            number = _number(text, text, "TCP port")
            raise AddressError(
                f"{text!r} is not a target: for a TCP port of this machine write tcp:{number}, for"
                f" a port of CID {number} write {number}:PORT"
            )
        raise AddressError(
            f"{text!r} is not a target: expected CID:PORT, GUEST:PORT or tcp:HOST:PORT"
        )
    if head.isdecimal() or head in CID_NAMES:
        return _parse_vsock(text, text)
    if "." in head or head.startswith("["):
        return _parse_tcp(text, text)
    if not GUEST_NAME.fullmatch(head):
        raise AddressError(
            f"{text!r} is not a target: {head!r} is neither a CID nor a guest's name;"
            " for a TCP target write tcp:HOST:PORT"
        )
    return GuestEndpoint(head, _number(text, port, "vsock port"))


def _number(text: str, digits: str, what: str) -> int:
    # str.isdecimal and int() take the digits of every script; an address has ASCII ones.
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 10:
        hint = f"; {_RANGE_EXAMPLE}" if "-" in digits else ""
        raise AddressError(f"{text!r}: {digits!r} is not a {what}{hint}")
    return int(digits)
