"""The request of `vsockproxy health`: whether a running daemon is ready.

Owns: finding the daemon's HTTP listener, and one request to it.  A container runs it every few
seconds, so it does not import trio, and reads only the addresses of a configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vsockproxy.address.endpoint import TcpEndpoint, UnixEndpoint
from vsockproxy.address.grammar import parse_listen
from vsockproxy.admin.client import DaemonUnreachableError, SeveralDaemonsError, find_socket
from vsockproxy.config.source import ADMIN, FILE, PLACES, NoSourceError, find_source
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.unix_http import UnixConnection

if TYPE_CHECKING:
    from vsockproxy.config.document import Plain

READY: Final = "/readyz"
TIMEOUT: Final = 3.0
"""Seconds for the answer, without ``--timeout``."""

_LONGEST: Final = 4096  # bytes of an answer, which has a line for each missing listener
_OF_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", None: "127.0.0.1"}  # noqa: S104 - dialled
_NO_PLAIN_HTTP: Final = "cannot ask the daemon: its metrics are served over TLS; set [admin] socket"
_NO_LISTENER: Final = (
    "cannot ask the daemon: none with a control socket was found, and no metrics listener is"
    " configured; start the daemon, name its configuration with -c, set [metrics] listen or"
    f" [admin] socket, or name one with ${ADMIN}, --metrics or --url"
)


def check(environ: Mapping[str, str]) -> int:
    """Print what `vsockproxy health` without options does, and return its exit status."""
    named = environ.get(FILE)
    try:
        answer = ask(find_address(Path(named) if named else None, environ), TIMEOUT)
        output, status = 1, 0
    except VsockproxyError as error:
        answer = "\n".join(f"vsockproxy: {line}" for line in str(error).splitlines() if line)
        output, status = 2, 1
    try:
        # Past Python's buffer, which would be written again at exit.
        os.write(output, f"{answer}\n".encode(errors="backslashreplace"))
    except OSError:
        return 1
    return status


class UnhealthyError(VsockproxyError):
    """The daemon is not ready, or cannot be asked; the text has the cause."""


def find_address(
    file: Path | None, environ: Mapping[str, str], places: Sequence[Path] = PLACES
) -> str:
    """Return the address at which the daemon answers, as an operator writes it.

    That is $VSOCKPROXY_ADMIN; else the metrics' listener of the configuration that `find_source`
    finds; else, without metrics or with metrics over TLS, the control socket of `find_socket`.

    Args:
      file, places: as in `find_source`.

    Raises:
      UnhealthyError: there is no such address.
      SeveralDaemonsError: several daemons could be meant.
      ConfigError: as `find_source`; or the file cannot be read.
    """
    metrics: Mapping[str, Plain] = {}
    with suppress(NoSourceError, ConfigError):  # `find_socket` judges a ConfigError
        metrics = find_source(file, environ, places).table("metrics")
    listen, has_tls = _first(metrics.get("listen")), metrics.get("certificate")
    if listen and not has_tls and not environ.get(ADMIN):
        return listen
    try:
        return f"unix:{find_socket(None, file, environ, places)}"
    except SeveralDaemonsError:
        raise
    except DaemonUnreachableError as error:
        raise UnhealthyError(_NO_PLAIN_HTTP if listen else _NO_LISTENER) from error


def _first(listen: object) -> str:
    """Return the first address of one or several that can be asked; empty if there is none."""
    addresses = listen if isinstance(listen, list) else [listen]
    texts = [str(address) for address in addresses if address]
    return next((text for text in texts if not text.startswith("fd:")), "".join(texts[:1]))


def ask(listen: str, timeout: float) -> str:
    """Return the answer of the daemon whose metrics listener has the address ``listen``.

    Raises:
      UnhealthyError: the daemon is not ready, or does not answer.
      AddressError: ``listen`` is not an address.
    """
    endpoint = parse_listen(listen)
    if isinstance(endpoint, TcpEndpoint):
        host = _OF_EVERY.get(endpoint.host, endpoint.host)
        assert host is not None
        return _answer(HTTPConnection(host, endpoint.port, timeout=timeout), READY, listen)
    if isinstance(endpoint, UnixEndpoint):
        return _answer(UnixConnection(endpoint.path, timeout), READY, listen)
    raise UnhealthyError(f"cannot ask the daemon: {listen} is not a TCP or Unix address; use --url")


def ask_url(url: str, timeout: float) -> str:
    """Return the answer of an HTTP URL; without a path in it, that of `/readyz`.

    Raises:
      UnhealthyError: the daemon is not ready, or does not answer.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:  # of the port
        raise UnhealthyError(f"cannot ask the daemon: {url!r} is not a URL: {error}") from error
    if parts.scheme != "http" or not host:
        raise UnhealthyError(
            f"cannot ask the daemon: {url!r} is not an HTTP URL; expected http://HOST:PORT"
        )
    path = parts.path if parts.path not in ("", "/") else READY
    return _answer(HTTPConnection(host, port, timeout=timeout), path, url)


def _answer(connection: HTTPConnection, path: str, where: str) -> str:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = "; ".join(response.read(_LONGEST).decode("utf-8", "replace").split("\n")).strip("; ")
    except TimeoutError as error:
        raise UnhealthyError(
            f"no answer from {where} within the time limit: the daemon hangs; see its log"
        ) from error
    except OSError as error:
        raise UnhealthyError(
            f"cannot ask the daemon at {where}: {error.strerror or error}; is it running?"
        ) from error
    except HTTPException as error:
        raise UnhealthyError(
            f"the answer from {where} is not HTTP: {error!r}; is this the right address?"
        ) from error
    finally:
        connection.close()
    if response.status != 200:
        raise UnhealthyError(body or f"{where} answers with status {response.status}")
    return body
