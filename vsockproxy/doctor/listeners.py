"""The check of the configuration's listeners, certificates and files of users.

Owns: one bind(2) of each TCP address without listening, a look at the folder of each Unix socket,
and the reading of certificates and modes.  Changes nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from vsockproxy.address.endpoint import ListenEndpoint, TcpEndpoint, UnixEndpoint
from vsockproxy.address.sockaddr import literal_addresses
from vsockproxy.admin.socket_path import is_live
from vsockproxy.config.credentials import exposures
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.errors import ConfigError, ListenError, listen_error
from vsockproxy.readable import count

Bind = Callable[[TcpEndpoint | UnixEndpoint], ListenError | None]
"""Tells why an address cannot be listened on, or returns None."""


def try_bind(endpoint: TcpEndpoint | UnixEndpoint) -> ListenError | None:
    """Return why this process could not listen on an address, as far as it can be known."""
    try:
        if isinstance(endpoint, TcpEndpoint):
            _bind_tcp(endpoint)
        elif not endpoint.path.startswith("@"):
            _look_at(Path(endpoint.path))
    except OSError as error:
        return listen_error(endpoint, error.errno or errno.EIO)
    return None


def _bind_tcp(endpoint: TcpEndpoint) -> None:
    for family, address in literal_addresses(endpoint) or ():
        try:
            with socket.socket(family) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
        except OSError as error:
            is_absent = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if not (is_absent and endpoint.host is None):  # the loopback of one family is enough
                raise


def _look_at(path: Path) -> None:
    path.parent.stat()
    ours = os.access in os.supports_effective_ids
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=ours):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if path.is_socket() and is_live(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def judge_listeners(config: Config, running: frozenset[str], bind: Bind) -> Iterator[Finding]:
    """Yield a finding for each listener that cannot be opened, and one for all others.

    Args:
      running: the addresses that the running daemon has, which are not tried.
    """
    tried = 0
    for owner, endpoint in _listeners(config):
        if not _can_try(endpoint) or str(endpoint) in running:
            continue
        assert isinstance(endpoint, TcpEndpoint | UnixEndpoint)
        tried += 1
        error = bind(endpoint)
        # The check of low ports has told a missing privilege.
        if error is not None and not (error.errno == errno.EACCES and endpoint.kind == "tcp"):
            yield problem(owner, error.summary, error.remedy)
            tried -= 1
    if tried:
        yield ok("listeners", f"{count(tried, 'listener')} can be opened")


def untried(config: Config) -> list[str]:
    """Return the listeners that are not tried."""
    return [str(endpoint) for _, endpoint in _listeners(config) if not _can_try(endpoint)]


def _listeners(config: Config) -> Iterator[tuple[str, ListenEndpoint]]:
    for route in config.routes:
        yield f"route {route.name}", route.listen
    for endpoint in config.metrics:
        yield "metrics", endpoint
    if config.admin.listen is not None:
        yield "control socket", config.admin.listen


def _can_try(endpoint: ListenEndpoint) -> bool:
    if isinstance(endpoint, TcpEndpoint):
        return literal_addresses(endpoint) is not None
    return isinstance(endpoint, UnixEndpoint)


def judge_certificates(config: Config) -> Iterator[Finding]:
    """Yield whether the certificates of the metrics can be used."""
    if not config.metrics or config.metrics_tls is None:
        return
    from vsockproxy.admin.tls import tls_context  # noqa: PLC0415 - only where TLS is configured

    try:
        tls_context(config.metrics_tls, config.source)
    except ConfigError as error:
        for line in str(error).splitlines():
            yield problem("certificates", line, "correct the file, or its mode")
    else:
        yield ok("certificates", "they can be read, and belong together")


def judge_users(config: Config) -> Iterator[Finding]:
    """Yield a note of each file of users that is not kept from others."""
    for route, sentence, remedy in exposures(config):
        yield note(route, sentence, remedy)
