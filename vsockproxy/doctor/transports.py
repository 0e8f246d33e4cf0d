"""The judgement of AF_VSOCK: whether it can be opened, and which CIDs can be reached.

Owns: the checks of the family, the transports, the CID and the namespace.  Opens nothing: the
caller passes the result of its attempt.  Sources: vsock(7) and `vsock_assign_transport` in
net/vmw_vsock/af_vsock.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

from vsockproxy.address.endpoint import CID_ANY, CID_HOST, CID_LOCAL, GuestEndpoint, VsockEndpoint
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.doctor.machine import Machine

FAMILY: Final = "AF_VSOCK"
TO_GUESTS: Final = "to guests"
TO_HOST: Final = "to the host"
LOOPBACK: Final = "loopback"
LOCAL_CID: Final = "own CID"

_GUEST_MODULES: Final = ("vmw_vsock_virtio_transport", "hv_sock", "vmw_vsock_vmci_transport")


def judge_transports(
    machine: Machine, config: Config | None, *, attempt: int | None, cid: int | OSError | None
) -> Iterator[Finding]:
    """Yield findings about AF_VSOCK on this machine.

    Args:
      config: the routes to judge for; None for any that the proxy could have.
      attempt: the errno of opening an AF_VSOCK socket, 0 for success, None if it was not tried.
      cid: the local CID, or the error of reading it; None if it was not read.
    """
    dialled = [] if config is None else _dialled(config)
    yield _family(machine, attempt, needed=config is None or uses_vsock(config))
    yield _to_guests(machine, is_general=config is None, needed=any(map(_is_guest, dialled)))
    yield _to_host(machine, needed=any(map(_leaves_by_host, dialled)))
    yield _loopback(machine, needed=any(one.cid == CID_LOCAL for one in dialled))
    if cid is not None:
        yield _local_cid(cid)
    yield from _namespace(machine)


def _dialled(config: Config) -> list[VsockEndpoint]:
    by_host = {guest.name for guest in config.guests if guest.to_host}
    targets = (target for route in config.routes for target in route.targets)
    return [
        # A guest's CID is not known yet, but it is above 2.
        VsockEndpoint(CID_HOST + 1, target.port, target.guest in by_host)
        if isinstance(target, GuestEndpoint)
        else target
        for target in targets
        if isinstance(target, VsockEndpoint)
        or (isinstance(target, GuestEndpoint) and target.over == "vsock")
    ]


def uses_vsock(config: Config) -> bool:
    """Return whether a route listens on AF_VSOCK or dials it."""
    listens = any(isinstance(route.listen, VsockEndpoint) for route in config.routes)
    return listens or bool(_dialled(config))


def _is_guest(endpoint: VsockEndpoint) -> bool:
    return endpoint.cid > CID_HOST and not endpoint.to_host


def _leaves_by_host(endpoint: VsockEndpoint) -> bool:
    return endpoint.to_host or endpoint.cid in (0, CID_HOST)


def _family(machine: Machine, attempt: int | None, *, needed: bool) -> Finding:
    if attempt == 0:
        return ok(FAMILY, "the kernel has it, and this process can open it")
    if attempt is None:
        if machine.has_vsock:
            return ok(FAMILY, "the kernel has it")
        text = "not in the kernel"
    elif machine.has_vsock is not False:
        return _denied(machine, attempt)
    else:
        text = f"not in the kernel ({errno.errorcode.get(attempt, attempt)})"
    if not needed:
        return note(FAMILY, f"{text}; no route needs it")
    return problem(FAMILY, text, _load(machine, "vsock"))


def _denied(machine: Machine, attempt: int) -> Finding:
    """Return the problem of a family that the kernel has and a sandbox denies."""
    text = f"denied to this process ({errno.errorcode.get(attempt, attempt)})"
    if attempt == errno.EACCES and machine.label:
        return problem(
            FAMILY,
            f"{text}: AppArmor or SELinux confines it as {machine.label!r}",
            "use a profile that allows AF_VSOCK (docs/containers.md)",
        )
    if machine.container:
        return problem(
            FAMILY,
            f"{text}: the container's seccomp profile",
            "start it with --security-opt seccomp=seccomp-vsock.json (docs/containers.md)",
        )
    if machine.seccomp:
        return problem(
            FAMILY,
            f"{text}: a seccomp filter, such as systemd's",
            "add AF_VSOCK to RestrictAddressFamilies= of the unit",
        )
    return problem(FAMILY, text, "see dmesg, and check the sandbox of this process")


def _to_guests(machine: Machine, *, is_general: bool, needed: bool) -> Finding:
    owner = "vhost_vsock"
    if machine.has(owner):
        return ok(TO_GUESTS, f"{owner} carries connections to the VMs of this machine")
    if machine.has("vmw_vsock_vmci_transport"):
        return ok(TO_GUESTS, "vmw_vsock_vmci_transport carries connections to VMware's VMs")
    if machine.loaded is None:
        return note(TO_GUESTS, "unknown: the kernel's modules cannot be listed")
    text = "vhost_vsock is not loaded: VMs of this machine cannot be reached by CID"
    is_guest = any(map(machine.has, _GUEST_MODULES))
    if is_guest:
        text += "; a CID above 2 goes to the hypervisor"
    if needed or (is_general and not is_guest):
        return problem(TO_GUESTS, text, _load(machine, owner))
    return note(TO_GUESTS, text)


def _to_host(machine: Machine, *, needed: bool) -> Finding:
    owner = next(filter(machine.has, _GUEST_MODULES), None)
    if owner is not None:
        return ok(TO_HOST, f"{owner} carries connections to the hypervisor")
    if machine.has_virtio_vsock:
        text = "this VM has a vsock device but no driver for it"
        load = _load(machine, "vmw_vsock_virtio_transport")
        return (problem if needed else note)(TO_HOST, text, load)
    if not needed:
        return ok(TO_HOST, "no transport; a host of VMs needs none")
    return problem(
        TO_HOST,
        "a route needs the hypervisor (CID 0 or 2, or to_host), but no transport is loaded",
        "run it in a VM that has a vsock device, or correct the CID",
    )


def _loopback(machine: Machine, *, needed: bool) -> Finding:
    owner = "vsock_loopback"
    if machine.has(owner):
        return ok(LOOPBACK, f"{owner} carries CID 1, this machine itself")
    text = "vsock_loopback is not loaded: CID 1 is not this machine"
    if needed:
        return problem(LOOPBACK, text, _load(machine, owner))
    return ok(LOOPBACK, "no transport for CID 1, and no route needs it")


def _local_cid(cid: int | OSError) -> Finding:
    if isinstance(cid, OSError):
        return note(LOCAL_CID, describe_cid_error(cid))
    if cid == CID_ANY:
        return note(LOCAL_CID, describe_cid(cid))
    return ok(LOCAL_CID, describe_cid(cid))


def describe_cid(cid: int) -> str:
    """Return the meaning of a local CID."""
    if cid == CID_ANY:
        return "none: no transport to guests or to a host is loaded (modprobe vhost_vsock)"
    if cid == CID_HOST:
        return "2: this machine is a host; its VMs reach it as CID 2"
    if cid == CID_LOCAL:
        return "1: loopback only; this machine reaches only itself by vsock"
    return f"{cid}: this machine is a guest; its host reaches it as CID {cid}"


def describe_cid_error(error: OSError) -> str:
    """Return a sentence for an error of reading the local CID, which the proxy does not need."""
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "unknown: /dev/vsock does not exist (no vsock module, or a sandbox hides it)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "unknown: permission denied for /dev/vsock; use sudo, or chmod 0444 it"
    return f"unknown: cannot read /dev/vsock: {error.strerror or error}"


def _namespace(machine: Machine) -> Iterator[Finding]:
    if machine.namespace == "local":
        yield note(
            "namespace", "vsock is local: only VMs started in this network namespace can be reached"
        )
    elif machine.namespace:
        yield ok("namespace", f"vsock is {machine.namespace}: CIDs are those of the whole machine")


def _load(machine: Machine, module: str) -> str:
    """Return the remedy for a missing module."""
    if machine.container:
        return f"on the container's host: modprobe {module}"
    if machine.shipped is not None and module not in machine.shipped:
        return (
            f"this kernel ({machine.kernel}) lacks {module}: install the full kernel"
            " package (Debian: linux-image-amd64 in place of the cloud one;"
            " Ubuntu: linux-modules-extra)"
        )
    return f"modprobe {module}; to load it at boot, add {module} to /etc/modules-load.d/vsock.conf"
