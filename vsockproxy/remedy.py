"""What to do about a dial that failed: one sentence for each way to fail.

Owns: the table.  `errors` says what happened in words; this says whose move is next, at a
length that a log line has no room for.  Does no I/O and knows no machine.
"""

from __future__ import annotations

import errno
from typing import Final

from vsockproxy.errors import DialError


def remedy(error: DialError) -> str:
    """What to do about it; the most specific row of the table wins."""
    endpoint = error.endpoint
    for key in (
        (error.reason, endpoint.kind, error.errno),
        (error.reason, endpoint.kind, None),
        (error.reason, "", None),
    ):
        if key in _TABLE:
            return _TABLE[key].format(endpoint)
    return "the log of the daemon, and of the kernel (dmesg), may say more"


_START_SERVICE: Final = (
    "start the service in the guest, on vsock port {0.port} and any CID"
    " (in the guest: ss -l --vsock); wait if it is booting"
)
_START_VM: Final = "start the VM, or correct the path: {0.path}"
_ALLOW: Final = (
    "let the daemon's user write: setfacl -m u:USER:rw {0.path}, and x on its folders"
    " (docs/operations.md, Sockets of VMMs)"
)

# (reason, endpoint kind, errno) -> what to do; "" and None stand for any.
_TABLE: Final[dict[tuple[str, str, int | None], str]] = {
    ("no_transport", "vsock", None): (
        "start the VM that has CID {0.cid} (QEMU: -device vhost-vsock-pci,guest-cid={0.cid})"
        " or correct the CID; what `vsockproxy doctor` says `to guests` must be ok as well"
    ),
    ("refused", "vsock", None): _START_SERVICE,
    ("refused", "vsock-mux", None): _START_SERVICE,
    ("refused", "vsock-mux", errno.ECONNREFUSED): (
        "start the VM again: nothing is behind the file {0.path} any more"
    ),
    ("refused", "unix", None): (
        "start what served {0.path} again: nothing is behind the file any more"
    ),
    (
        "refused",
        "tcp",
        None,
    ): "start the service on port {0.port} there (ss -lntp on that machine)",
    ("guest", "", None): (
        "start the VM, or correct its table under guests: `vsockproxy guests` shows what each of"
        " them finds, and the VMs of this machine"
    ),
    ("timeout", "vsock", None): (
        "wait for its boot (--wait 60s) and look at its console; in the guest:"
        " modprobe vmw_vsock_virtio_transport"
    ),
    ("no_answer", "vsock-mux", None): (
        "wait for its boot (--wait 60s) and look at its console: the VMM took the connection,"
        " the guest says nothing"
    ),
    ("timeout", "tcp", None): (
        "see whether the machine is up and a firewall drops the packets, or raise connect_timeout"
    ),
    ("unreachable", "vsock", None): "wait for the guest's boot, and look at its console",
    ("unreachable", "tcp", None): "see `ip route get` for the address, and whether it is up",
    ("not_found", "vsock-mux", None): _START_VM,
    ("not_found", "unix", None): _START_VM,
    ("denied", "vsock-mux", None): _ALLOW,
    ("denied", "unix", None): _ALLOW,
    ("denied", "", None): "ask who runs the firewall, or the security module, of this machine",
    ("blocked", "", None): (
        "allow AF_VSOCK: in a container by its seccomp profile (docs/containers.md), under"
        " systemd by RestrictAddressFamilies=, else modprobe vsock"
    ),
    (
        "forbidden",
        "",
        None,
    ): "widen target_allow or target_deny of the route, or correct the target",
    ("busy", "", None): "the other side accepts too slowly: look at its load, or raise its backlog",
    ("name", "", None): "correct the name, or see what `getent hosts` says of it",
    ("protocol", "vsock-mux", None): (
        "give the VMM's vsock socket; a socket that leads to one port is spelt unix:{0.path}"
    ),
    ("no_descriptors", "", None): "raise LimitNOFILE= (ulimit -n), or fs.file-max",
    ("no_resources", "", None): "free memory, or widen net.ipv4.ip_local_port_range",
    ("unsupported", "", None): "reach the guest by its VMM's Unix socket, or run on Linux",
    ("invalid", "", None): "correct the address",
}
