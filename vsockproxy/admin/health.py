"""The request of `vsockproxy health`: whether a running daemon is ready.

Owns: finding the daemon's HTTP listener, and one request to it.  A container runs it every few
seconds, so it imports neither trio nor pydantic, and reads only the addresses of a configuration.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from vsockproxy.address.endpoint import TcpEndpoint, UnixEndpoint
from vsockproxy.address.grammar import parse_listen
from vsockproxy.admin.client import SETTING
from vsockproxy.admin.socket_path import default_places
from vsockproxy.config.file import read_document
from vsockproxy.errors import VsockproxyError
from vsockproxy.unix_http import UnixConnection

METRICS_VARIABLE: Final = "VSOCKPROXY_METRICS_LISTEN"
_CERTIFICATE: Final = "VSOCKPROXY_METRICS_CERTIFICATE"
READY: Final = "/readyz"

_LONGEST: Final = 4096  # bytes of an answer, which has a line for each missing listener
_OF_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", None: "127.0.0.1"}  # noqa: S104 - dialled
_NO_PLAIN_HTTP: Final = "cannot ask the daemon: its metrics are served over TLS; set [admin] socket"
_NO_LISTENER: Final = (
    "cannot ask the daemon: the configuration has no metrics listener; set [metrics] listen, or use"
    " --metrics or --url"
)


class UnhealthyError(VsockproxyError):
    """The daemon is not ready, or cannot be asked; the text has the cause."""


def metrics_listen(file: Path | None, environ: Mapping[str, str]) -> str:
    """Return the address at which a daemon answers, as its configuration writes it.

    That is the metrics' listener; the control socket if there is none or it uses TLS; without any
    configuration, the control socket of a daemon at a default place.

    Args:
      file: the configuration; if None, it is in ``environ``.

    Raises:
      UnhealthyError: there is no such address.
      ConfigError: the file cannot be read.
    """
    metrics, admin = _tables(file, environ)
    listen, place = metrics.get("listen"), admin.get("socket")
    if listen and not metrics.get("certificate"):
        return str(listen)
    if place and place not in ("auto", "off"):
        return f"unix:{str(place).removeprefix('unix:')}"
    if file is None and not listen and (usual := default_places(environ, os.getuid())):
        return f"unix:{usual[0]}"
    if listen:
        raise UnhealthyError(_NO_PLAIN_HTTP)
    raise UnhealthyError(_NO_LISTENER)


def _tables(file: Path | None, environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return ``[metrics]`` and ``[admin]``, with the keys that this module reads."""
    if file is None:
        listen = environ.get(METRICS_VARIABLE, "").strip()
        certificate = environ.get(_CERTIFICATE, "").strip()
        place = environ.get(SETTING, "").strip()
        return [{"listen": listen, "certificate": certificate}, {"socket": place}]
    tree: Any = read_document(file).tree
    tables = [tree.get(name) for name in ("metrics", "admin")]
    return [table if isinstance(table, dict) else {} for table in tables]


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
        body = " ".join(response.read(_LONGEST).decode("utf-8", "replace").split())
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
