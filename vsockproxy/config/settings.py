"""A route and its policy, as frozen values: what the daemon was told to do.

Owns: `Policy`, `Route` and `Config`, with the defaults.  Made by `config` from a file,
by the command line for one-shot use, and by hand in tests; read by everything above.
Knows nothing of files, sockets or trio.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from vsockproxy.address.endpoint import (
    FdEndpoint,
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
)
from vsockproxy.config.access import Access, Rule
from vsockproxy.config.destination import Destinations, Pattern
from vsockproxy.config.guest import Guest

Balance = Literal["first", "round_robin"]
HalfClose = Literal["auto", "forward", "hold"]
KeepAlive = float | Literal["auto"] | None
OverLimit = Literal["queue", "reject"]
MissingFolder = Literal["auto", "wait", "fail"]
ProxyVersion = Literal["off", "v1", "v2"]
LogFormat = Literal["auto", "human", "logfmt", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
PumpChoice = Literal["auto", "native", "portable"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a route treats its connections; times are seconds, None is no bound.

    Attributes:
      connect_timeout: for one dial, handshake included; and for a client's PROXY header.
      handshake_timeout: for a VMM's answer to CONNECT, within ``connect_timeout``.
      wait_for_guest: how long a client is held while its target is absent; None refuses it.
      fail_fast: whether clients of a target that is known to be down are refused at once.
      probe_interval: between two dials that only ask whether a target is there.
      ready_when_up: whether the daemon is ready only while a target of the route is up.
      balance: which of several targets is dialled: the ``first`` that is up, or by turns.
      idle_timeout: no byte either way for so long ends the connection.
      half_close_timeout: after one side's EOF, no byte from the other for so long ends it.
      half_close: whether a client's FIN is passed on. ``hold`` keeps the write side open,
        for VMMs that answer a half-close by closing both ways; ``auto`` holds for
        vsock-mux and forwards for the rest.
      max_lifetime: how long a connection may last, from accept to close.
      drain_timeout: how long live connections may go on once the route stops.
      backlog: of the listener; the kernel caps it at net.core.somaxconn.
      access_log: whether every connection's end is a line of the log.
      keepalive: TCP probes after so long without a byte, on both sides; ``auto`` is 5
        minutes on the client's, where it costs no system call, and none on the target's.
      user_timeout: TCP gives a connection up when sent data stays unacknowledged so long.
      nodelay: whether TCP sends small pieces at once.
      buffer_size, buffer_max: bytes of a vsock's receive buffer; None is the
        kernel's own.
      max_connections: how many may be open at once.
      max_connections_per_source: the same for one `access.Peer.source`.
      connection_rate: new connections in a second; after a pause one second's worth at once.
      bandwidth, connection_bandwidth: bytes a second, each way, of all the route's
        connections together and of each.
      over_limit: whether clients over a limit wait in the backlog or are reset.
      allow, deny: who may connect (`access.Access`); ``allow`` None is everybody.
      mode, owner, group: of a Unix listener's file; None is the umask's, and our own.
      missing_folder: whether a Unix listener waits for its folder or is an error; ``auto``
        waits for that of a vsock-mux, which may come with the VMM.
      send_proxy: the PROXY header that the target gets before the client's bytes.
      accept_proxy: whether each client, which `proxy_trusted` must name, sends one first.
      target_allow, target_deny: where a TCP target may be (`destination.Destinations`);
        ``target_allow`` None is anywhere.
    """

    connect_timeout: float = 5.0
    handshake_timeout: float | None = None
    wait_for_guest: float | None = None
    fail_fast: bool = False
    probe_interval: float | None = None
    ready_when_up: bool = False
    balance: Balance = "first"
    idle_timeout: float | None = None
    half_close_timeout: float | None = 300.0
    half_close: HalfClose = "auto"
    max_lifetime: float | None = None
    drain_timeout: float = 30.0
    backlog: int = 4096
    access_log: bool = True
    keepalive: KeepAlive = "auto"
    user_timeout: float | None = None
    nodelay: bool = True
    buffer_size: int | None = None
    buffer_max: int | None = None
    max_connections: int | None = None
    max_connections_per_source: int | None = None
    connection_rate: float | None = None
    bandwidth: int | None = None
    connection_bandwidth: int | None = None
    over_limit: OverLimit = "queue"
    allow: tuple[Rule, ...] | None = None
    deny: tuple[Rule, ...] = ()
    mode: int | None = None
    owner: int | None = None
    group: int | None = None
    missing_folder: MissingFolder = "auto"
    send_proxy: ProxyVersion = "off"
    accept_proxy: bool = False
    proxy_trusted: tuple[Rule, ...] = ()
    target_allow: tuple[Pattern, ...] | None = None
    target_deny: tuple[Pattern, ...] = ()

    @property
    def access(self) -> Access:
        """Who may connect."""
        return Access(self.allow, self.deny)

    def waits_for_folder(self, listen: ListenEndpoint) -> bool:
        """Whether a listener whose folder is not there is bound once it is."""
        if self.missing_folder == "auto":
            return isinstance(listen, MuxEndpoint)
        return self.missing_folder == "wait"

    @property
    def destinations(self) -> Destinations:
        """Where a TCP target may be."""
        return Destinations(self.target_allow, self.target_deny)


