"""A client of the running daemon's API, on its control socket.

Owns: which socket is the daemon's, one request per connection, and the sentence for each
failure.  Runs in commands that a person waits for, so it imports neither trio nor, without
settings in the environment, pydantic: answers are the plain JSON of `schema`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from vsockproxy.admin.socket_path import default_places, is_live, of_user
from vsockproxy.config.source import ADMIN, PLACES, NoSourceError, Source, find_source
from vsockproxy.config.value import AUTO, OFF
from vsockproxy.errors import ConfigError, VsockproxyError
from vsockproxy.readable import escape
from vsockproxy.unix_http import UnixConnection

Answer = dict[str, Any]

_MAX_ANSWER: Final = 64 << 20  # bytes; a page of connections is below one MiB
_TIMEOUT: Final = 15.0  # seconds
_WHICH_TIMEOUT: Final = 2.0  # seconds; a daemon that hangs must not hide the one that is meant
_REMEDY: Final = (
    f"name its configuration with -c, or its control socket with --socket or ${ADMIN}; a daemon"
    ' has none if its configuration has [admin] socket = "off"'
)

_SEE_LOG: Final = "its log has the error: http_request_failed (journalctl -u vsockproxy)"


class DaemonUnreachableError(VsockproxyError):
    """No daemon answers; the text says why, and what to do."""


class SeveralDaemonsError(DaemonUnreachableError):
    """Several daemons run, and nothing says which one is meant."""


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

    def put(self, path: str, body: Answer) -> Answer:
        """Return the answer to a PUT."""
        return self._request("PUT", path, json.dumps(body))

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
            answer = _read(response)
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
            raise _refusal(response.status, answer)
        return {name: _printable(value) for name, value in answer.items()}


def _read(response: HTTPResponse) -> Answer:
    """Return the JSON object of an answer; an empty one of a daemon that failed without JSON.

    Raises ValueError for any other answer.
    """
    content = response.read(_MAX_ANSWER)
    try:
        answer = json.loads(content)
    except ValueError:
        if response.status < 500:
            raise
        answer = {}
    if not isinstance(answer, dict):
        raise ValueError("the answer is not an object")
    return answer


def _printable(value: Any) -> Any:
    """Return a value of an answer, whose texts a terminal can show: a peer may have chosen them."""
    match value:
        case str():
            return escape(value)
        case list():
            return [_printable(item) for item in value]
        case dict():
            return {escape(key): _printable(item) for key, item in value.items()}
    return value


def _refusal(status: int, answer: Answer) -> RequestError:
    """Return the error of an answer whose status is not 200, with a line for each problem."""
    is_failure = status >= 500
    error = f"the daemon failed to answer (HTTP {status})" if is_failure else answer
    sentence = "\n".join(map(escape, str(answer.get("error", error)).split("\n")))
    remedy = _SEE_LOG if is_failure else escape(str(answer.get("remedy", "")))
    return RequestError(status, sentence, remedy)


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
    places: Sequence[Path] = PLACES,
) -> Path:
    """Return the path of the daemon's control socket; whether it answers is not tried.

    The first of these decides: ``option``, $VSOCKPROXY_ADMIN, ``[admin] socket`` of the
    configuration that `find_source` finds, the one live socket in the default places; of
    several, the one whose daemon runs that configuration's file.

    Args:
      file, places: as in `find_source`.

    Raises:
      DaemonUnreachableError: if the configuration disables the socket, or the default places
        have none or several.
      ConfigError: as `find_source`; or ``file`` cannot be read, or parsed where no single
        daemon runs.
    """
    if option is not None:
        return option
    if environ.get(ADMIN):
        return Path(environ[ADMIN])
    try:
        source = find_source(file, environ, places)
    except NoSourceError:
        return _only_socket(environ, None)
    named = _configured_socket(source, environ, is_named=file is not None or source.file is None)
    if named not in (AUTO, OFF):
        return Path(named.removeprefix("unix:"))
    return _only_socket(environ, source.file)


def _configured_socket(source: Source, environ: Mapping[str, str], *, is_named: bool) -> str:
    """Return ``[admin] socket`` of the configuration; ``"auto"`` if nothing sets it.

    Another daemon may run beside a file that was not named: that one may be unreadable, or disable
    the socket. A file with an error, as before a reload, hides no daemon that is the only one.
    """
    try:
        named = str(source.table("admin").get("socket") or AUTO)
    except ConfigError:
        if is_named and not (_is_readable(source.file) and _runs_one_daemon(environ)):
            raise
        return AUTO
    if named == OFF and is_named:
        where = source.file or "the environment"
        raise DaemonUnreachableError(f"{where} disables the control socket: set [admin] socket")
    return named


def _is_readable(file: Path | None) -> bool:
    return file is not None and os.access(file, os.R_OK)


def _runs_one_daemon(environ: Mapping[str, str]) -> bool:
    return sum(map(is_live, default_places(environ, os.getuid()))) == 1


def _runs(place: Path, file: Path) -> bool:
    """Return whether the daemon at a socket runs a file; False where it does not answer."""
    try:
        status = Client(place, _WHICH_TIMEOUT).get("/v1/status")
    except VsockproxyError:
        return False
    source = str(status["source"])
    return source == escape(str(file)) or os.path.realpath(source) == os.path.realpath(file)


def _only_socket(environ: Mapping[str, str], file: Path | None) -> Path:
    places = default_places(environ, os.getuid())
    live = [place for place in places if is_live(place)]
    if len(live) > 1:
        own = [place for place in live if file is not None and _runs(place, file)]
        if len(own) == 1:
            return own[0]
        found = ", ".join(map(str, live))
        raise SeveralDaemonsError(
            f"several daemons run: {found}; choose one with --socket or ${ADMIN}"
        )
    if live or places:
        return (live or places)[0]
    user = of_user(environ, os.getuid())
    raise DaemonUnreachableError(
        f"no daemon: neither {user.parent} nor /run/vsockproxy has a control socket; start the"
        f" daemon, or {_REMEDY}"
    )
