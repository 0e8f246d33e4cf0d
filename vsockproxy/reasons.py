"""Why a dial or a listen fails: one table of causes, each with reason, sentence and remedy.

Owns: the closed list of reasons (they are metric labels) and every sentence and remedy.
Knows nothing of sockets, trio or configuration: an endpoint is anything with ``kind`` and a
readable ``str``.  `errors` turns a row of the table into an exception.
"""

from __future__ import annotations

import errno as _errno
import os
import sys
from typing import Final, Literal, NamedTuple, Protocol

Reason = Literal[
    "no_transport",  # no VM owns the CID, or no kernel transport serves its class
    "refused",  # the other side is up; nothing listens there, or its backlog is full
    "timeout",  # no answer within connect_timeout
    "no_answer",  # a VMM took the connection, and its guest has not answered CONNECT in time
    "blocked",  # a sandbox denies the address family
    "unreachable",  # the network or the transport has no route
    "not_found",  # a Unix socket's path does not exist
    "denied",  # file permissions, a firewall, or a privileged port
    "forbidden",  # target_allow and target_deny exclude every address of the target
    "busy",  # a Unix listener's backlog is full
    "too_many_held",  # the route holds as many clients as it may
    "client_left",  # the client went away before its dial
    "name",  # a host name does not resolve
    "guest",  # a guest of [guests] was not found, or its source gave no answer
    "protocol",  # the peer broke the vsock-mux handshake or the vsock protocol
    "in_use",  # listening: another socket has the address
    "not_local",  # listening: the address is not this machine's
    "no_descriptors",  # the file descriptor table is full
    "no_resources",  # no memory, buffers or local ports
    "unsupported",  # this system cannot do it
    "invalid",  # the kernel does not accept the address
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
"""Why dials fail while a guest is down, boots, or does not listen yet: worth another try."""

Operation = Literal["dial", "listen"]

Cause = int | str
"""An errno, or a `Reason` or other name of this table for a failure without one."""


class Addressed(Protocol):
    """What the table needs of an endpoint: its kind, and `str` for the operator."""

    @property
    def kind(self) -> str:
        """``tcp``, ``vsock``, ``unix``, ``vsock-mux``, ``fd`` or ``guest``."""
        ...


class Explanation(NamedTuple):
    """One row of the table: the reason, what happened, and what to do about it."""

    reason: Reason
    sentence: str
    remedy: str


def explain(
    operation: Operation, endpoint: Addressed, cause: Cause, detail: object = ""
) -> Explanation:
    """Return the row for a cause, filled in; the most specific row wins.

    ``detail`` is what the sentence quotes, where it quotes more than the endpoint.  An errno
    without a row gives the reason ``other`` and the system's own words.
    """
    row = _find(operation, endpoint, cause)
    if row is None:
        return Explanation("other", os.strerror(cause) if isinstance(cause, int) else cause, _LOGS)
    return Explanation(
        row.reason, row.sentence.format(endpoint, detail=detail), row.remedy.format(endpoint)
    )


def _find(operation: Operation, endpoint: Addressed, cause: Cause) -> Explanation | None:
    table = _TABLE | _DARWIN if sys.platform == "darwin" else _TABLE
    for key in (
        (operation, endpoint.kind, cause),
        (operation, "", cause),
        ("", endpoint.kind, cause),
        ("", "", cause),
    ):
        if key in table:
            return table[key]
    return None


def accept_remedy(code: int | None) -> str:
    """Return what to do about an errno of accept(2), after which clients stay in the backlog."""
    return f"clients stay queued{_ACCEPT.get(code, ' until it works again')}"


_MORE_MEMORY: Final = "; the machine or LimitAS= is short of memory"
_ACCEPT: Final[dict[int | None, str]] = {
    _errno.EMFILE: "; raise LimitNOFILE= (or ulimit -n)",
    _errno.ENFILE: "; raise the machine's fs.file-max",
    _errno.ENOBUFS: _MORE_MEMORY,
    _errno.ENOMEM: _MORE_MEMORY,
}

_LOGS: Final = "see the daemon's log, and the kernel's (dmesg)"

_START_SERVICE: Final = (
    "start the service in the guest, on vsock port {0.port} and any CID; wait if it is booting"
)
_START_VM: Final = "start the VM, or correct the path: {0.path}"
_WAIT_FOR_BOOT: Final = "wait for the guest's boot (wait_for_guest), and see its console"
_GRANT_WRITE: Final = (
    "let the daemon's user write: setfacl -m u:USER:rw {0.path} (docs/operations.md, Sockets of"
    " VMMs)"
)
_CORRECT: Final = "correct the address"

_SANDBOX: Final = Explanation(
    "blocked",
    "a sandbox denies AF_VSOCK",
    "allow it: --security-opt seccomp=seccomp-vsock.json (docs/containers.md), or AF_VSOCK in"
    " RestrictAddressFamilies=",
)
_NO_VSOCK: Final = Explanation(
    "blocked",
    "this kernel has no AF_VSOCK, or a sandbox denies it",
    "modprobe vsock; under systemd add AF_VSOCK to RestrictAddressFamilies=",
)
_LABELLED: Final = Explanation(
    "blocked",
    "AppArmor or SELinux denies AF_VSOCK",
    "run the container under a profile that allows it (docs/containers.md)",
)
_GUEST_SILENT: Final = "the guest does not answer: it is booting, hung, or has no vsock driver"
_NOTHING_LISTENS: Final = Explanation(
    "refused",
    "the guest is up, nothing listens on its port {0.port} (or its backlog is full)",
    _START_SERVICE,
)
_NOT_A_SOCKET: Final = Explanation(
    "refused", "{0.path} is not a socket", "correct the path, or remove the file"
)
_IN_USE: Final = Explanation("in_use", "another process listens on this socket", "stop it first")
_NO_FILE: Final = Explanation(
    "denied", "this user may not create a file there", "grant write access to the folder"
)
_MAC_HOST: Final = Explanation(
    "unsupported",
    "a Mac has AF_VSOCK only as a guest",
    "reach its guests by their VMM's Unix sockets: unix: (docs/platforms.md)",
)

# (operation, endpoint kind, cause) -> reason, sentence, remedy; "" stands for any.
# Sources: vsock(7), unix(7), tcp(7), connect(2), bind(2); net/vmw_vsock/af_vsock.c and
# drivers/vhost/vsock.c for the vsock rows; Darwin's vsock(4) for EAGAIN and EFAULT.
_TABLE: Final[dict[tuple[str, str, Cause], Explanation]] = {
    # ---- dialling a vsock ----
    ("dial", "vsock", _errno.ENODEV): Explanation(
        "no_transport",
        "no running VM owns CID {0.cid}, or vhost_vsock is not loaded",
        "start the VM with guest-cid={0.cid}, correct the CID, or modprobe vhost_vsock",
    ),
    # A vsock RST while connecting is ECONNRESET on Linux and EAGAIN on Darwin.
    ("dial", "vsock", _errno.ECONNRESET): _NOTHING_LISTENS,
    ("dial", "vsock", _errno.EAGAIN): _NOTHING_LISTENS,
    # Kernels of 2026 refuse at once while the guest's driver is not ready.
    ("dial", "vsock", _errno.ECONNREFUSED): Explanation("refused", _GUEST_SILENT, _WAIT_FOR_BOOT),
    ("dial", "vsock", _errno.EHOSTUNREACH): Explanation(
        "unreachable", _GUEST_SILENT, _WAIT_FOR_BOOT
    ),
    ("dial", "vsock", _errno.ETIMEDOUT): Explanation(
        "timeout",
        _GUEST_SILENT,
        "wait for its boot, and see its console; in the guest: modprobe vmw_vsock_virtio_transport",
    ),
    ("dial", "vsock", _errno.ENETUNREACH): Explanation(
        "unreachable",
        "the vsock transport does not carry CID {0.cid} port {0.port}",
        "use CID 2 on Hyper-V; in a network namespace in local mode, one of its own VMs",
    ),
    ("dial", "vsock", _errno.EFAULT): Explanation(
        "invalid", "CID {0.cid} cannot be reached from here", _CORRECT
    ),
    ("dial", "vsock", _errno.EINVAL): Explanation(
        "invalid", "the kernel does not accept this vsock address", _CORRECT
    ),
    ("dial", "vsock", _errno.EPROTO): Explanation(
        "protocol", "the guest's vsock driver broke the protocol", "see dmesg on both sides"
    ),
    # Only binding to a privileged port has another reason, and a dial binds to none.
    ("dial", "vsock", _errno.EACCES): _LABELLED,
    ("", "vsock", _errno.EPERM): _SANDBOX,
    ("", "vsock", _errno.EAFNOSUPPORT): _NO_VSOCK,
    # ---- dialling through a VMM's socket, or another Unix socket ----
    ("dial", "vsock-mux", _errno.ETIMEDOUT): Explanation(
        "no_answer", _GUEST_SILENT, _WAIT_FOR_BOOT
    ),
    ("dial", "vsock-mux", "closed_before_ok"): Explanation(
        "refused",
        "nothing listens on the guest's port {0.port}, the guest is not up yet, or the VMM has"
        " reached its connection limit (Firecracker and Cloud Hypervisor: 1023)",
        _START_SERVICE,
    ),
    ("dial", "vsock-mux", "protocol"): Explanation(
        "protocol",
        "the VMM answered {detail} instead of OK",
        "name the VMM's vsock socket; a socket that leads to one port is written unix:{0.path}",
    ),
    ("dial", "unix", _errno.ENOENT): Explanation(
        "not_found", "the socket does not exist", "start what serves it, or correct the path"
    ),
    ("dial", "vsock-mux", _errno.ENOENT): Explanation(
        "not_found", "the VMM's socket does not exist", _START_VM
    ),
    ("dial", "unix", _errno.ECONNREFUSED): Explanation(
        "refused",
        "nothing listens on the socket: its process has ended and left the file",
        "start what served {0.path} again",
    ),
    ("dial", "vsock-mux", _errno.ECONNREFUSED): Explanation(
        "refused",
        "nothing listens on the VMM's socket: the VMM has ended and left the file",
        "start the VM again",
    ),
    ("dial", "unix", "not_a_socket"): _NOT_A_SOCKET,
    ("dial", "vsock-mux", "not_a_socket"): _NOT_A_SOCKET,
    ("dial", "unix", _errno.EAGAIN): Explanation(
        "busy", "the listener's backlog is full", "look at its load, or raise its backlog"
    ),
    ("dial", "vsock-mux", _errno.EAGAIN): Explanation(
        "busy", "the VMM's backlog is full", "look at the VMM's load"
    ),
    ("dial", "unix", _errno.EACCES): Explanation(
        "denied", "the socket's mode does not let this user write", _GRANT_WRITE
    ),
    ("dial", "vsock-mux", _errno.EACCES): Explanation(
        "denied", "the mode of the VMM's socket does not let this user write", _GRANT_WRITE
    ),
    # ---- failures of a dial without an errno ----
    ("dial", "", "forbidden"): Explanation(
        "forbidden",
        "target_allow and target_deny exclude {detail}",
        "widen target_allow or target_deny of the route, or correct the target",
    ),
    ("dial", "", "out_of_reach"): Explanation(
        "forbidden", "{detail}", "widen target_allow of the route, if clients may go there"
    ),
    ("dial", "", "too_many_held"): Explanation(
        "too_many_held",
        "{detail} clients are held for it already, which is the limit",
        "start the target, or shorten wait_for_guest",
    ),
    ("dial", "", "client_left"): Explanation(
        "client_left", "the client left before the target was dialled", ""
    ),
    ("dial", "", "name"): Explanation(
        "name", "{detail}", "correct the name, or look it up with `getent hosts`"
    ),
    ("dial", "tcp", "no_thread"): Explanation(
        "no_resources",
        "no thread looks the name {0.host!r} up: {detail}",
        "raise TasksMax= (or ulimit -u)",
    ),
    ("", "tcp", "slow_resolver"): Explanation(
        "timeout",
        "the resolver gave no answer in time about {0.host!r}",
        "see /etc/resolv.conf, or write the address",
    ),
    ("dial", "tcp", "busy_resolver"): Explanation(
        "timeout",
        "{0.host!r} was not looked up in time: too many names had no answer before it",
        "see /etc/resolv.conf, or which clients ask for names of silent name servers",
    ),
    ("dial", "", "guest"): Explanation(
        "guest", "{detail}", "start the VM, or correct its table under guests: `vsockproxy guests`"
    ),
    ("dial", "", "not_dialled"): Explanation(
        "timeout", "it has not answered yet", "wait for it, and see its log"
    ),
    ("dial", "", "header_not_taken"): Explanation(
        "timeout", "it takes no PROXY header within connect_timeout", "see the target's own log"
    ),
    # ---- listening ----
    ("listen", "vsock", _errno.EADDRNOTAVAIL): Explanation(
        "not_local",
        "CID {0.cid} is not this machine's own",
        "listen on vsock::{0.port} (any CID)",
    ),
    ("listen", "vsock", _errno.ENODEV): Explanation(
        "no_transport", "no vsock transport is loaded", "modprobe vhost_vsock on a host of VMs"
    ),
    ("listen", "vsock", _errno.EACCES): Explanation(
        "denied",
        "ports below 1024 need CAP_NET_BIND_SERVICE; above them, AppArmor or SELinux denies it",
        "choose a higher port, or grant it",
    ),
    ("listen", "", _errno.EACCES): Explanation(
        "denied",
        "ports below 1024 need CAP_NET_BIND_SERVICE",
        "choose a higher one, or grant it",
    ),
    ("listen", "unix", _errno.EACCES): _NO_FILE,
    ("listen", "vsock-mux", _errno.EACCES): _NO_FILE,
    ("listen", "unix", _errno.EADDRINUSE): _IN_USE,
    ("listen", "vsock-mux", _errno.EADDRINUSE): _IN_USE,
    ("listen", "", _errno.ENOENT): Explanation(
        "not_found", "the folder of the socket does not exist", "create it, or correct the path"
    ),
    ("listen", "", _errno.EADDRINUSE): Explanation(
        "in_use",
        "another process listens there",
        "find it with `ss -lntp` (`ss -l --vsock` for vsock)",
    ),
    ("listen", "", _errno.EADDRNOTAVAIL): Explanation(
        "not_local", "the address is not this machine's own", "choose one of `ip address`"
    ),
    # ---- everything else ----
    ("dial", "", _errno.EADDRNOTAVAIL): Explanation(
        "no_resources", "no local port is free for it", "raise net.ipv4.ip_local_port_range"
    ),
    ("dial", "tcp", _errno.ECONNREFUSED): Explanation(
        "refused",
        "nothing listens there",
        "start the service on port {0.port} there (ss -lntp on that machine)",
    ),
    ("dial", "", _errno.ECONNRESET): Explanation(
        "refused", "the connection was reset while it was opened", "see the target's own log"
    ),
    ("dial", "", _errno.ETIMEDOUT): Explanation(
        "timeout",
        "no answer in time",
        "see whether the machine is up and a firewall drops packets, or raise connect_timeout",
    ),
    ("dial", "", _errno.ENETUNREACH): Explanation(
        "unreachable", "this machine has no route to the network", "see `ip route get`"
    ),
    ("dial", "", _errno.EHOSTUNREACH): Explanation(
        "unreachable", "there is no route to the host", "see `ip route get`, and whether it is up"
    ),
    ("", "", _errno.EACCES): Explanation(
        "denied", "permission denied", "see the rules of the firewall or the security module"
    ),
    ("", "", _errno.EPERM): Explanation(
        "denied", "the system forbids it", "see the rules of the firewall or the sandbox"
    ),
    ("", "", _errno.ENOTDIR): Explanation(
        "not_found", "a part of the path is not a folder", "correct the path"
    ),
    ("", "", _errno.EAFNOSUPPORT): Explanation(
        "unsupported", "this system has no such address family", "use another kind of address"
    ),
    ("", "", "no_vsock"): Explanation(
        "unsupported",
        "this system's Python has no AF_VSOCK",
        "reach guests by their VMM's Unix socket (unix: or vsock-mux:)",
    ),
    ("", "", _errno.EMFILE): Explanation(
        "no_descriptors",
        "the daemon's file descriptors are used up",
        "raise LimitNOFILE= (or ulimit -n)",
    ),
    ("", "", _errno.ENFILE): Explanation(
        "no_descriptors", "the system's file descriptors are used up", "raise fs.file-max"
    ),
    ("", "", _errno.ENOMEM): Explanation(
        "no_resources", "the kernel is out of memory", "free some memory"
    ),
    ("", "", _errno.ENOBUFS): Explanation(
        "no_resources", "the kernel is out of buffers", "free some memory"
    ),
    ("", "", _errno.EINVAL): Explanation(
        "invalid", "the kernel does not accept this address", _CORRECT
    ),
}

# Where Darwin means something else.  Only as a guest has it a vsock transport: on a host
# socket(2) itself says ENODEV (bsd/kern/vsock_domain.c).
_DARWIN: Final[dict[tuple[str, str, Cause], Explanation]] = {
    ("dial", "vsock", _errno.ENODEV): _MAC_HOST,
    ("listen", "vsock", _errno.ENODEV): _MAC_HOST,
}