@dataclass(frozen=True, slots=True)
class Route:
    """One listener, and the target that its connections go to, or ``others`` in its place."""

    name: str
    listen: ListenEndpoint
    target: Target
    policy: Policy = Policy()
    others: tuple[Target, ...] = ()

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets, in the order in which they were written."""
        return (self.target, *self.others)

    @property
    def holds_half_close(self) -> bool:
        """Whether a client's FIN stays here instead of going on to the target."""
        if self.policy.half_close == "auto":
            return any(_is_of_a_vmm(target) for target in self.targets)
        return self.policy.half_close == "hold"


def _is_of_a_vmm(target: Target) -> bool:
    """Whether a target is behind a VMM's socket, as far as that is known beforehand."""
    return isinstance(target, MuxEndpoint) or (
        isinstance(target, GuestEndpoint) and target.over == "vsock-mux"
    )


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how; ``auto`` is human on a terminal and logfmt elsewhere."""

    level: LogLevel = "info"
    format: LogFormat = "auto"


@dataclass(frozen=True, slots=True)
class PumpSettings:
    """Which pump moves the bytes, and on how many threads (the native one)."""

    choice: PumpChoice = "auto"
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What all routes together may have; None is no bound."""

    max_connections: int | None = None


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Where the daemon is asked and steered, and who may: a Unix socket's file.

    ``socket`` ``auto`` is the service manager's folder, if there is one; None is nowhere.
    ``group`` None is our own.
    """

    socket: UnixEndpoint | Literal["auto"] | None = "auto"
    mode: int = 0o600
    group: int | None = None

    @property
    def listen(self) -> UnixEndpoint | None:
        """The socket, where it is known."""
        return self.socket if isinstance(self.socket, UnixEndpoint) else None


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Files in PEM: a server's certificate and key, and whose clients' certificates it wants.

    ``key`` None is in the certificate's file; ``client_ca`` None asks for none.
    """

    certificate: str
    key: str | None = None
    client_ca: str | None = None


MetricsListen = TcpEndpoint | UnixEndpoint | FdEndpoint


@dataclass(frozen=True, slots=True)
class Config:
    """Everything the daemon was told; ``source`` names the file, or the command line.

    ``guests`` are all of ``[guests]``, whether a route leads to them or not.
    """

    routes: tuple[Route, ...]
    metrics: MetricsListen | None = None
    log: LogSettings = LogSettings()
    pump: PumpSettings = PumpSettings()
    limits: Limits = Limits()
    guests: tuple[Guest, ...] = ()
    admin: AdminSettings = AdminSettings()
    metrics_tls: TlsSettings | None = None
    source: str = "command line"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when anything of it does."""
        return hashlib.sha256(repr(self).encode(errors="surrogateescape")).hexdigest()[:12]
