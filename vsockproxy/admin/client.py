"""Asking a running daemon by its operator's socket.

Owns: finding the socket, one request at a time, and plain words for what does not work.
Runs in commands that a person waits for, so it imports neither trio nor pydantic: answers
are the plain JSON of `schema`.
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

_LONGEST: Final = 64 << 20  # of an answer; a page of connections is below one
_TIMEOUT: Final = 15.0
_HOW: Final = (
    f"name its socket with --socket or ${VARIABLE}; a daemon that systemd does not run has one"
    ' only if its file gives it one: [admin] socket = "PATH"'
)


class UnaskedError(VsockproxyError):
    """The daemon was not found, or it did not answer; the text says which, and what to do."""


class RefusedError(VsockproxyError):
    """The daemon refused, and says why; ``status`` is HTTP's."""

    def __init__(self, status: int, error: str, remedy: str) -> None:
        self.status = status
        super().__init__(f"{error}\n{remedy}" if remedy else error)


class Client:
    """A daemon's API; each call is a connection of its own."""

    def __init__(self, path: Path, timeout: float = _TIMEOUT) -> None:
        self.path = path
        self._timeout = timeout

    def get(self, path: str, **query: object) -> Answer:
        """The answer to a question; None is not asked.

        Raises `UnaskedError`, and `RefusedError` for what the daemon says no to.
        """
        asked = urlencode({key: value for key, value in query.items() if value is not None})
        return self._ask("GET", f"{path}?{asked}" if asked else path)

    def post(self, path: str, body: Answer | None = None) -> Answer:
        """What the daemon says to an order; raises like `get`."""
        return self._ask("POST", path, None if body is None else json.dumps(body))

    def delete(self, path: str) -> Answer:
        """What the daemon says to an end; raises like `get`."""
        return self._ask("DELETE", path)

    def connections(self, **query: object) -> Iterator[Answer]:
        """Every page of the live connections, as `schema.Connections`."""
        page = self.get("/v1/connections", **query)
        yield page
        while page["next"] is not None:
            page = self.get("/v1/connections", **query | {"after": page["next"]})
            yield page

    def _ask(self, method: str, path: str, body: str | None = None) -> Answer:
        connection = UnixConnection(str(self.path), self._timeout)
        try:
            # A daemon that needs no body may have answered and closed before all of it is sent.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body)
            response = connection.getresponse()
            answer = json.loads(response.read(_LONGEST))
        except TimeoutError as error:
            raise UnaskedError(f"no answer from {self.path} in time: the daemon hangs") from error
        except OSError as error:
            raise UnaskedError(_words(self.path, error)) from error
        except (HTTPException, ValueError) as error:
            raise UnaskedError(f"what answers at {self.path} is no vsockproxy daemon") from error
        finally:
            connection.close()
        if response.status != 200:
            raise RefusedError(
                response.status, str(answer.get("error", answer)), str(answer.get("remedy", ""))
            )
        return dict(answer)


def route_path(name: str, action: str = "") -> str:
    """The path of a route in the API; a name can have slashes and spaces."""
    return f"/v1/routes/{quote(name, safe='')}{'/' if action else ''}{action}"


def _words(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return f"no daemon: there is no {path}; is it running?"
        case errno.ECONNREFUSED:
            return f"no daemon: it has ended and left {path} behind"
        case errno.EACCES | errno.EPERM:
            return (
                f"{path} does not let this user in: run it as the daemon's user or as root,"
                " or give the socket a group ([admin] group and mode)"
            )
        case _:
            return f"{path} cannot be asked: {error.strerror or error}"


def find_socket(
    option: Path | None,
    file: Path | None,
    environ: Mapping[str, str],
    *,
    defaults: Sequence[Path] = (),
) -> Path:
    """The socket of the daemon that is meant: by option, environment, configuration or place.

    ``file`` is a configuration that somebody named, ``defaults`` are those that may be
    meant.  Raises `UnaskedError`, and `ConfigError` for a file that cannot be read.
    """
    if option is not None:
        return option
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    named = _written(file) if file is not None else environ.get(SETTING, "auto").strip() or "auto"
    if named == "off":
        raise UnaskedError(
            f"{file or SETTING} has the socket off: a daemon that cannot be asked ([admin] socket)"
        )
    for place in defaults if named == "auto" else ():
        named = _written_if_readable(place)
        if named != "auto":
            break
    if named not in ("auto", "off"):
        return Path(named.removeprefix("unix:"))
    return _the_only(default_places(environ, os.getuid()), environ)


def _written(file: Path) -> str:
    admin: Any = read_document(file).tree.get("admin")
    return str(admin.get("socket", "auto")) if isinstance(admin, dict) else "auto"


def _written_if_readable(file: Path) -> str:
    try:
        return _written(file)
    except VsockproxyError:  # the daemon has said so already
        return "auto"


def _the_only(places: Sequence[Path], environ: Mapping[str, str]) -> Path:
    live = [place for place in places if is_live(place)]
    if len(live) > 1:
        found = ", ".join(map(str, live))
        raise UnaskedError(f"several daemons are here: {found}; say which with --socket")
    if live or places:
        return (live or places)[0]
    user = of_user(environ, os.getuid())
    raise UnaskedError(
        f"no daemon is found: there is neither {user} nor /run/vsockproxy/admin.sock; {_HOW}"
    )
