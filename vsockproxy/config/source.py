"""Which configuration a command means: the one order for all commands.

Owns: `find_source`.  The first of these that exists is the source:

1. the file of ``-c FILE``, or of ``$VSOCKPROXY_CONFIG``
2. the settings in environment variables (`environment`)
3. ``/etc/vsockproxy/config.toml``, then ``/etc/vsockproxy/config.yaml``

A file together with settings in the environment is an error.  Loads pydantic only when
called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vsockproxy.errors import ConfigError, Problem, VsockproxyError

if TYPE_CHECKING:
    from vsockproxy.config.settings import Config

PLACES: Final = (Path("/etc/vsockproxy/config.toml"), Path("/etc/vsockproxy/config.yaml"))
"""The files that are read without ``-c`` and ``$VSOCKPROXY_CONFIG``."""

_NO_SOURCE: Final = (
    "there is no configuration: neither -c FILE nor $VSOCKPROXY_CONFIG nor $VSOCKPROXY_FORWARD,"
    f" nor {' nor '.join(map(str, PLACES))}",
    "without a file: vsockproxy forward 8080 3:80; without a VM: vsockproxy demo",
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


def find_source(
    file: Path | None, environ: Mapping[str, str], places: Sequence[Path] = PLACES
) -> Source:
    """Return the configuration that a command means.

    Args:
      file: of ``-c FILE`` or ``$VSOCKPROXY_CONFIG``.

    Raises:
      NoSourceError: there is none.
      ConfigError: there is a file, and the environment has settings too.
    """
    from vsockproxy.config.environment import (  # noqa: PLC0415 - needs pydantic
        known_settings,
        unknown_settings,
    )

    file = file or default_file(places)
    settings = known_settings(environ)
    if file is not None and settings:
        message = (
            f"the environment has settings too ({', '.join(settings)}):"
            " write all of them in the file, or give no file"
        )
        raise ConfigError(str(file), (Problem("", message),))
    if file is None and not settings:
        raise NoSourceError("\n".join((*unknown_settings(environ), *_NO_SOURCE)))
    return Source(file, environ)


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
