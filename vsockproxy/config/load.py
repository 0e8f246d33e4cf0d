"""From a configuration file, or a command line, to the `Config` that the daemon runs.

Owns: what keys mean together. Routes are put together from ``[forward]`` and ``[[route]]``,
port ranges are spread, guests become addresses, and routes that cannot live side by side
are found. Everything that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from vsockproxy.address.endpoint import (
    PORT_ANY,
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
    check_absolute,
    check_guest_name,
)
from vsockproxy.address.grammar import expand_ports, parse_listen, parse_target
from vsockproxy.config.claims import Claims, is_loop
from vsockproxy.config.document import Document, Finding, KeyPath, Plain, read_document, spell
from vsockproxy.config.duration import AUTO, OFF
from vsockproxy.config.entry import Entry
from vsockproxy.config.guest import Cid, Guest, Mux, MuxGlob, StaticWay, UnixSockets
from vsockproxy.config.guest_table import WrongKeyError, read_guest
from vsockproxy.config.policy import fit_policy
from vsockproxy.config.schema import GuestTable, RouteTable, nearest, read_tables
from vsockproxy.config.settings import (
    AdminSettings,
    Config,
    Limits,
    LogSettings,
    MetricsListen,
    Policy,
    PumpSettings,
    Route,
    TlsSettings,
)
from vsockproxy.errors import AddressError, ConfigError
from vsockproxy.readable import count

COMMAND_LINE: Final = "command line"

_ADMIN: Final = AdminSettings()
_LONGEST_NAME: Final = 128
_NO_ROUTE: Final = (
    'has no route: write one under forward, as in 8080 = "3:80" (TOML) or 8080: 3:80 (YAML)'
)

_Endpoint = TypeVar("_Endpoint")


def load_config(path: Path) -> Config:
    """The configuration in a file; raises `ConfigError` with everything that is wrong in it."""
    return build_config(read_document(path))


def build_config(document: Document) -> Config:
    """The configuration that a document describes; raises `ConfigError`."""
    return _Builder(document).config()


def forward_config(
    pairs: Sequence[tuple[str, str]], tables: Mapping[str, Plain] | None = None
) -> Config:
    """The configuration of a command line's LISTEN and TARGET texts.

    ``tables`` are further tables as a file would have them, such as
    ``{"metrics": {"listen": "9490"}}``.  Raises `ConfigError`.
    """
    routes: list[Plain] = [{"listen": listen, "target": target} for listen, target in pairs]
    try:
        return build_config(Document(COMMAND_LINE, {**(tables or {}), "route": routes}))
    except ConfigError as error:
        # Nobody wrote a key here; every message quotes what was written.
        bare = tuple(replace(problem, path="") for problem in error.problems)
        raise ConfigError(COMMAND_LINE, bare) from error


class _Builder:
    """Puts one document's routes together; `config` is called once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._findings = list(document.findings)
        self._tables = read_tables(document.tree, self._findings)
        self._unread = {finding.path for finding in self._findings}
        self._claims = Claims()
        self._names: set[str] = set()
        self._guests: dict[str, Guest | None] = {}

    def config(self) -> Config:
        metrics = self._metrics()
        tls = self._tls()
        admin = self._admin()
        for name, table in self._tables.guests.items():
            self._guests[name] = self._read_guest(name, table)
        routes = tuple(route for entry in self._entries() for route in self._routes(entry))
        if not routes and not (self._findings and self._has_entries()):
            self._note((), _NO_ROUTE)
        if self._findings:
            raise self._document.error(self._findings)
        log, pump = self._tables.log, self._tables.pump
        return Config(
            routes=routes,
            metrics=metrics,
            log=LogSettings(level=log.level, format=log.format),
            pump=PumpSettings(choice=pump.choice, threads=pump.threads),
            limits=Limits(self._tables.limits.max_connections),
            guests=tuple(guest for guest in self._guests.values() if guest),
            admin=admin,
            metrics_tls=tls,
            source=self._document.source,
        )

    def _has_entries(self) -> bool:
        """Whether somebody tried to write a route, or a file that cannot be read at all."""
        tree = self._document.tree
        tried = any(path[:1] in ((), ("forward",), ("route",)) for path in self._unread)
        return bool(tried or tree.get("forward") or tree.get("route"))

    def _metrics(self) -> MetricsListen | None:
        path = ("metrics", "listen")
        text = self._tables.metrics.listen
        endpoint = None if text is None else self._parsed(parse_listen, text, path)
        if text is None or endpoint is None:
            return None
        if isinstance(endpoint, VsockEndpoint | MuxEndpoint):
            self._note(path, f"{text!r} cannot serve metrics: write tcp:, unix: or fd:")
            return None
        self._check_listen(text, endpoint, path)
        self._claims.take(endpoint, spell(path))
        return endpoint

    def _tls(self) -> TlsSettings | None:
        table = self._tables.metrics
        if table.certificate is not None:
            return TlsSettings(table.certificate, table.key, table.client_ca)
        for key in ("key", "client_ca"):
            if getattr(table, key) is not None:
                self._note(("metrics", key), "is for TLS: name the certificate as well")
        return None

    def _admin(self) -> AdminSettings:
        path = ("admin", "socket")
        table = self._tables.admin
        mode = _ADMIN.mode if table.mode is None else table.mode
        if table.socket in (AUTO, OFF):
            return AdminSettings(AUTO if table.socket == AUTO else None, mode, table.group)
        endpoint = self._parsed(UnixEndpoint, table.socket.removeprefix("unix:"), path)
        if endpoint is None:
            return _ADMIN
        if endpoint.path.startswith("@"):
            self._note(path, f"{table.socket!r} is no file, so everybody could steer: name one")
            return _ADMIN
        if owner := self._claims.take(endpoint, spell(path)):
            self._note(path, f"{table.socket!r} is taken already, by {owner}")
        return AdminSettings(endpoint, mode, table.group)

    def _read_guest(self, name: str, table: GuestTable) -> Guest | None:
        """A guest; None if something is wrong with it, which is told here."""
        path = ("guests", name)
        try:
            check_guest_name(name)
        except AddressError as error:
            self._note(path, str(error))
        if self._is_unread(path):
            return None
        try:
            return read_guest(name, table)
        except WrongKeyError as error:
            self._note((*path, error.key) if error.key else path, str(error))
            return None

    def _entries(self) -> Iterator[Entry]:
        tables = self._tables
        policy = tables.defaults.policy(tables.defaults)
        for listen, target in tables.forward.items():
            yield Entry(listen, (target,), policy, ("forward", listen))
        for index, table in enumerate(tables.route):
            path = ("route", index)
            targets = table.targets or (table.target and (table.target,))
            if table.listen is not None and targets and not (table.target and table.targets):
                yield Entry(
                    table.listen,
                    targets,
                    table.policy(tables.defaults),
                    path,
                    table.name,
                    table.to_host,
                    table.handshake,
                    long=True,
                    own=frozenset(table.model_fields_set),
                )
            else:
                self._note_incomplete(table, path)

    def _note_incomplete(self, table: RouteTable, path: KeyPath) -> None:
        if path in self._unread:
            return
        if table.target is not None and table.targets is not None:
            self._note((*path, "targets"), "stands beside target: write one of them")
        for key in ("listen", "target"):
            if key == "target" and (table.targets or (*path, "targets") in self._unread):
                continue
            if getattr(table, key) is None and (*path, key) not in self._unread:
                self._note((*path, key), "is missing: a route has a listen and a target")

    def _routes(self, entry: Entry) -> Iterator[Route]:
        """The routes of one entry, one for each port; the first port that is wrong ends them."""
        listens = self._parsed(expand_ports, entry.listen, entry.at("listen")) or ()
        for listen_text, target_texts in zip(listens, self._spread(entry, listens), strict=False):
            listen = self._listen(listen_text, entry)
            name = self._claim(entry, listen_text, listen, spread=len(listens) > 1)
            targets = self._targets(target_texts, entry, listen)
            if listen is None or name is None or not targets:
                return
            policy = self._policy(entry, listen, targets)
            if policy is None:
                return
            yield Route(name, listen, targets[0], policy, targets[1:])

    def _spread(self, entry: Entry, listens: Sequence[str]) -> Sequence[tuple[str, ...]]:
        """The targets of each port of a route's listener; none if they do not fit."""
        columns = []
        for text in entry.targets:
            ports = self._parsed(expand_ports, text, entry.at_target) or ()
            if listens and ports and len(listens) != len(ports):
                targets, listeners = count(len(ports), "port"), count(len(listens), "port")
                self._note(
                    entry.at_target,
                    f"{text!r} is {targets} and {entry.listen!r} is {listeners}:"
                    " write as many on both sides",
                )
                return ()
            columns.append(ports)
        return list(zip(*columns, strict=False))

    def _targets(
        self, texts: Sequence[str], entry: Entry, listen: ListenEndpoint | None
    ) -> tuple[Target, ...]:
        """The targets of one port; none if one of them is wrong."""
        targets: list[Target] = []
        for text in texts:
            target = self._target(text, entry)
            if target is None:
                return ()
            if listen is not None and is_loop(listen, target):
                self._note(entry.at_target, f"{text!r} is the route's own listener")
                return ()
            if target in targets:
                self._note(entry.at_target, f"{text!r} stands twice")
                return ()
            targets.append(target)
        return tuple(targets)

    def _policy(
        self, entry: Entry, listen: ListenEndpoint, targets: tuple[Target, ...]
    ) -> Policy | None:
        fitted = fit_policy(entry.policy, entry.own, listen, targets, self._find_cid)
        for key, message in fitted.complaints:
            path = entry.at_policy(key)
            if not self._is_unread(path):  # every route tells what is wrong with the defaults
                self._note(path, message)
        return None if fitted.complaints else fitted.policy

    def _find_cid(self, name: str) -> int | None:
        """The CID of a guest in a list of rules; None if the guest is wrong already."""
        if self._is_wrong(name):
            return None
        guest = self._guests.get(name)
        if guest is None:
            hint = nearest(name, self._guests)
            raise AddressError(f"no guest {name!r} is under guests" + (hint and f"; {hint}"))
        if isinstance(guest.way, Mux | MuxGlob | UnixSockets):
            raise AddressError(f"the guest {name!r} has no cid: its connections come by its VMM")
        if not isinstance(guest.way, Cid):
            raise AddressError(
                f"the CID of the guest {name!r} is found at each dial, and rules want one that"
                " stays: give the VM a fixed one, and write its number here"
            )
        return guest.way.cid

    def _is_wrong(self, guest: str) -> bool:
        """Whether what is wrong with a guest is told already, where it stands."""
        return ("guests",) in self._unread or self._is_unread(("guests", guest))

    def _listen(self, text: str, entry: Entry) -> ListenEndpoint | None:
        path = entry.at("listen")
        endpoint = self._parsed(parse_listen, text, path)
        if endpoint is None or not self._check_listen(text, endpoint, path):
            return None
        return endpoint

    def _check_listen(self, text: str, endpoint: ListenEndpoint, path: KeyPath) -> bool:
        """Whether clients can know where to connect to."""
        any_port = 0 if isinstance(endpoint, TcpEndpoint) else PORT_ANY
        if getattr(endpoint, "port", None) != any_port:
            return True
        self._note(path, f"{text!r} listens on any port that is free: name one")
        return False

    def _target(self, text: str, entry: Entry) -> Target | None:
        path = entry.at_target
        endpoint = self._parsed(parse_target, text, path)
        if isinstance(endpoint, GuestEndpoint):
            endpoint = self._resolve(text, endpoint, path)
        return endpoint and self._with_options(text, endpoint, entry)

    def _with_options(self, text: str, endpoint: Target, entry: Entry) -> Target | None:
        """The target with what the route says of it beside its address."""
        if isinstance(endpoint, GuestEndpoint):
            for key in sorted({"to_host", "handshake"} & entry.own):
                sentence = f"stands under guests.{endpoint.guest}, which is found at each dial"
                self._note(entry.at(key), sentence)
            return endpoint
        if entry.to_host:
            if not isinstance(endpoint, VsockEndpoint):
                self._note(entry.at("to_host"), f"is for a vsock target, and {text!r} is none")
                return None
            return replace(endpoint, to_host=True)
        if entry.handshake is not None:
            if not isinstance(endpoint, MuxEndpoint):
                self._note(entry.at("handshake"), f"is for a VMM's socket, and {text!r} is none")
                return None
            return replace(endpoint, handshake=entry.handshake)
        return endpoint

    def _resolve(self, text: str, endpoint: GuestEndpoint, path: KeyPath) -> Target | None:
        if self._is_wrong(endpoint.guest):
            return None
        guest = self._guests.get(endpoint.guest)
        if guest is None:
            hint = nearest(endpoint.guest, self._guests)
            self._note(path, _unknown_guest(text, endpoint.guest, hint))
            return None
        way = guest.way
        if isinstance(way, StaticWay):
            return self._parsed(lambda _: way.address(endpoint.port), text, path)
        return replace(endpoint, over="vsock-mux" if isinstance(way, MuxGlob) else "vsock")

    def _claim(
        self, entry: Entry, text: str, listen: ListenEndpoint | None, *, spread: bool
    ) -> str | None:
        """The name of the route on ``text``, once the name and the listener are its own.

        A name is a label of the metrics, and so short, printable and unique.
        """
        name = text if entry.name is None else entry.name
        if entry.name is not None and spread:
            name = f"{entry.name}-{getattr(listen, 'port', text)}"
        path = entry.at("listen" if entry.name is None else "name")
        if not name.isprintable() or name.strip() != name or not 0 < len(name) <= _LONGEST_NAME:
            self._note(path, f"{name!r} is no name: 1 to {_LONGEST_NAME} printable characters")
            return None
        owner = listen and self._claims.take(listen, f"the route {name!r}")
        if owner:
            self._note(entry.at("listen"), f"{text!r} is taken already, by {owner}")
            return None
        if name in self._names:
            self._note(path, f"{name!r} is the name of another route: choose one")
            return None
        self._names.add(name)
        return name

    def _parsed(
        self, parse: Callable[[str], _Endpoint], text: str, path: KeyPath
    ) -> _Endpoint | None:
        try:
            parsed = parse(text)
            if isinstance(parsed, UnixEndpoint | MuxEndpoint):
                check_absolute(parsed.path)
        except AddressError as error:
            self._note(path, str(error))
            return None
        return parsed

    def _is_unread(self, path: KeyPath) -> bool:
        """Whether something was found at a key or below it."""
        return any(finding.path[: len(path)] == path for finding in self._findings)

    def _note(self, path: KeyPath, message: str) -> None:
        self._findings.append(Finding(path, message))


def _unknown_guest(text: str, guest: str, hint: str) -> str:
    return (
        f"{text!r}: no guest {guest!r} is under guests; {hint + ' ' if hint else ''}"
        f"a TCP target is spelt tcp:{text}"
    )
