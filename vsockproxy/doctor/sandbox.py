"""The judgement of the process: its sandbox, descriptors and low ports.

Owns: the checks that do not depend on vsock.  Opens nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from vsockproxy.address.endpoint import TcpEndpoint, VsockEndpoint
from vsockproxy.admit.descriptors import reserve
from vsockproxy.config.settings import Config
from vsockproxy.doctor.finding import Finding, note, ok, problem
from vsockproxy.doctor.machine import Machine

_FEW: Final = 4096  # descriptors; with fewer, a busy proxy leaves clients queued; arbitrary
_PER_CONNECTION: Final = 2
_FIRST_VSOCK_PORT: Final = 1024  # LAST_RESERVED_PORT of net/vmw_vsock/af_vsock.c


def judge_sandbox(machine: Machine, config: Config | None) -> Iterator[Finding]:
    """Yield findings about the process; ``config`` None means no known needs."""
    yield _surroundings(machine)
    yield from _sandbox(machine)
    yield from _descriptors(machine, config)
    yield _ports(machine, config)


def _surroundings(machine: Machine) -> Finding:
    places = []
    if machine.container:
        places.append(f"a container ({machine.container})")
    if machine.vm:
        places.append(f"a VM ({machine.vm})")
    return ok("machine", " in ".join(places) or "neither a container nor a VM")


def _sandbox(machine: Machine) -> Iterator[Finding]:
    signs = []
    if machine.seccomp:
        signs.append("seccomp filters its system calls")
    if machine.no_new_privileges:
        signs.append("it cannot gain privileges")
    if machine.label:
        signs.append(f"{machine.label} confines it")
    if signs:
        yield note("sandbox", "; ".join(signs))


def _descriptors(machine: Machine, config: Config | None) -> Iterator[Finding]:
    if machine.descriptors is None:
        return
    soft, hard = machine.descriptors
    room = (hard - reserve(hard)) // _PER_CONNECTION
    text = f"{soft} open files, raised to {hard} at the start: {room} connections at once"
    needed = config and config.limits.max_connections
    if needed and needed > room:
        yield problem(
            "descriptors",
            f"{text}, and [limits] max_connections is {needed}",
            f"set LimitNOFILE={needed * _PER_CONNECTION + 128} in the unit, or ulimit -Hn",
        )
    elif hard < _FEW:
        yield note("descriptors", text, "for more, set LimitNOFILE= in the unit, or ulimit -Hn")
    else:
        yield ok("descriptors", text)


def _ports(machine: Machine, config: Config | None) -> Finding:
    first = machine.first_port
    if machine.may_bind_low_ports:
        return ok("low ports", "this process can listen on every port")
    low = [] if config is None else list(_low_listeners(config, first))
    if low:
        return problem(
            "low ports",
            f"{', '.join(low)}: this process cannot listen below {first} (TCP), 1024 (vsock)",
            "use a .socket unit, or CAP_NET_BIND_SERVICE (docs/operations.md, Ports below 1024)",
        )
    return ok("low ports", f"TCP from {first} and vsock from 1024 on; no route listens below")


def _low_listeners(config: Config, first: int) -> Iterator[str]:
    for route in config.routes:
        match route.listen:
            case TcpEndpoint(port=port) if port < first:
                yield str(route.listen)
            case VsockEndpoint(port=port) if port < _FIRST_VSOCK_PORT:
                yield str(route.listen)
