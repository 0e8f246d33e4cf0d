"""The daemon's configuration as frozen values: `Config`, its `Route` and their `Policy`.

Owns: the declaration of every policy key (see `key`).  Must not know files, trio or pydantic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

from vsockproxy.address.endpoint import ListenEndpoint, Target, is_behind_a_mux
from vsockproxy.config import kinds
from vsockproxy.config.access import Rule
from vsockproxy.config.by_name import ByName
from vsockproxy.config.destination import Destinations, Pattern
from vsockproxy.config.guest import Guest
from vsockproxy.config.key import key
from vsockproxy.config.process import (
    AdminSettings,
    Limits,
    LogSettings,
    MetricsListen,
    PageChoice,
    ReloadSettings,
    TlsSettings,
    Written,
)
from vsockproxy.config.reach import Reach
from vsockproxy.config.request import By

Balance = Literal["first", "round_robin"]
Direct = Literal["auto", "off"]
HalfClose = Literal["auto", "forward", "hold"]
KeepAlive = float | Literal["auto"] | None
OverLimit = Literal["queue", "reject"]
ProxyVersion = Literal["off", "v1", "v2"]
PumpChoice = Literal["auto", "native", "portable"]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a route treats its connections; times are in seconds, None sets no bound.

    Each field is a key of ``[defaults]`` and of every ``[[route]]``.
    """

    connect_timeout: float = key(
        5.0,
        "Limit for one dial of the target, including a VMM's handshake and the PROXY header sent to"
        " it. Also the limit for a client's PROXY header, and for its request with `by`",
        kinds.TIMEOUT,
        group="connections",
    )
    handshake_timeout: float | None = key(
        None,
        "Limit for a VMM's answer to CONNECT, within `connect_timeout`. `off` allows all of"
        " `connect_timeout`. A guest whose vsock driver is not loaded yet never answers",
        kinds.BOUND,
        group="connections",
    )
    wait_for_guest: float | None = key(
        None,
        "How long a client is held while its target is down, boots or does not listen yet. The"
        " client is connected once the target is up. `off` resets it at once",
        kinds.BOUND,
        group="guests",
    )
    fail_fast: bool = key(
        False,
        "Resets clients at once, without a dial, while the target is known to be down. Cannot be"
        " combined with `wait_for_guest`",
        group="guests",
    )
    probe_interval: float | None = key(
        None,
        "Interval of dials that only check whether the target is up. The service behind it sees a"
        " connection without data",
        kinds.BOUND,
        group="guests",
    )
    ready_when_up: bool = key(
        False,
        "Reports the daemon as ready (`/readyz`) only while a target of the route is up. A target"
        " that is not up is dialled until it is",
        group="guests",
    )
    balance: Balance = key(
        "first",
        "Which of several `targets` is dialled. `first` takes the first one that is up, in the"
        " order written; `round_robin` takes those that are up in turn",
        group="guests",
    )
    idle_timeout: float | None = key(
        None,
        "Ends a connection after this long without a byte in either direction. A TCP peer is reset;"
        " one on a Unix socket or over AF_VSOCK sees a clean end, as after any close",
        kinds.BOUND,
        group="connections",
    )
    half_close_timeout: float | None = key(
        300.0,
        "After one side has ended its direction (FIN), ends the connection once the other side has"
        " sent nothing for this long",
        kinds.BOUND,
        group="connections",
    )
    half_close: HalfClose = key(
        "auto",
        "Whether a client's half-close (FIN) is passed on to the target at once. `hold` keeps it"
        " back until `half_close_hold`: for VMMs that answer a half-close by closing both"
        " directions. `auto` holds for a vsock-mux target and forwards for all others",
        group="connections",
    )
    half_close_hold: float = key(
        5.0,
        "How long both directions must be silent before a held FIN is passed on. A client that"
        " waits for the end of the connection waits this long; an answer that begins later is lost",
        kinds.TIME,
        group="connections",
    )
    linger_timeout: float = key(
        10.0,
        "How long the end of a connection waits, counted from its last progress, for a peer that"
        " still has to take what was sent to it. Then the socket is closed",
        kinds.TIME,
        group="connections",
    )
    max_lifetime: float | None = key(
        None,
        "Ends a connection this long after it was accepted, whatever it does",
        kinds.BOUND,
        group="connections",
    )
    drain_timeout: float = key(
        30.0,
        "How long live connections may continue once the daemon stops. `0` ends them at once",
        kinds.TIME,
        group="connections",
    )
    backlog: int = key(
        4096,
        "Length of the listener's queue of clients that are not accepted yet. The kernel caps it at"
        " `net.core.somaxconn`",
        kinds.NUMBER,
        group="connections",
    )
    access_log: bool = key(
        True, "Writes one log line for every connection, at its end", group="connections"
    )
    log_empty: bool = key(
        False,
        "Writes that line also for a connection without a byte in either direction, such as a check"
        " of a load balancer. A connection that failed or timed out always has its line",
        group="connections",
    )
    dial_on_data: bool = key(
        False,
        "Dials the target once the client has sent a byte: a check of a load balancer never reaches"
        " the guest. Not for protocols in which the server speaks first (SSH, SMTP, MySQL). A"
        " client that sends nothing is ended by `idle_timeout`",
        group="connections",
    )
    keepalive: KeepAlive = key(
        "auto",
        "TCP: probes a side that has been silent for this long, and ends the connection after 9"
        " more probes without an answer, at most 75 s apart. `auto` probes clients after 5 minutes"
        " and targets never: without probes a client whose machine lost power would hold two"
        " descriptors for ever; its client notices a dead target",
        kinds.KEEPALIVE,
        group="sockets",
    )
    user_timeout: float | None = key(
        None,
        "TCP: ends a connection whose sent data stays unacknowledged for this long. `off` is the"
        " kernel's own limit of about 15 minutes",
        kinds.USER_TIMEOUT,
        group="sockets",
    )
    nodelay: bool = key(
        True, "TCP: sends small segments at once (disables Nagle's algorithm)", group="sockets"
    )
    buffer_size: int | None = key(
        None,
        "vsock: how many bytes the other side may send before they are read. `auto` is the kernel's"
        " 256 KiB",
        kinds.SIZE,
        group="sockets",
    )
    buffer_max: int | None = key(
        None,
        "vsock: the upper limit of `buffer_size`. `auto` is the kernel's 256 KiB, so a larger"
        " `buffer_size` needs a larger `buffer_max`",
        kinds.SIZE,
        group="sockets",
    )
    direct: Direct = key(
        "auto",
        "Lets the pump accept and dial where no client needs a decision: see *Direct routes*",
        group="connections",
    )
    max_connections: int | None = key(
        None, "Connections of the route at the same time", kinds.COUNT, group="limits"
    )
    max_connections_per_source: int | None = key(
        None,
        "Connections of one source at the same time: an IPv4 address, an IPv6 /64 (a site can use"
        " any address below that), a CID, or a user of a Unix socket. A client over this limit is"
        " always reset: in the backlog it would block the clients behind it",
        kinds.COUNT,
        group="limits",
    )
    connection_rate: float | None = key(
        None,
        "New connections per second; fractions are allowed. After a pause, as many as one second"
        " allows may come at once",
        kinds.RATE,
        group="limits",
    )
    bandwidth: int | None = key(
        None,
        "Bytes per second in each direction, shared equally by all connections of the route. A"
        " reload that changes the route starts a new count; live connections keep the old one",
        kinds.BANDWIDTH,
        group="limits",
    )
    connection_bandwidth: int | None = key(
        None,
        "Bytes per second in each direction, of each connection",
        kinds.BANDWIDTH,
        group="limits",
    )
    over_limit: OverLimit = key(
        "queue",
        "What happens to clients over one of the other limits: `queue` leaves them in the"
        " listener's backlog until there is room, `reject` resets them",
        group="limits",
    )
    allow: tuple[Rule, ...] | None = key(
        None, "Only matching clients may connect; `off` allows all", kinds.ALLOW, group="access"
    )
    deny: tuple[Rule, ...] = key(
        (), "Denies matching clients, even if `allow` matches", kinds.RULES, group="access"
    )
    mode: int | None = key(
        None,
        'Mode of a Unix listener\'s file, as in `"0660"`. `auto` is what the umask leaves. A client'
        " needs write permission to connect",
        kinds.MODE,
        group="access",
    )
    owner: int | None = key(
        None,
        "Owner of a Unix listener's file; needs root. `auto` is the daemon's user",
        kinds.OWNER,
        group="access",
    )
    group: int | None = key(
        None,
        "Group of a Unix listener's file; the daemon's user must be a member. `auto` is the"
        " daemon's group",
        kinds.GROUP,
        group="access",
    )
    send_proxy: ProxyVersion = key(
        "off",
        "Sends the target a PROXY header of this version before the client's first byte",
        group="proxy",
    )
    accept_proxy: bool = key(
        False,
        "Expects a PROXY header (v1 or v2) from every client. A client that sends none within"
        " `connect_timeout`, or a malformed one, is reset",
        group="proxy",
    )
    proxy_trusted: tuple[Rule, ...] = key(
        (),
        "The clients whose headers are trusted; all others are reset. Required by `accept_proxy`",
        kinds.RULES,
        group="proxy",
    )
    target_allow: tuple[Pattern, ...] | None = key(
        None,
        "Only matching TCP targets are dialled; `off` allows all",
        kinds.TARGET_ALLOW,
        group="targets",
    )
    target_deny: tuple[Pattern, ...] = key(
        (),
        "Matching TCP targets are not dialled, even if `target_allow` matches",
        kinds.PATTERNS,
        group="targets",
    )

    @property
    def destinations(self) -> Destinations:
        """Return the rules that say which TCP targets may be dialled."""
        return Destinations(self.target_allow, self.target_deny)

    @property
    def reach(self) -> Reach:
        """Return the rules for targets that clients name; without ``target_allow``, none."""
        return Reach(self.target_allow or (), self.target_deny)


