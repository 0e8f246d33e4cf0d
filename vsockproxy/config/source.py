"""Which configuration a command means: the one order for all commands.

Owns: `find_source`, and which variables are settings.  The first of these that exists is the
source:

1. the file of ``-c FILE``, or of ``$VSOCKPROXY_CONFIG``
2. the settings in environment variables (`environment`)
3. ``/etc/vsockproxy/config.toml``, then ``/etc/vsockproxy/config.yaml``

A file together with settings in the environment is an error, but for those of the log.
Loads pydantic only for settings in the environment, and to check a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsockproxy.errors import ConfigError, Problem, VsockproxyError

if TYPE_CHECKING:
    from vsockproxy.config.document import Document, Plain
    from vsockproxy.config.settings import Config

PREFIX: Final = "VSOCKPROXY_"
FILE: Final = "VSOCKPROXY_CONFIG"
"""Names a file; not a setting."""

ADMIN: Final = "VSOCKPROXY_ADMIN"
"""Names the control socket of a running daemon, for the commands; not a setting."""

LOG: Final = ("VSOCKPROXY_LOG_LEVEL", "VSOCKPROXY_LOG_FORMAT")
"""Settings that win over those of a file; all others contradict a file."""

PLACES: Final = (Path("/etc/vsockproxy/config.toml"), Path("/etc/vsockproxy/config.yaml"))
"""The files that are read without ``-c`` and ``$VSOCKPROXY_CONFIG``."""

STDIN: Final = Path("-")
"""Names standard input in place of a file."""

STDIN_NAME: Final = "standard input"

_ONLY_ONCE: Final = "only check and run read the configuration there: name a file"

_NO_SOURCE: Final = (
    "there is no configuration: neither -c FILE nor $VSOCKPROXY_CONFIG nor $VSOCKPROXY_FORWARD,"
    f" nor {' nor '.join(map(str, PLACES))}",
    "without a file: vsockproxy forward 8080 3:80; without a VM: vsockproxy demo",
)


# Kubernetes, and Docker's links, describe a service called vsockproxy, or vsockproxy-web, to
# every container: VSOCKPROXY_PORT=tcp://10.0.0.1:80 and these.
_OF_A_SERVICE: Final = re.compile(
    r"VSOCKPROXY_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)


class NoSourceError(VsockproxyError):
    """There is no configuration; the text has a line for each variable that is not a setting."""


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration that was not read yet: in ``file``, or in ``environ`` if that is None."""

    file: Path | None
    environ: Mapping[str, str]

    def load(self) -> Config:
        """Return the configuration, read again at each call.

        Raises:
          ConfigError: with all problems of the configuration.
        """
        if self.file is None:
            from vsockproxy.config.environment import environment_config  # noqa: PLC0415 - late

            return environment_config(self.environ)
        from vsockproxy.config.load import load_config  # noqa: PLC0415 - see above

        return load_config(self.file)

    def table(self, name: str) -> Mapping[str, Plain]:
        """Return a table as it is written, unchecked; an empty one if it is not there.

        Raises:
          ConfigError: the file cannot be read.
        """
        table = self._document().tree.get(name)
        return table if isinstance(table, dict) else {}

    def _document(self) -> Document:
        if self.file is None:
            from vsockproxy.config.environment import environment_document  # noqa: PLC0415 - late

            return environment_document(self.environ)
        from vsockproxy.config.include import read_documents  # noqa: PLC0415 - see above

        return read_documents(self.file)


def find_source(
    file: Path | None,
    environ: Mapping[str, str],
    places: Sequence[Path] = PLACES,
    *,
    stdin: bool = False,
) -> Source:
    """Return the configuration that a command means.

    Args:
      file: of ``-c FILE`` or ``$VSOCKPROXY_CONFIG``.
      stdin: whether `STDIN` may be the file.

    Raises:
      NoSourceError: there is none.
      ConfigError: there is a file, and the environment has settings too; or the file is `STDIN`.
    """
    if file == STDIN and not stdin:
        raise ConfigError(STDIN_NAME, (Problem("", _ONLY_ONCE),))
    file = file or default_file(places)
    known, unknown = _sorted_settings(environ)
    known = [name for name in known if file is None or name not in LOG]
    if file is not None and known:
        message = (
            f"the environment has settings too ({', '.join(known)}):"
            " write all of them in the file, or give no file"
        )
        raise ConfigError(str(file), (Problem("", message),))
    if file is None and not known:
        raise NoSourceError("\n".join((*unknown, *_NO_SOURCE)))
    if file is not None and file != STDIN:
        file = file.absolute()  # the daemon's answers name it to commands in other folders
    return Source(file, environ)


def _sorted_settings(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the names of the settings that are a key's variable; a sentence for each other."""
    if not settings(environ):
        return [], []
    from vsockproxy.config.environment import (  # noqa: PLC0415 - needs pydantic
        known_settings,
        unknown_settings,
    )

    return known_settings(environ), unknown_settings(environ)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with the prefix of settings, known or not, sorted by name.

    An empty variable counts as unset: a compose file cannot leave a variable out.
    """
    return {
        name: text
        for name, text in sorted(environ.items())
        if name.startswith(PREFIX)
        and name not in (FILE, ADMIN)
        and text.strip()
        and not _is_of_a_service(name, text)
    }


def _is_of_a_service(name: str, text: str) -> bool:
    if name.endswith("_PORT") and "://" in text:
        return True
    return _OF_A_SERVICE.fullmatch(name) is not None


def default_file(places: Sequence[Path] = PLACES) -> Path | None:
    """Return the first of ``places`` that exists; None if none does."""
    return next(filter(_exists, places), None)


def _exists(place: Path) -> bool:
    try:
        place.stat()
    except PermissionError:  # reading the file reports it, with a remedy
        return True
    except OSError:
        return False
    return True
