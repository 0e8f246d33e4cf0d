"""What ``[metrics]`` and ``[admin]`` mean: the addresses that the daemon itself serves.

Owns: which addresses these can be.  Each function raises the problem of its table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vsockproxy.address.endpoint import (
    PORT_ANY,
    ListenEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
    check_absolute,
    check_path,
)
from vsockproxy.address.grammar import parse_listen
from vsockproxy.config.document import KeyPath, KeyProblem, write_path
from vsockproxy.config.listen_conflicts import Claims
from vsockproxy.config.process import AdminSettings, MetricsListen, TlsSettings
from vsockproxy.config.schema import AdminTable, MetricsTable
from vsockproxy.config.value import AUTO, OFF
from vsockproxy.errors import AddressError

METRICS_LISTEN: Final[KeyPath] = ("metrics", "listen")
ADMIN_SOCKET: Final[KeyPath] = ("admin", "socket")


def read_listen(text: str) -> ListenEndpoint:
    """Return the address of a listener that clients can find: with a fixed port.

    Raises:
      AddressError: the text is not such an address.
    """
    endpoint = parse_listen(text)
    check_path(endpoint)
    any_port = 0 if isinstance(endpoint, TcpEndpoint) else PORT_ANY
    if getattr(endpoint, "port", None) == any_port:
        raise AddressError(f"{text!r} would listen on any free port: write a fixed port")
    return endpoint


def read_metrics(table: MetricsTable, claims: Claims) -> tuple[MetricsListen, ...]:
    """Return the addresses of the metrics, now claimed; none if they are not served.

    Raises:
      AddressError: an address cannot serve metrics, or overlaps another one.
    """
    return tuple(_metrics_listen(text, claims) for text in table.listen)


def _metrics_listen(text: str, claims: Claims) -> MetricsListen:
    endpoint = read_listen(text)
    if isinstance(endpoint, VsockEndpoint | MuxEndpoint):
        raise AddressError(f"{text!r} cannot serve metrics: expected tcp:, unix: or fd:")
    if owner := claims.take(endpoint, write_path(METRICS_LISTEN)):
        raise AddressError(f"{text!r} is already in use by {owner}: remove one")
    return endpoint


def read_tls(table: MetricsTable) -> TlsSettings | None:
    """Return the files of the metrics' TLS; None if they are served without it."""
    if table.certificate is None:
        return None
    return TlsSettings(table.certificate, table.key, table.client_ca)


def tls_problems(table: MetricsTable) -> Iterator[KeyProblem]:
    """Yield the problem of each key that only TLS reads, where there is no ``certificate``."""
    if table.certificate is None:
        for name in ("key", "client_ca"):
            if getattr(table, name) is not None:
                message = "needs certificate: add it, or remove this key"
                yield KeyProblem(("metrics", name), message)


def read_admin(table: AdminTable, claims: Claims) -> AdminSettings:
    """Return the settings of the control socket, its address now claimed.

    Raises:
      AddressError: ``socket`` is not a file, or is in use.
    """
    mode = AdminSettings().mode if table.mode is None else table.mode
    if table.socket in (AUTO, OFF):
        return AdminSettings(AUTO if table.socket == AUTO else None, mode, table.group, table.may)
    endpoint = UnixEndpoint(table.socket.removeprefix("unix:"))
    if endpoint.path.startswith("@"):
        raise AddressError(
            f"{table.socket!r} is not a file, so every user could control the daemon: write a path"
        )
    check_absolute(endpoint.path)
    if owner := claims.take(endpoint, write_path(ADMIN_SOCKET)):
        raise AddressError(f"{table.socket!r} is already in use by {owner}: choose another path")
    return AdminSettings(endpoint, mode, table.group, table.may)
