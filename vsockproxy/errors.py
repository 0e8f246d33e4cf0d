"""What can go wrong, as types, and the words an operator can act on.

Owns: the exception tree, the closed list of reasons (they are metric labels) and the
one table that turns an errno into a reason and a sentence.  Knows nothing of sockets,
trio or configuration: an endpoint is anything with ``kind`` and a readable ``str``.

The tree splits by whose move is next:

* `AddressError`, `ConfigError`: the operator wrote something that cannot be meant.
* `SocketError` (`DialError`, `ListenError`): the world outside said no.
"""

from __future__ import annotations

import errno as _errno
import os
import sys
from dataclasses import dataclass
from typing import Final, Literal, Protocol

Reason = Literal[
    "no_transport",  # no VM owns the CID, or no kernel transport serves its class
    "refused",  # the other side is up; nothing listens there, or its backlog is full
    "timeout",  # no answer within connect_timeout
    "no_answer",  # a VMM took the connection, and its guest has not answered CONNECT in time
    "blocked",  # a sandbox denies the address family
    "unreachable",  # the network or the transport says there is no way
    "not_found",  # a Unix socket's path does not exist
    "denied",  # file permissions, or a privileged port
    "forbidden",  # target_allow and target_deny do not let the route go there
    "busy",  # a Unix listener's backlog is full
    "too_many_held",  # as many clients wait for the target as may
    "client_left",  # the client went away while it waited for the target
    "name",  # a host name does not resolve
    "guest",  # a guest of [guests] was not found: its VM does not run, or nobody could say
    "protocol",  # a vsock-mux answered something that is not OK
    "in_use",  # listening: somebody has the address
    "not_local",  # listening: the address is not this machine's
    "no_descriptors",  # the file descriptor table is full
    "no_resources",  # no memory or no buffers
    "unsupported",  # this system cannot do it
    "invalid",  # the kernel does not take the address
    "other",
]
"""Why a dial or a listen failed; the label ``reason`` of the failure counters."""

ABSENT: Final = frozenset(
    {
        "no_transport",
        "refused",
        "timeout",
        "no_answer",
        "unreachable",
        "not_found",
        "busy",
        "name",
        "guest",
    }
)
"""Why dials fail while a guest is down, boots, or does not listen yet: time may mend it."""

Operation = Literal["dial", "listen"]


class Addressed(Protocol):
    """What an error needs of an endpoint: its kind, and `str` for the operator."""

    @property
    def kind(self) -> str:
        """``tcp``, ``vsock``, ``unix``, ``vsock-mux``, ``fd`` or ``guest``."""
        ...


class VsockproxyError(Exception):
    """The root of everything this package raises on purpose."""


class AddressError(VsockproxyError, ValueError):
    """A text that is not an address, or an address that cannot stand in that place."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration file.

    ``path`` is the key path (``route[2].listen``), empty where the file as a whole is
    meant; ``line`` and ``column`` count from 1 and are None where the format keeps no
    positions.
    """

    path: str
    message: str
    line: int | None = None
    column: int | None = None


