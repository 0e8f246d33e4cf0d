"""From a configuration file, or a command line, to the `Config` that the daemon runs.

Owns: what keys mean together.  Routes are built from ``[forward]`` and ``[[route]]``, port
ranges are expanded, guests are resolved to addresses, and conflicts between routes are found.
All problems of a configuration are reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

from vsockproxy.address.endpoint import (
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    VsockEndpoint,
    check_guest_name,
    check_path,
)
from vsockproxy.address.grammar import expand_ports, parse_target
from vsockproxy.config.claims import Claims, is_loop
from vsockproxy.config.document import Document, KeyPath, Plain, write_path
from vsockproxy.config.entry import Entry
from vsockproxy.config.file import read_document
from vsockproxy.config.guest import Cid, Guest, Mux, MuxGlob, StaticWay, UnixSockets
from vsockproxy.config.guest_table import read_guest
from vsockproxy.config.policy import fit_policy
from vsockproxy.config.problems import Problems
from vsockproxy.config.schema import GuestTable, RouteTable
from vsockproxy.config.serving import (
    ADMIN_SOCKET,
    METRICS_LISTEN,
    read_admin,
    read_listen,
    read_metrics,
    read_tls,
    tls_problems,
)
from vsockproxy.config.settings import (
    AdminSettings,
    Config,
    Limits,
    LogSettings,
    Policy,
    PumpSettings,
    Route,
)
from vsockproxy.config.tables import nearest, read_tables
from vsockproxy.errors import AddressError, ConfigError
from vsockproxy.readable import count

COMMAND_LINE: Final = "command line"

_LONGEST_NAME: Final = 128
_NO_ROUTE: Final = (
    'has no route: write one under forward, as in 8080 = "3:80" (TOML) or 8080: 3:80 (YAML)'
)

_Endpoint = TypeVar("_Endpoint")


def load_config(path: Path) -> Config:
    """Return the configuration in a file.

    Raises:
      ConfigError: the file cannot be read or used; the error has all of its problems.
    """
    return build_config(read_document(path))


def build_config(document: Document) -> Config:
    """Return the configuration that a document describes.

    Raises:
      ConfigError: with all problems of the document.
    """
    return _Builder(document).config()


def forward_config(
    pairs: Sequence[tuple[str, str]], tables: Mapping[str, Plain] | None = None
) -> Config:
    """Return the configuration of a command line's LISTEN and TARGET texts.

    Args:
      tables: further tables in the form of a file, as in ``{"metrics": {"listen": "9490"}}``.

    Raises:
      ConfigError: with all problems; without key paths, which no command line has.
    """
    routes: list[Plain] = [{"listen": listen, "target": target} for listen, target in pairs]
    try:
        return build_config(Document(COMMAND_LINE, {**(tables or {}), "route": routes}))
    except ConfigError as error:
        # Every message quotes the text; a command line has no key paths.
        bare = tuple(replace(problem, path="") for problem in error.problems)
        raise ConfigError(COMMAND_LINE, bare) from error


class _Builder:
    """Builds the configuration of one document; `config` is called once."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._tables, problems = read_tables(document.tree)
        self._problems = Problems([*document.problems, *problems])
        self._unread = {problem.path for problem in self._problems.found}
        self._claims = Claims()
        self._names: set[str] = set()
        self._guests: dict[str, Guest | None] = {}

    def config(self) -> Config:
        metrics, admin = None, AdminSettings()
        with self._problems.collecting(METRICS_LISTEN):
            metrics = read_metrics(self._tables.metrics, self._claims)
        self._problems.found.extend(tls_problems(self._tables.metrics))
        with self._problems.collecting(ADMIN_SOCKET):
            admin = read_admin(self._tables.admin, self._claims)
        for name, table in self._tables.guests.items():
            self._guests[name] = self._read_guest(name, table)
        routes = tuple(route for entry in self._entries() for route in self._routes(entry))
        if not routes and not (self._problems.found and self._has_entries()):
            self._problems.add((), _NO_ROUTE)
        if self._problems.found:
            raise self._document.error(self._problems.found)
        return Config(
            routes=routes,
            metrics=metrics,
            log=LogSettings(**self._tables.log.model_dump()),
            pump=PumpSettings(**self._tables.pump.model_dump()),
            limits=Limits(**self._tables.limits.model_dump()),
            guests=tuple(guest for guest in self._guests.values() if guest),
            admin=admin,
            metrics_tls=read_tls(self._tables.metrics),
            source=self._document.source,
        )

    def _has_entries(self) -> bool:
        """Return whether the document has a route, valid or not, or no readable tree."""
        tree = self._document.tree
        tried = any(path[:1] in ((), ("forward",), ("route",)) for path in self._unread)
        return bool(tried or tree.get("forward") or tree.get("route"))

    def _read_guest(self, name: str, table: GuestTable) -> Guest | None:
        """Return a guest; None if it has a problem, which is noted."""
        path = ("guests", name)
        with self._problems.collecting(path):
            check_guest_name(name)
        if self._problems.are_at(path):
            return None
        with self._problems.collecting(path):
            return read_guest(name, table)
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
            self._problems.add(
                (*path, "targets"), "cannot be combined with target: remove one of them"
            )
        for key in ("listen", "target"):
            if key == "target" and (table.targets or (*path, "targets") in self._unread):
                continue
            if getattr(table, key) is None and (*path, key) not in self._unread:
                self._problems.add((*path, key), "is missing: a route needs listen and target")

    def _routes(self, entry: Entry) -> Iterator[Route]:
        """Yield the routes of one entry, one per port, up to the first port with a problem."""
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
        """Return the targets of each port of a route's listener; none if their numbers differ."""
        columns = []
        for text in entry.targets:
            ports = self._parsed(expand_ports, text, entry.at_target) or ()
            if listens and ports and len(listens) != len(ports):
                targets, listeners = count(len(ports), "port"), count(len(listens), "port")
                self._problems.add(
                    entry.at_target,
                    f"{text!r} has {targets} and {entry.listen!r} has {listeners}:"
                    " use ranges of equal length",
                )
                return ()
            columns.append(ports)
        return list(zip(*columns, strict=False))

    def _targets(
        self, texts: Sequence[str], entry: Entry, listen: ListenEndpoint | None
    ) -> tuple[Target, ...]:
        """Return the targets of one port; none if one of them has a problem."""
        targets: list[Target] = []
        for text in texts:
            target = self._target(text, entry)
            if target is None:
                return ()
            if listen is not None and is_loop(listen, target):
                self._problems.add(
                    entry.at_target, f"{text!r} is the route's own listener: choose another target"
                )
                return ()
            if target in targets:
                self._problems.add(entry.at_target, f"{text!r} is listed twice: remove one")
                return ()
            targets.append(target)
        return tuple(targets)

    def _policy(
        self, entry: Entry, listen: ListenEndpoint, targets: tuple[Target, ...]
    ) -> Policy | None:
        fitted = fit_policy(entry.policy, entry.own, listen, targets, self._find_cid)
        for key, message in fitted.problems:
            path = entry.at_policy(key)
            if not self._problems.are_at(path):
                self._problems.add(path, message)
        return None if fitted.problems else fitted.policy

    def _find_cid(self, name: str) -> int | None:
        """Return the CID of a guest in a list of rules; None if the guest has a problem."""
        if self._has_problem(name):
            return None
        guest = self._guests.get(name)
        if guest is None:
            hint = nearest(name, self._guests)
            raise AddressError(f"no guest {name!r} in [guests]" + (hint and f"; {hint}"))
        if isinstance(guest.way, Mux | MuxGlob | UnixSockets):
            raise AddressError(
                f"the guest {name!r} has no CID: its VMM connects for it; use a uid: or gid: rule"
            )
        if not isinstance(guest.way, Cid):
            raise AddressError(
                f"the CID of the guest {name!r} is looked up at each dial, but a rule needs a fixed"
                " one: give the VM a fixed CID, and write its number here"
            )
        return guest.way.cid

    def _has_problem(self, guest: str) -> bool:
        """Return whether a guest has a problem, which is noted at its own key."""
        return ("guests",) in self._unread or self._problems.are_at(("guests", guest))

    def _listen(self, text: str, entry: Entry) -> ListenEndpoint | None:
        return self._parsed(read_listen, text, entry.at("listen"))

    def _target(self, text: str, entry: Entry) -> Target | None:
        path = entry.at_target
        endpoint = self._parsed(_read_target, text, path)
        if isinstance(endpoint, GuestEndpoint):
            endpoint = self._resolve(text, endpoint, path)
        return endpoint and self._with_options(text, endpoint, entry)

    def _with_options(self, text: str, endpoint: Target, entry: Entry) -> Target | None:
        """Return the target with the route's ``to_host`` and ``handshake``."""
        if isinstance(endpoint, GuestEndpoint):
            table = write_path(("guests", endpoint.guest))
            for key in sorted({"to_host", "handshake"} & entry.own):
                sentence = f"cannot be set for a guest looked up at each dial: set it in {table}"
                self._problems.add(entry.at(key), sentence)
            return endpoint
        if entry.to_host:
            if not isinstance(endpoint, VsockEndpoint):
                self._problems.add(
                    entry.at("to_host"), f"needs a vsock target: {text!r} is not one"
                )
                return None
            return replace(endpoint, to_host=True)
        if entry.handshake is not None:
            if not isinstance(endpoint, MuxEndpoint):
                self._problems.add(
                    entry.at("handshake"), f"needs a vsock-mux target: {text!r} is not one"
                )
                return None
            return replace(endpoint, handshake=entry.handshake)
        return endpoint

    def _resolve(self, text: str, endpoint: GuestEndpoint, path: KeyPath) -> Target | None:
        if self._has_problem(endpoint.guest):
            return None
        guest = self._guests.get(endpoint.guest)
        if guest is None:
            hint = nearest(endpoint.guest, self._guests)
            self._problems.add(path, _unknown_guest(text, endpoint.guest, hint))
            return None
        way = guest.way
        if isinstance(way, StaticWay):
            return self._parsed(lambda _: way.address(endpoint.port), text, path)
        return replace(endpoint, over="vsock-mux" if isinstance(way, MuxGlob) else "vsock")

    def _claim(
        self, entry: Entry, text: str, listen: ListenEndpoint | None, *, spread: bool
    ) -> str | None:
        """Return a route's name once the name and the listener are reserved for it; else None.

        A name is a label of the metrics: short, printable and unique.
        """
        name = text if entry.name is None else entry.name
        if entry.name is not None and spread:
            name = f"{entry.name}-{getattr(listen, 'port', text)}"
        path = entry.at("listen" if entry.name is None else "name")
        if not name.isprintable() or name.strip() != name or not 0 < len(name) <= _LONGEST_NAME:
            self._problems.add(
                path, f"{name!r} is not a name: expected 1 to {_LONGEST_NAME} printable characters"
            )
            return None
        owner = listen and self._claims.take(listen, f"the route {name!r}")
        if owner:
            self._problems.add(
                entry.at("listen"), f"{text!r} is already in use by {owner}: choose another address"
            )
            return None
        if name in self._names:
            self._problems.add(path, f"{name!r} is the name of another route: choose another name")
            return None
        self._names.add(name)
        return name

    def _parsed(
        self, parse: Callable[[str], _Endpoint], text: str, path: KeyPath
    ) -> _Endpoint | None:
        with self._problems.collecting(path):
            return parse(text)
        return None


def _read_target(text: str) -> Target:
    endpoint = parse_target(text)
    check_path(endpoint)
    return endpoint


def _unknown_guest(text: str, guest: str, hint: str) -> str:
    return (
        f"{text!r}: no guest {guest!r} in [guests]; {hint + ' ' if hint else ''}"
        f"for a TCP target write tcp:{text}"
    )
