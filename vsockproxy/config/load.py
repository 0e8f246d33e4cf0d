"""From a configuration file, or a command line, to the `Config` that the daemon runs.

Owns: what keys mean together.  Routes are built from ``[forward]`` and ``[[route]]``, port
ranges are expanded, guests are resolved to addresses, and conflicts between routes are found.
All problems of a configuration are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from vsockproxy.address.endpoint import (
    GuestEndpoint,
    ListenEndpoint,
    MuxEndpoint,
    Target,
    VsockEndpoint,
    check_path,
)
from vsockproxy.address.grammar import expand_ports, parse_target
from vsockproxy.config.by_name import ByName
from vsockproxy.config.by_name_table import ByNameReader, without_by
from vsockproxy.config.document import Document, KeyPath, Plain, write_path
from vsockproxy.config.entry import Entry, check_lengths
from vsockproxy.config.guest import StaticLocator
from vsockproxy.config.guest_finder import GuestFinder
from vsockproxy.config.include import read_documents
from vsockproxy.config.listen_conflicts import Claims
from vsockproxy.config.loops import find_loop, is_loop
from vsockproxy.config.policy import fit_policy
from vsockproxy.config.problems import KeyProblemError, NotedError, Problems
from vsockproxy.config.process import (
    AdminSettings,
    Limits,
    LogSettings,
    MetricsListen,
    ReloadSettings,
    Written,
)
from vsockproxy.config.schema import RouteTable
from vsockproxy.config.serving import (
    ADMIN_SOCKET,
    METRICS_LISTEN,
    read_admin,
    read_listen,
    read_metrics,
    read_tls,
    tls_problems,
)
from vsockproxy.config.settings import Config, Policy, PumpSettings, Route
from vsockproxy.config.tables import read_tables
from vsockproxy.errors import AddressError, ConfigError

COMMAND_LINE: Final = "command line"

_LONGEST_NAME: Final = 128
_NO_ROUTE: Final = (
    'has no route: write one under forward, as in 8080 = "3:80" (TOML) or 8080: 3:80 (YAML)'
)


def load_config(path: Path) -> Config:
    """Return the configuration in a file and those that it includes.

    Raises:
      ConfigError: the file cannot be read or used; the error has all of its problems.
    """
    return build_config(read_documents(path))


def build_config(document: Document) -> Config:
    """Return the configuration that a document describes.

    Raises:
      ConfigError: with all problems of the document.
    """
    return _Builder(document).config()


def build_onto(base: Config, document: Document) -> Config:
    """Return a configuration with the routes and guests of a document besides its own.

    Raises:
      ConfigError: with all problems of the document, conflicts with ``base`` included.
    """
    return _Builder(document, base).config()


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

    def __init__(self, document: Document, base: Config | None = None) -> None:
        self._document = document
        self._tables, problems = read_tables(document.tree)
        self._problems = Problems([*document.problems, *problems])
        self._unread = {problem.path for problem in self._problems.found}
        self._claims = Claims()
        self._names: dict[str, str] = {}  # where the route of each stands
        self._base = base
        self._guests = GuestFinder(self._problems, self._unread, base.guests if base else ())
        for route in base.routes if base else ():
            self._names[route.name] = ""
            self._claims.take(route.listen, f"the route {route.name!r}")
        for server in (*base.metrics, *filter(None, [base.admin.listen])) if base else ():
            self._claims.take(server, "the daemon itself")

    def config(self) -> Config:
        metrics: tuple[MetricsListen, ...] = ()
        admin = AdminSettings()
        with self._problems.collecting(METRICS_LISTEN):
            metrics = read_metrics(self._tables.metrics, self._claims)
        self._problems.found.extend(tls_problems(self._tables.metrics))
        with self._problems.collecting(ADMIN_SOCKET):
            admin = read_admin(self._tables.admin, self._claims)
        self._guests.read(self._tables.guests)
        before = self._base.routes if self._base else ()
        routes = tuple(route for entry in self._entries() for route in self._routes(entry))
        # The routes of a fleet come and go.
        is_fleet = self._base or self._tables.include is not None
        if not (routes or is_fleet or (self._problems.found and self._has_entries())):
            self._problems.add((), _NO_ROUTE)
        if loop := find_loop((*before, *routes)):
            sentence = f"routes dial each other in a loop, {' -> '.join(loop)}: change a target"
            self._problems.add((), sentence)
        if self._problems.found:
            raise self._document.error(self._problems.found)
        if self._base:
            guests = (*self._base.guests, *self._guests.own)
            return replace(self._base, routes=(*before, *routes), guests=guests)
        return Config(
            routes=routes,
            metrics=metrics,
            log=LogSettings(**self._tables.log.model_dump()),
            pump=PumpSettings(**self._tables.pump.model_dump()),
            limits=Limits(**self._tables.limits.model_dump()),
            reload=ReloadSettings(**self._tables.reload.model_dump()),
            guests=tuple(self._guests.own),
            admin=admin,
            metrics_tls=read_tls(self._tables.metrics),
            metrics_page=self._tables.metrics.page,
            source=self._document.source,
            written=self._written(),
        )

    def _written(self) -> Written:
        folder = Path(self._document.source).parent
        defaults = self._document.tree.get("defaults")
        return Written(
            defaults if isinstance(defaults, dict) else {},
            tuple(str(folder / pattern) for pattern in self._tables.include or ()),
        )

    def _has_entries(self) -> bool:
        """Return whether the document has a route, valid or not, or no readable tree."""
        tree = self._document.tree
        tried = any(path[:1] in ((), ("forward",), ("route",)) for path in self._unread)
        return bool(tried or tree.get("forward") or tree.get("route"))

    def _entries(self) -> Iterator[Entry]:
        tables = self._tables
        policy = tables.defaults.policy(tables.defaults)
        for listen, target in tables.forward.items():
            yield Entry(listen, (target,), policy, ("forward", listen))
        for index, table in enumerate(tables.route):
            path = ("route", index)
            if table.by is not None:
                yield from self._by_name_entry(table, path)
                continue
            for key, message in without_by(table):
                self._problems.add((*path, key), message)
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

    def _by_name_entry(self, table: RouteTable, path: KeyPath) -> Iterator[Entry]:
        """Yield the entry of a route whose clients name their targets, if it has no problem."""
        policy = table.policy(self._tables.defaults)
        with self._problems.collecting(path):
            with self._problems.together():
                with self._problems.collecting((*path, "listen")):
                    if table.listen is None:
                        raise AddressError("is missing: a route needs listen")
                with self._problems.collecting(path):
                    by_name = self._by_name(table, path, policy)
            assert table.listen is not None
            yield Entry(
                table.listen,
                (),
                policy,
                path,
                table.name,
                long=True,
                own=frozenset(table.model_fields_set),
                by_name=by_name,
            )

    def _by_name(self, table: RouteTable, path: KeyPath, policy: Policy) -> ByName:
        if self._problems.are_at(path):
            raise NotedError

        def check(name: str, target: str) -> None:
            self._guests.find(name, target=target)

        return ByNameReader(table, path, self._guests.known, check, self._problems).read(policy)

    def _note_incomplete(self, table: RouteTable, path: KeyPath) -> None:
        if path in self._unread:
            return
        if table.target is not None and table.targets is not None:
            self._problems.add(
                (*path, "targets"), "cannot be combined with target: remove one of them"
            )
        for key in ("listen", "target"):
            others = {(*path, "by"), (*path, "targets")}
            if key == "target" and (table.targets or others & self._unread):
                continue
            if getattr(table, key) is None and (*path, key) not in self._unread:
                self._problems.add((*path, key), "is missing: a route needs listen and target")

    def _routes(self, entry: Entry) -> Iterator[Route]:
        """Yield the routes of one entry, one per port, up to the first port with a problem."""
        columns: list[tuple[str, ...]] = []
        with self._problems.collecting(entry.at_target):
            with self._problems.together():
                with self._problems.collecting(entry.at("listen")):
                    listens = expand_ports(entry.listen)
                for text in entry.targets:
                    with self._problems.collecting(entry.at_target):
                        columns.append(expand_ports(text))
            for text, column in zip(entry.targets, columns, strict=True):
                check_lengths(text, column, entry.listen, listens)
            for listen_text, *target_texts in zip(listens, *columns, strict=True):
                name = entry.route_name(listen_text, spread=len(listens) > 1)
                yield self._route(entry, name, listen_text, target_texts)

    def _route(
        self, entry: Entry, name: str, listen_text: str, target_texts: Sequence[str]
    ) -> Route:
        """Return one route.

        Raises:
          NotedError: the route has a problem.
        """
        with self._problems.together():
            if entry.name is not None:
                with self._problems.collecting(entry.at("name")):
                    self._take_name(name, entry)
            with self._problems.collecting(entry.at_target):
                listen, targets = self._ends(entry, name, listen_text, target_texts)
        policy = self._policy(entry, listen, targets)
        return Route(name, listen, entry.by_name or targets[0], policy, targets[1:])

    def _ends(
        self, entry: Entry, name: str, listen_text: str, target_texts: Sequence[str]
    ) -> tuple[ListenEndpoint, tuple[Target, ...]]:
        """Return the listener of a route, now reserved for it, and its targets.

        Raises:
          AddressError: a target is the listener.
          NotedError: an address has a problem.
        """
        with self._problems.together():
            with self._problems.collecting(entry.at("listen")):
                listen = self._claim(listen_text, name, entry)
                if entry.name is None:
                    self._take_name(name, entry)
            with self._problems.collecting(entry.at_target):
                targets = self._targets(target_texts, entry)
        fixed = entry.by_name.fixed if entry.by_name else []
        for text, target in (*zip(target_texts, targets, strict=True), *fixed):
            if is_loop(listen, target):
                raise AddressError(f"{text!r} is the route's own listener: choose another target")
        return listen, targets

    def _claim(self, text: str, name: str, entry: Entry) -> ListenEndpoint:
        """Return a route's listener, now reserved for the route."""
        listen = read_listen(text)
        if owner := self._claims.take(listen, f"the route {name!r}{self._where(entry)}"):
            raise AddressError(f"{text!r} is already in use by {owner}: choose another address")
        return listen

    def _where(self, entry: Entry) -> str:
        """Return the file of an entry as words, if there are several files."""
        document = self._document
        is_told = document.parts and not self._base
        return f" in {document.source_of(entry.path)}" if is_told else ""

    def _take_name(self, name: str, entry: Entry) -> None:
        """Reserve a name, which is a label of the metrics: short, printable and unique."""
        if not name.isprintable() or name.strip() != name or not 0 < len(name) <= _LONGEST_NAME:
            raise AddressError(
                f"{name!r} is not a name: expected 1 to {_LONGEST_NAME} printable characters"
            )
        if name in self._names:
            where = self._names[name]
            raise AddressError(f"{name!r} is the name of another route{where}: choose another name")
        self._names[name] = self._where(entry)

    def _targets(self, texts: Sequence[str], entry: Entry) -> tuple[Target, ...]:
        targets: list[Target] = []
        for text in texts:
            target = self._with_options(text, self._target(text), entry)
            if target in targets:
                raise AddressError(f"{text!r} is listed twice: remove one")
            targets.append(target)
        return tuple(targets)

    def _target(self, text: str) -> Target:
        """Return a target; the address of its guest, if that is fixed."""
        endpoint = parse_target(text)
        check_path(endpoint)
        if not isinstance(endpoint, GuestEndpoint):
            return endpoint
        locator = self._guests.find(endpoint.guest, target=text).locator
        if isinstance(locator, StaticLocator):
            return locator.address(endpoint.port)
        return replace(endpoint, over=locator.over)

    def _with_options(self, text: str, endpoint: Target, entry: Entry) -> Target:
        """Return the target with the route's ``to_host`` and ``handshake``."""
        if isinstance(endpoint, GuestEndpoint):
            table = write_path(("guests", endpoint.guest))
            for key in sorted({"to_host", "handshake"} & entry.own):
                sentence = f"cannot be set for a guest looked up at each dial: set it in {table}"
                self._problems.add(entry.at(key), sentence)
            return endpoint
        if entry.to_host:
            if not isinstance(endpoint, VsockEndpoint):
                sentence = f"needs a vsock target: {text!r} is not one"
                raise KeyProblemError(entry.at("to_host"), sentence)
            return replace(endpoint, to_host=True)
        if entry.handshake is not None:
            if not isinstance(endpoint, MuxEndpoint):
                sentence = f"needs a vsock-mux target: {text!r} is not one"
                raise KeyProblemError(entry.at("handshake"), sentence)
            return replace(endpoint, handshake=entry.handshake)
        return endpoint

    def _policy(self, entry: Entry, listen: ListenEndpoint, targets: tuple[Target, ...]) -> Policy:
        policy, own, guests = entry.policy, entry.own, self._guests
        fitted = fit_policy(policy, own, listen, targets, guests, by_name=entry.by_name)
        for key, message in fitted.problems:
            path = entry.at_policy(key)
            if not self._problems.are_at(path):
                self._problems.add(path, message)
        if fitted.problems:
            raise NotedError
        return fitted.policy