@dataclass(frozen=True, slots=True)
class Route:
    """A listener, and the target of its connections; ``others`` may be dialled in its place.

    With a `ByName` as ``target``, each connection has its own, and `targets` is empty.
    """

    name: str
    listen: ListenEndpoint
    target: Target | ByName
    policy: Policy = Policy()
    others: tuple[Target, ...] = ()

    @property
    def targets(self) -> tuple[Target, ...]:
        """Return all targets, in the order written; none where clients name them."""
        return () if isinstance(self.target, ByName) else (self.target, *self.others)

    @property
    def by(self) -> By | None:
        """Return what clients name their targets by; None for a route with fixed targets."""
        return self.target.by if isinstance(self.target, ByName) else None

    @property
    def leads_to(self) -> str:
        """Return the targets as text, or how clients name them."""
        return ", ".join(map(str, self.targets or (self.target,)))

    @property
    def to(self) -> list[str]:
        """Return where names lead that clients ask for, as ``NAME = TARGET``, in their order."""
        return list(map(str, self.target.to)) if isinstance(self.target, ByName) else []

    @property
    def has_mux(self) -> bool:
        """Return whether a target is behind a vsock-mux."""
        return any(is_behind_a_mux(target) for target in self.targets)

    @property
    def half_close_hold(self) -> float | None:
        """Return the seconds of silence before a client's FIN is passed on; None: at once."""
        return self.half_close_hold_to(mux=self.has_mux)

    def half_close_hold_to(self, *, mux: bool) -> float | None:
        """Return `half_close_hold` for a target that is behind a vsock-mux, or is not."""
        kind = self.policy.half_close
        return self.policy.half_close_hold if kind == "hold" or (kind == "auto" and mux) else None


