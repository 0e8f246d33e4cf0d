"""The file of a listening Unix socket: made, given away and removed through descriptors.

Owns: `SocketFile`, `bind_file`, and the rule by which a stale file is replaced.

Another user may own the folder: a jailed VMM's, for example. That user can put a link in place of
any name in it, at any time, and this process may be root. So each path is walked once, to a
descriptor of the folder (`open_folder`), and every later step names a file in that folder or a
descriptor of the file itself. A socket gets its owner and mode in a folder of this user alone,
before it is moved to its name: the file that is given away is the file that was bound.

Without O_PATH and /proc (macOS) a path is walked for bind(2), connect(2), chown(2) and chmod(2);
the last component is never followed. There, only this user should own the folders of listeners.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vsockproxy.address.endpoint import ListenEndpoint
from vsockproxy.address.sockaddr import errno_of, new_socket
from vsockproxy.config.settings import Policy
from vsockproxy.errors import ListenError, listen_error

_PATH_ONLY: Final[int] = getattr(os, "O_PATH", 0)
_THROUGH_PROC: Final = bool(_PATH_ONLY) and Path("/proc/self/fd").is_dir()
_NODE: Final = _PATH_ONLY | os.O_NOFOLLOW
_FOLDER: Final = _NODE | os.O_DIRECTORY
_LINKS_MAX: Final = 40  # as in the kernel: path_resolution(7)
_LABEL_MAX: Final = 80  # bytes of a name, so that /proc/self/fd/N/NAME fits in sun_path

# link(2) by a process that has given the file away, and on a file system without hard links.
_NO_LINK: Final = (errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


class ForeignLinkError(PermissionError):
    """A link on the way to a folder belongs to a user who must not lead this process."""


@dataclass(frozen=True, slots=True, eq=False)
class SocketFile:
    """The file of a listening socket: a name in a folder, while the name is the socket's.

    Attributes:
      folder: a descriptor of the folder; `close` ends it.
    """

    path: Path
    folder: int
    _identity: tuple[int, int]  # while the socket is open its inode's number cannot be another's

    @classmethod
    def found(cls, path: Path) -> SocketFile:
        """Return the file of a socket that another process has bound; raises OSError."""
        folder = open_folder(path.parent)
        try:
            with _looked_at(folder, path) as (found, _):
                if not stat.S_ISSOCK(found.st_mode):
                    raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
                return cls(path, folder, _identity(found))
        except OSError:
            os.close(folder)
            raise

    def give(self, endpoint: ListenEndpoint, policy: Policy) -> None:
        """Set the policy's owner, group and mode, unless the name is another file's now.

        Raises `ListenError`.
        """
        try:
            with suppress(FileNotFoundError):
                self._give(policy)
        except PermissionError as error:
            raise _not_given(endpoint, error) from error
        except OSError as error:
            raise listen_error(endpoint, errno_of(error)) from error

    def _give(self, policy: Policy) -> None:
        with _looked_at(self.folder, self.path) as (found, address):
            if _identity(found) != self._identity:
                return
            owner, group = _to_change(policy, found)
            # The link in /proc is followed to the very file; a path is not followed.
            if (owner, group) != (-1, -1):
                os.chown(address, owner, group, follow_symlinks=_THROUGH_PROC)
            if policy.mode is not None and policy.mode != stat.S_IMODE(found.st_mode):
                Path(address).chmod(policy.mode, follow_symlinks=_THROUGH_PROC)

    def remove(self) -> None:
        """Remove the file, unless the name is another file's; never raises."""
        with suppress(OSError):
            found = os.stat(self.path.name, dir_fd=self.folder, follow_symlinks=False)
            if _identity(found) == self._identity:
                os.unlink(self.path.name, dir_fd=self.folder)

    def close(self) -> None:
        """Close the folder's descriptor, once."""
        os.close(self.folder)