class ConfigError(VsockproxyError):
    """Everything that is wrong in one configuration file, in the file's order."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join(self._render(problem) for problem in problems))

    def _render(self, problem: Problem) -> str:
        place = self.source
        if problem.line is not None:
            place += f":{problem.line}"
            if problem.column is not None:
                place += f":{problem.column}"
        if problem.path:
            place += f": {problem.path}"
        return f"{place}: {problem.message}"


class SocketError(VsockproxyError):
    """An operation on an endpoint failed.

    Attributes:
      operation: ``dial`` or ``listen``.
      endpoint: where to.
      reason: one of `Reason`; a metric label.
      explanation: a sentence with the remedy.
      errno: the kernel's number, or None where no system call said no.
    """

    operation: Operation

    def __init__(
        self, endpoint: Addressed, reason: Reason, explanation: str, errno: int | None = None
    ) -> None:
        self.endpoint = endpoint
        self.reason: Reason = reason
        self.explanation = explanation
        self.errno = errno
        code = f" [{_errno.errorcode.get(errno, errno)}]" if errno is not None else ""
        super().__init__(f"cannot {self.operation} {endpoint}: {explanation}{code}")


class DialError(SocketError):
    """A target could not be reached."""

    operation = "dial"

    def again(self, more: str = "") -> DialError:
        """The same once more, to be raised elsewhere; ``more`` goes on with its sentence."""
        return DialError(self.endpoint, self.reason, self.explanation + more, self.errno)


class ListenError(SocketError):
    """A listener could not be opened."""

    operation = "listen"


def dial_error(endpoint: Addressed, errno: int) -> DialError:
    """The `DialError` for an errno of socket(2), connect(2) or SO_ERROR."""
    reason, explanation = explain("dial", endpoint, errno)
    return DialError(endpoint, reason, explanation, errno)


def listen_error(endpoint: Addressed, errno: int) -> ListenError:
    """The `ListenError` for an errno of socket(2), bind(2) or listen(2)."""
    reason, explanation = explain("listen", endpoint, errno)
    return ListenError(endpoint, reason, explanation, errno)


def explain(operation: Operation, endpoint: Addressed, errno: int) -> tuple[Reason, str]:
    """The reason and the sentence for an errno; the most specific row of the table wins."""
    table = _TABLE | _DARWIN if sys.platform == "darwin" else _TABLE
    for key in (
        (operation, endpoint.kind, errno),
        (operation, "", errno),
        ("", endpoint.kind, errno),
        ("", "", errno),
    ):
        if key in table:
            reason, sentence = table[key]
            return reason, sentence.format(endpoint)
    return "other", os.strerror(errno)


def sentences(error: BaseException) -> list[str]:
    """What an error says, or each error of a group of any depth, after what it was about.

    What it was about are its notes (`BaseException.add_note`): ``route web: cannot ...``.
    """
    if isinstance(error, BaseExceptionGroup):
        return [sentence for inner in error.exceptions for sentence in sentences(inner)]
    return [": ".join([*getattr(error, "__notes__", ()), str(error)])]


_SANDBOX: Final = (
    "a sandbox denies AF_VSOCK: run the container with a seccomp profile that allows it"
    " (--security-opt seccomp=seccomp-vsock.json, docs/containers.md);"
    " under systemd add AF_VSOCK to RestrictAddressFamilies="
)
_LABELLED: Final = (
    "AppArmor or SELinux denies AF_VSOCK: run the container under a profile that allows it"
    " (docs/containers.md)"
)
_NO_VSOCK: Final = (
    "this kernel has no AF_VSOCK, or a sandbox denies it: modprobe vsock;"
    " under systemd add AF_VSOCK to RestrictAddressFamilies="
)
_GUEST_SILENT: Final = (
    "the guest does not answer: it is booting, hung, or has no vsock driver loaded"
)
_MAC_HOST: Final = (
    "a Mac has AF_VSOCK only as a guest: its own guests are reached by their VMM's Unix sockets"
    " (unix:, docs/platforms.md)"
)

# (operation, endpoint kind, errno) -> (reason, sentence); "" stands for any.
# Sources: vsock(7), unix(7), tcp(7), connect(2), bind(2); net/vmw_vsock/af_vsock.c and
# drivers/vhost/vsock.c for the vsock rows; Darwin's vsock(4) for EAGAIN and EFAULT.
_TABLE: Final[dict[tuple[str, str, int], tuple[Reason, str]]] = {
    ("dial", "vsock", _errno.ENODEV): (
        "no_transport",
        "no running VM owns CID {0.cid}, or vhost_vsock is not loaded: modprobe vhost_vsock",
    ),
    # A vsock RST while connecting is ECONNRESET on Linux and EAGAIN on Darwin.
    ("dial", "vsock", _errno.ECONNRESET): (
        "refused",
        "the guest is up, nothing listens on its port {0.port} (or its backlog is full)",
    ),
    ("dial", "vsock", _errno.EAGAIN): (
        "refused",
        "the guest is up, nothing listens on its port {0.port} (or its backlog is full)",
    ),
    # Kernels of 2026 refuse at once while the guest's driver is not ready.
    ("dial", "vsock", _errno.ECONNREFUSED): ("refused", _GUEST_SILENT),
    ("dial", "vsock", _errno.EHOSTUNREACH): ("unreachable", _GUEST_SILENT),
    ("dial", "vsock", _errno.ETIMEDOUT): ("timeout", _GUEST_SILENT),
    ("dial", "vsock-mux", _errno.ETIMEDOUT): ("no_answer", _GUEST_SILENT),
    ("dial", "vsock", _errno.ENETUNREACH): (
        "unreachable",
        "the vsock transport does not carry CID {0.cid} port {0.port}"
        " (a Hyper-V guest reaches only CID 2; a network namespace in local mode only its own VMs)",
    ),
    ("dial", "vsock", _errno.EFAULT): ("invalid", "CID {0.cid} cannot be reached from here"),
    ("dial", "vsock", _errno.EINVAL): ("invalid", "the kernel takes no such vsock address"),
    ("dial", "vsock", _errno.EPROTO): ("protocol", "the guest's vsock driver broke the protocol"),
    ("", "vsock", _errno.EPERM): ("blocked", _SANDBOX),
    # Only binding to a privileged port has another reason, and a dial binds to none.
    ("dial", "vsock", _errno.EACCES): ("blocked", _LABELLED),
    ("", "vsock", _errno.EAFNOSUPPORT): ("blocked", _NO_VSOCK),
    ("listen", "vsock", _errno.EADDRNOTAVAIL): (
        "not_local",
        "CID {0.cid} is not this machine's own: listen on vsock::{0.port} (any CID)",
    ),
    ("listen", "vsock", _errno.ENODEV): (
        "no_transport",
        "no vsock transport is loaded: modprobe vhost_vsock on a host of VMs",
    ),
    ("listen", "vsock", _errno.EACCES): (
        "denied",
        "ports below 1024 need CAP_NET_BIND_SERVICE; above them, AppArmor or SELinux denies it",
    ),
    ("listen", "", _errno.EACCES): (
        "denied",
        "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one, or grant it",
    ),
    ("dial", "unix", _errno.ENOENT): ("not_found", "the socket does not exist: is the VM running?"),
    ("dial", "vsock-mux", _errno.ENOENT): (
        "not_found",
        "the VMM's socket does not exist: is the VM running?",
    ),
    ("dial", "unix", _errno.ECONNREFUSED): (
        "refused",
        "nobody listens on the socket: its process has ended and left the file",
    ),
    ("dial", "vsock-mux", _errno.ECONNREFUSED): (
        "refused",
        "nobody listens on the VMM's socket: the VMM has ended and left the file",
    ),
    ("dial", "unix", _errno.EAGAIN): ("busy", "the listener's backlog is full"),
    ("dial", "vsock-mux", _errno.EAGAIN): ("busy", "the VMM's backlog is full"),
    ("dial", "unix", _errno.EACCES): ("denied", "the socket's mode does not let this user write"),
    ("dial", "vsock-mux", _errno.EACCES): (
        "denied",
        "the VMM's socket does not let this user write: check its mode and its folders'",
    ),
    ("listen", "unix", _errno.EACCES): ("denied", "this user may not create a file there"),
    ("listen", "vsock-mux", _errno.EACCES): ("denied", "this user may not create a file there"),
    ("listen", "unix", _errno.EADDRINUSE): ("in_use", "another process listens on this socket"),
    ("listen", "vsock-mux", _errno.EADDRINUSE): (
        "in_use",
        "another process listens on this socket",
    ),
    ("listen", "", _errno.ENOENT): ("not_found", "the folder of the socket does not exist"),
    ("listen", "", _errno.EADDRINUSE): (
        "in_use",
        "another process listens there: find it with `ss -lntp` (`ss -l --vsock` for vsock)",
    ),
    ("listen", "", _errno.EADDRNOTAVAIL): ("not_local", "the address is not this machine's own"),
    ("dial", "", _errno.EADDRNOTAVAIL): (
        "no_resources",
        "no local port is free for it: raise net.ipv4.ip_local_port_range",
    ),
    ("dial", "", _errno.ECONNREFUSED): ("refused", "nothing listens there"),
    ("dial", "", _errno.ECONNRESET): ("refused", "the connection was reset while it was opened"),
    ("dial", "", _errno.ETIMEDOUT): ("timeout", "no answer in time"),
    ("dial", "", _errno.ENETUNREACH): ("unreachable", "this machine has no route to the network"),
    ("dial", "", _errno.EHOSTUNREACH): ("unreachable", "there is no way to the host"),
    ("", "", _errno.EACCES): (
        "denied",
        "this user may not: a firewall or a security module has a rule against it",
    ),
    ("", "", _errno.EPERM): ("denied", "the system forbids it (a firewall, or a sandbox)"),
    ("", "", _errno.ENOTDIR): ("not_found", "a part of the path is not a folder"),
    ("", "", _errno.EAFNOSUPPORT): ("unsupported", "this system has no such address family"),
    ("", "", _errno.EMFILE): (
        "no_descriptors",
        "the daemon's file descriptors are used up: raise LimitNOFILE= (or ulimit -n)",
    ),
    ("", "", _errno.ENFILE): (
        "no_descriptors",
        "the system's file descriptors are used up: raise fs.file-max",
    ),
    ("", "", _errno.ENOMEM): ("no_resources", "the kernel is out of memory"),
    ("", "", _errno.ENOBUFS): ("no_resources", "the kernel is out of buffers"),
    ("", "", _errno.EINVAL): ("invalid", "the kernel takes no such address"),
}

# Where Darwin means something else.  Only as a guest has it a vsock transport: on a host
# socket(2) itself says ENODEV (bsd/kern/vsock_domain.c).
_DARWIN: Final[dict[tuple[str, str, int], tuple[Reason, str]]] = {
    ("dial", "vsock", _errno.ENODEV): ("unsupported", _MAC_HOST),
    ("listen", "vsock", _errno.ENODEV): ("unsupported", _MAC_HOST),
}
