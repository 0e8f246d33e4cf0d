"""Asking a running daemon whether it is ready: for a container's health check, and for scripts.

Owns: finding the daemon's HTTP listener, and one request to it.  Runs every few seconds beside
the daemon: it imports neither trio nor pydantic, and reads only the addresses of a configuration.
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

_LONGEST: Final = 4096  # of an answer: a line for each listener that is not there
_OF_EVERY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", None: "127.0.0.1"}  # noqa: S104 - dialled
_TO_ADD_SOCKET: Final = "give it [admin] socket, which is asked then"
_TO_ADD: Final = "give it [metrics] listen, or say where with --metrics or --url"


class UnhealthyError(VsockproxyError):
    """The daemon is not ready, or cannot be asked; the text says which."""


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
        raise UnhealthyError(f"the metrics are served over TLS, so none can ask: {_TO_ADD_SOCKET}")
    raise UnhealthyError(f"the configuration serves no metrics, so none can ask: {_TO_ADD}")


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
    raise UnhealthyError(f"{listen} cannot be asked: say with --url where it is")


def ask_url(url: str, timeout: float) -> str:
    """Return the answer of an HTTP URL; without a path in it, that of `/readyz`.

    Raises:
      UnhealthyError: the daemon is not ready, or does not answer.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:  # of the port
        raise UnhealthyError(f"{url} is no URL: {error}") from error
    if parts.scheme != "http" or not host:
        raise UnhealthyError(f"{url} is no URL to ask: write http://HOST:PORT")
    path = parts.path if parts.path not in ("", "/") else READY
    return _answer(HTTPConnection(host, port, timeout=timeout), path, url)


def _answer(connection: HTTPConnection, path: str, where: str) -> str:
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = " ".join(response.read(_LONGEST).decode("utf-8", "replace").split())
    except TimeoutError as error:
        raise UnhealthyError(f"no answer from {where} in time: the daemon hangs") from error
    except OSError as error:
        raise UnhealthyError(f"nothing answers at {where}: {error.strerror or error}") from error
    except HTTPException as error:
        raise UnhealthyError(f"what answers at {where} does not speak HTTP: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise UnhealthyError(body or f"{where} answers with status {response.status}")
    return body