@dataclass(frozen=True, slots=True)
class PumpSettings:
    """The keys of ``[pump]``."""

    choice: PumpChoice = key(
        "auto",
        "Which pump moves the bytes: `native` is C (Linux), `portable` is Python. `auto` is the"
        " native one where it was built; `native` fails where it was not",
    )
    threads: int | None = key(
        None,
        "Threads of the native pump, 1 to 64",
        kinds.THREADS,
        shown="by the number of processors",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's whole configuration.

    Attributes:
      metrics: where the metrics are served; empty: nowhere.
      guests: all of ``[guests]``, with or without a route to them.
      source: the file's name, ``environment`` or ``command line``.
      written: what routes that are added while it runs need of the file.
    """

    routes: tuple[Route, ...]
    metrics: tuple[MetricsListen, ...] = ()
    log: LogSettings = LogSettings()  # noqa: RUF009 - it is frozen
    pump: PumpSettings = PumpSettings()
    limits: Limits = Limits()  # noqa: RUF009 - it is frozen
    reload: ReloadSettings = ReloadSettings()  # noqa: RUF009 - it is frozen
    guests: tuple[Guest, ...] = ()
    admin: AdminSettings = AdminSettings()  # noqa: RUF009 - it is frozen
    metrics_tls: TlsSettings | None = None
    metrics_page: PageChoice = "auto"
    source: str = "command line"
    written: Written = field(default_factory=Written, repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits that change with anything but ``source``."""
        text = repr(replace(self, source=""))
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]
