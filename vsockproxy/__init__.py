"""vsockproxy: byte streams between TCP and vsock.

The folders, along the way that a configuration and then a client's bytes take:

    cli -> config                 a file, a command line or the environment becomes a Config
      -> daemon                   reads and reloads it, opens every endpoint, runs all routes
         -> listen                one listener per route accepts its clients
            admit                 limits and access rules admit them
            relay                 one task per connection: from accept to its end
            request               reads where a client wants to go, on routes that let it say so
            dial                  chooses and connects the target
            pump                  moves the bytes (C threads, or trio alone)
         -> stats, connection     plain counters, and the live connections
      -> metrics, admin           read the counters, show them, run operators' commands
    doctor, top                   look at a machine and at a running daemon
    guests                        find a guest's address at each dial
    http                          the server under metrics and admin
    address, errors, log          the vocabulary under all of it

As a library it is trio's missing vsock layer:

    stream = await vsockproxy.open_vsock_stream(3, 80)
    await trio.serve_listeners(handler, await vsockproxy.open_vsock_listeners(1024))
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; to import typing would delay `__main__`
if TYPE_CHECKING:
    from typing import Any, Final

    from vsockproxy.address.endpoint import (
        AF_VSOCK,
        CID_ANY,
        CID_HOST,
        CID_HYPERVISOR,
        CID_LOCAL,
        PORT_ANY,
        VsockEndpoint,
        port_to_service_guid,
        service_guid_to_port,
    )
    from vsockproxy.address.grammar import parse_listen, parse_target
    from vsockproxy.connection import Connection, VsockConnection
    from vsockproxy.dial.dial import open_vsock_connection, open_vsock_stream
    from vsockproxy.dial.vsock import local_cid
    from vsockproxy.errors import AddressError, DialError, ListenError, VsockproxyError
    from vsockproxy.listen.bind import open_vsock_listeners

__version__ = "0.2.0"

__all__ = [
    "AF_VSOCK",
    "CID_ANY",
    "CID_HOST",
    "CID_HYPERVISOR",
    "CID_LOCAL",
    "PORT_ANY",
    "AddressError",
    "Connection",
    "DialError",
    "ListenError",
    "VsockConnection",
    "VsockEndpoint",
    "VsockproxyError",
    "__version__",
    "local_cid",
    "open_vsock_connection",
    "open_vsock_listeners",
    "open_vsock_stream",
    "parse_listen",
    "parse_target",
    "port_to_service_guid",
    "service_guid_to_port",
]

# Loaded at first use: `import vsockproxy.address.endpoint` must not pay for trio.
_HOMES: Final = {
    "AF_VSOCK": "address.endpoint",
    "CID_ANY": "address.endpoint",
    "CID_HOST": "address.endpoint",
    "CID_HYPERVISOR": "address.endpoint",
    "CID_LOCAL": "address.endpoint",
    "PORT_ANY": "address.endpoint",
    "AddressError": "errors",
    "Connection": "connection",
    "DialError": "errors",
    "ListenError": "errors",
    "VsockConnection": "connection",
    "VsockEndpoint": "address.endpoint",
    "VsockproxyError": "errors",
    "local_cid": "dial.vsock",
    "open_vsock_connection": "dial.dial",
    "open_vsock_listeners": "listen.bind",
    "open_vsock_stream": "dial.dial",
    "parse_listen": "address.grammar",
    "parse_target": "address.grammar",
    "port_to_service_guid": "address.endpoint",
    "service_guid_to_port": "address.endpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