def bind_file(
    sock: socket.socket, endpoint: ListenEndpoint, path: Path, backlog: int, policy: Policy
) -> SocketFile:
    """Have a new socket listen at a path; return its file, which the caller closes.

    The file has the policy's owner, group and mode before a client can find it. It replaces a
    stale one.

    Raises:
      ListenError: the path is another socket's or another file's, or cannot be given away.
      OSError: the folder does not exist, or cannot be written to.
    """
    try:
        folder = open_folder(path.parent)
    except ForeignLinkError as error:
        raise ListenError(endpoint, "denied", str(error.strerror), error.errno) from error
    try:
        return SocketFile(path, folder, _Place(endpoint, path, folder, policy).bind(sock, backlog))
    except BaseException:
        os.close(folder)
        raise


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a socket's file will be, and whose."""

    endpoint: ListenEndpoint
    path: Path
    folder: int
    policy: Policy

    def bind(self, sock: socket.socket, backlog: int) -> tuple[int, int]:
        """Bind and listen in a private folder, move the file to its name; return its identity."""
        label = os.fsencode(self.path.name)[:_LABEL_MAX]
        with _private_folder(self.folder) as (name, room):
            at = f"/proc/self/fd/{room}" if _THROUGH_PROC else str(self.path.parent / name)
            sock.bind(os.fsencode(at) + b"/" + label)
            try:
                found = os.stat(label, dir_fd=room, follow_symlinks=False)
                self._give_away(label, room, found)
                sock.listen(backlog)
                self._move(label, room)
            except BaseException:
                os.unlink(label, dir_fd=room)
                raise
        return _identity(found)

    def _give_away(self, label: bytes, room: int, found: os.stat_result) -> None:
        if self.policy.mode is not None:  # by its owner, who may lack CAP_FOWNER afterwards
            os.chmod(label, self.policy.mode, dir_fd=room)
        owner, group = _to_change(self.policy, found)
        if (owner, group) != (-1, -1):
            try:
                os.chown(label, owner, group, dir_fd=room, follow_symlinks=False)
            except PermissionError as error:
                raise _not_given(self.endpoint, error) from error

    def _move(self, label: bytes, room: int) -> None:
        """Move a listening socket's file to its name, where no file or a stale one is."""
        name = self.path.name
        try:  # unlike rename(2), link(2) replaces nothing
            os.link(label, name, src_dir_fd=room, dst_dir_fd=self.folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            with suppress(FileNotFoundError):
                self._check_stale()
            os.rename(label, name, src_dir_fd=room, dst_dir_fd=self.folder)
        else:
            os.unlink(label, dir_fd=room)

    def _check_stale(self) -> None:
        """Raise `ListenError` unless the present file is a socket that may be replaced."""
        with _looked_at(self.folder, self.path) as (found, address):
            if not stat.S_ISSOCK(found.st_mode):
                sentence = "a file that is not a socket exists there"
                raise self._in_use(f"{sentence}: remove it, or choose another path")
            if found.st_uid not in (os.geteuid(), self.policy.owner):
                raise self._in_use(f"a socket of another user (uid {found.st_uid}) exists there")
            with new_socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(address) not in (errno.ECONNREFUSED, errno.ENOENT):
                    raise listen_error(self.endpoint, errno.EADDRINUSE)
            # Another daemon may have replaced the file meanwhile: its new socket must stay.
            now = os.stat(self.path.name, dir_fd=self.folder, follow_symlinks=False)
            if _identity(now) != _identity(found):
                raise listen_error(self.endpoint, errno.EADDRINUSE)

    def _in_use(self, sentence: str) -> ListenError:
        return ListenError(self.endpoint, "in_use", sentence, errno.EADDRINUSE)


def _not_given(endpoint: ListenEndpoint, error: OSError) -> ListenError:
    """Return the error for a chown(2) that this process may not do."""
    sentence = "only root can give a file to another user, or to a group it is not in"
    return ListenError(endpoint, "denied", sentence, error.errno)


def _to_change(policy: Policy, found: os.stat_result) -> tuple[int, int]:
    """Return owner and group for chown(2), each -1 where the policy asks for no change."""
    owner = found.st_uid if policy.owner is None else policy.owner
    group = found.st_gid if policy.group is None else policy.group
    return (
        -1 if owner == found.st_uid else owner,
        -1 if group == found.st_gid else group,
    )


@contextmanager
def _private_folder(folder: int) -> Iterator[tuple[str, int]]:
    """Make a folder of this user alone in another for a block; yield its name and descriptor."""
    name = f".{secrets.token_hex(8)}"
    os.mkdir(name, 0o700, dir_fd=folder)
    try:
        room = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        try:
            found = os.fstat(room)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:  # replaced meanwhile
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            os.fchmod(room, 0o700)  # the umask may have taken this user's own bits
            yield name, room
        finally:
            os.close(room)
    finally:
        with suppress(OSError):
            os.rmdir(name, dir_fd=folder)


@contextmanager
def _looked_at(folder: int, path: Path) -> Iterator[tuple[os.stat_result, str]]:
    """Yield what a name in a folder is, and an address of that very file, for a block.

    Without /proc the address is the path.
    """
    if not _THROUGH_PROC:
        yield os.stat(path.name, dir_fd=folder, follow_symlinks=False), str(path)
        return
    node = os.open(path.name, _NODE, dir_fd=folder)
    try:
        yield os.fstat(node), f"/proc/self/fd/{node}"
    finally:
        os.close(node)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


# ---- a folder by its path ----


def open_folder(path: Path) -> int:
    """Return a descriptor of a folder, walked to once; the caller closes it.

    Raises:
      ForeignLinkError: a link on the way belongs neither to this user nor to root.
      OSError: as openat(2).
    """
    if not _THROUGH_PROC:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    at = os.open("/" if path.is_absolute() else ".", _FOLDER)
    left = _components(str(path))
    links = 0
    try:
        while left:
            name = left.pop()
            try:
                following = os.open(name, _FOLDER, dir_fd=at)
            except NotADirectoryError:
                following, text = _follow(at, name)
                left += _components(text)
                links += 1
                if links > _LINKS_MAX:
                    os.close(following)
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            os.close(at)
            at = following
    except BaseException:
        os.close(at)
        raise
    return at


def _components(path: str) -> list[str]:
    """Return the names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name]


def _follow(at: int, name: str) -> tuple[int, str]:
    """Return the folder in which a link's text starts, as a descriptor, and the text."""
    link = os.open(name, _NODE, dir_fd=at)
    try:
        found = os.fstat(link)
        if not stat.S_ISLNK(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if found.st_uid not in (0, os.geteuid()):
            sentence = f"{name!r} on the path is a link of another user (uid {found.st_uid})"
            raise ForeignLinkError(errno.EACCES, sentence)
        if not found.st_size:  # /proc/PID/root: its text is of another mount namespace
            return os.open(name, _FOLDER & ~os.O_NOFOLLOW, dir_fd=at), ""
        text = os.readlink("", dir_fd=link)
    finally:
        os.close(link)
    return (os.open("/", _FOLDER) if text.startswith("/") else os.dup(at)), text
