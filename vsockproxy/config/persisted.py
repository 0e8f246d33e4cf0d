"""A file for each route or guest that is added to last: in the folder of the first ``include``.

Owns: the file's name, and writing it so that it is there as a whole or not at all.  All of it
waits for a disk: a running daemon calls it in a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final
from urllib.parse import quote

from vsockproxy.config.added import Kind
from vsockproxy.config.file import read_document
from vsockproxy.errors import ConfigError, OrderError

_SUFFIXES: Final = (".toml", ".yaml", ".yml")
_MODE: Final = 0o644
_LONGEST_NAME: Final = 255  # bytes, of a file


def file_of(include: Sequence[str], kind: Kind, name: str) -> Path:
    """Return the path of an entry's file.

    Raises:
      OrderError: the configuration includes no folder, or the name is too long for a file.
    """
    stem = f"{kind}-{quote(name, safe=' @+=,')}"
    for pattern in include[:1]:
        for suffix in _SUFFIXES:
            if fnmatchcase(stem + suffix, Path(pattern).name):
                if len(stem + suffix) > _LONGEST_NAME:
                    raise OrderError(f"{name!r} is too long for a file", "choose a shorter name")
                return Path(pattern).with_name(stem + suffix)
    raise OrderError(
        "the configuration has no include with a pattern of files",
        'put include = ["/etc/vsockproxy/conf.d/*.toml"] above its first table',
    )


def read(file: Path) -> bytes | None:
    """Return what is in a file; None if it does not exist; raises `OrderError`."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        remedy = "have the daemon's user read it"
        raise OrderError(f"cannot read {file}: {error.strerror}", remedy) from error


def has_only(file: Path, kind: Kind, name: str) -> bool:
    """Return whether a file has this entry and no other: one with more is the operator's."""
    try:
        tree = read_document(file).tree
    except ConfigError:
        return False
    match kind, tree:
        case "route", {"route": [{"name": str(found)}], **others}:
            return found == name and not others
        case "guest", {"guests": dict(guests), **others}:
            return list(guests) == [name] and not others
    return False


def write(file: Path, data: bytes | None) -> None:
    """Have a file contain ``data``, or remove it for None, and wait until the disk has that.

    Raises:
      OrderError: that cannot be done; the file is as it was, or is not known to be on the disk.
    """
    try:
        if data is None:
            file.unlink(missing_ok=True)
        else:
            _replace(file, data)
        _sync(file.parent)
    except OSError as error:
        remedy = f"let the daemon's user write to {file.parent} (systemd: ReadWritePaths=)"
        match error.errno:
            case errno.ENOENT:
                remedy = f"create the folder {file.parent}"
            case errno.ENOSPC | errno.EDQUOT:
                remedy = f"make room on the file system of {file.parent}"
        raise OrderError(f"cannot write {file}: {error.strerror}", remedy) from error


def _replace(file: Path, data: bytes) -> None:
    beside = file.with_name(f".{file.name[:200]}.{os.getpid()}.tmp")  # hidden: no pattern has it
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _MODE)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        beside.replace(file)
    except OSError:
        with suppress(OSError):
            beside.unlink()
        raise


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
