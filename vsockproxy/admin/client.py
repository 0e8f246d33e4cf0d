"""A client of the running daemon's API, on its control socket.

Owns: which socket is the daemon's, one request per connection, and the sentence for each
failure.  Runs in commands that a person waits for, so it imports neither trio nor pydantic:
answers are the plain JSON of `schema`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from vsockproxy.admin.socket_path import VARIABLE, default_places, is_live, of_user
from vsockproxy.config.document import read_document
from vsockproxy.errors import VsockproxyError
from vsockproxy.unix_http import UnixConnection

Answer = dict[str, Any]

SETTING: Final = "VSOCKPROXY_ADMIN_SOCKET"
"""``[admin] socket`` where the environment is the configuration."""

_MAX_ANSWER: Final = 64 << 20  # bytes; a page of connections is below one MiB
_TIMEOUT: Final = 15.0  # seconds
_REMEDY: Final = (
    f"name the control socket with --socket or ${VARIABLE}; a daemon outside systemd has one"
    ' only if its configuration sets it: [admin] socket = "PATH"'
)


class DaemonUnreachableError(VsockproxyError):
    """No daemon answers; the text says why, and what to do."""


class DaemonHangsError(DaemonUnreachableError):
    """The daemon did not answer within the client's timeout."""


class RequestError(VsockproxyError):
    """The daemon answered with an HTTP status other than 200.

    The text is the answer's error, and its remedy on a second line.

    Attributes:
      status: that status.
    """

    def __init__(self, status: int, error: str, remedy: str) -> None:
        self.status = status
        super().__init__(f"{error}\n{remedy}" if remedy else error)


class Client:
    """A client of one daemon; each request has a connection to itself.

    Every request blocks until the answer is complete, and raises `DaemonUnreachableError` or
    `RequestError`.

    Attributes:
      path: the control socket.
    """

    def __init__(self, path: Path, timeout: float = _TIMEOUT) -> None:
        """``timeout`` is in seconds, for each read and write."""
        self.path = path
        self._timeout = timeout

    def get(self, path: str, **query: object) -> Answer:
        """Return the answer to a GET; parameters that are None are left out."""
        parameters = urlencode({key: value for key, value in query.items() if value is not None})
        return self._request("GET", f"{path}?{parameters}" if parameters else path)

    def post(self, path: str, body: Answer | None = None) -> Answer:
        """Return the answer to a POST."""
        return self._request("POST", path, None if body is None else json.dumps(body))

    def delete(self, path: str) -> Answer:
        """Return the answer to a DELETE."""
        return self._request("DELETE", path)

    def connections(self, **query: object) -> Iterator[Answer]:
        """Yield every page of the live connections, as `schema.Connections`."""
        page = self.get("/v1/connections", **query)
        yield page
        while page["next"] is not None:
            page = self.get("/v1/connections", **query | {"after": page["next"]})
            yield page

    def _request(self, method: str, path: str, body: str | None = None) -> Answer:
        connection = UnixConnection(str(self.path), self._timeout)
        try:
            # The daemon may answer and close before it has read a body that it does not need.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body)
            response = connection.getresponse()
            answer = json.loads(response.read(_MAX_ANSWER))
        except TimeoutError as error:
            raise DaemonHangsError(
                f"no answer from {self.path} within {self._timeout:g}s: the daemon hangs"
            ) from error
        except OSError as error:
            raise DaemonUnreachableError(_sentence(self.path, error)) from error
        except (HTTPException, ValueError) as error:
            raise DaemonUnreachableError(
                f"the answer from {self.path} is not JSON: another program listens there"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise RequestError(
                response.status, str(answer.get("error", answer)), str(answer.get("remedy", ""))
            )
        return dict(answer)


def route_path(name: str, action: str = "") -> str:
    """Return the API's path of a route, whose name may have slashes and spaces."""
    return f"/v1/routes/{quote(name, safe='')}{'/' if action else ''}{action}"


def _sentence(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"no daemon: {path} does not exist; start the daemon, or name its socket"
        case errno.ECONNREFUSED:
            return f"no daemon: {path} is left over from a daemon that has ended"
        case errno.EACCES | errno.EPERM:
            return (
                f"{path}: permission denied; run the command as the daemon's user or as root,"
                " or give the socket a group ([admin] group and mode)"
            )
        case _:
            return f"cannot connect to {path}: {error.strerror or error}"


def find_socket(
    option: Path | None,
    file: Path | None,
    environ: Mapping[str, str],
    *,
    defaults: Sequence[Path] = (),
) -> Path:
    """Return the path of the daemon's control socket; whether it answers is not tried.

    The first of these decides: ``option``, $VSOCKPROXY_ADMIN, ``[admin] socket`` of ``file``
    or of the environment's configuration, ``[admin] socket`` of the first of ``defaults``
    that sets it, the one live socket in the default places.

    Args:
      file: a configuration file that the caller has named; it must be readable.
      defaults: configuration files that may exist.

    Raises:
      DaemonUnreachableError: if the configuration disables the socket, or the default places
        have none or several.
      ConfigError: if ``file`` cannot be read.
    """
    if option is not None:
        return option
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    named = _socket_in(file) if file is not None else environ.get(SETTING, "auto").strip() or "auto"
    if named == "off":
        raise DaemonUnreachableError(
            f"{file or SETTING} disables the control socket: set [admin] socket"
        )
    for place in defaults if named == "auto" else ():
        named = _socket_in_readable(place)
        if named != "auto":
            break
    if named not in ("auto", "off"):
        return Path(named.removeprefix("unix:"))
    return _only_socket(default_places(environ, os.getuid()), environ)


def _socket_in(file: Path) -> str:
    admin: Any = read_document(file).tree.get("admin")
    return str(admin.get("socket", "auto")) if isinstance(admin, dict) else "auto"


def _socket_in_readable(file: Path) -> str:
    try:
        return _socket_in(file)
    except VsockproxyError:  # the daemon has reported it at its start
        return "auto"


def _only_socket(places: Sequence[Path], environ: Mapping[str, str]) -> Path:
    live = [place for place in places if is_live(place)]
    if len(live) > 1:
        found = ", ".join(map(str, live))
        raise DaemonUnreachableError(f"several daemons run: {found}; choose one with --socket")
    if live or places:
        return (live or places)[0]
    user = of_user(environ, os.getuid())
    raise DaemonUnreachableError(
        f"no daemon: neither {user} nor /run/vsockproxy/admin.sock exists; {_REMEDY}"
    )
