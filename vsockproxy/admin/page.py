"""The status page: ``GET /`` of the metrics listener, for people, and read-only.

Owns: what it shows; `page_request` says to which requests.  Its texts come from clients, VMMs and
files: `html` escapes them.  It is made in turns (`loop_share`), of a bounded part of many routes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from vsockproxy import __version__
from vsockproxy.admin.daemon_interface import Daemon
from vsockproxy.admin.filters import busiest, live_connections
from vsockproxy.admin.html import HEADERS, Markup, document, element, joined
from vsockproxy.admin.page_request import View, check_host, read_view, why_not
from vsockproxy.admin.probes import index, up_to_date
from vsockproxy.admin.rates import Rates, connection_bytes, route_counters
from vsockproxy.connection import Connection
from vsockproxy.http.loop_share import body_of, every
from vsockproxy.http.message import HTML, Request, Response
from vsockproxy.log.recent import RecentEvent
from vsockproxy.readable import count, duration, size
from vsockproxy.revision import REVISION
from vsockproxy.stats import RouteStats, TargetState

_REFRESH: Final = 5  # seconds
_ROUTES: Final = 100  # on one page
_CONNECTIONS: Final = 50
_EVENTS: Final = 20
_TARGETS: Final = 10  # of one route
_REASONS: Final = 20  # why the daemon is not ready, or what keeps routes closed
_COLOURS: Final = {
    **dict.fromkeys(("listening", "up", "open"), "good"),
    **dict.fromkeys(("queued", "off", "refused", "down", "error"), "bad"),
    "unknown": "dim",
}

_ROUTE_COLUMNS: Final = ("Route", "State", "Targets")
_ROUTE_NUMBERS: Final = ("Live", "Accepted", "Failed dials", "Limits reached", "In", "Out")
_CONNECTION_COLUMNS: Final = ("Id", "Route", "Client", "Target", "State")
_CONNECTION_NUMBERS: Final = ("In", "Out", "Rate", "Idle", "Age")
_EVENT_COLUMNS: Final = ("Time", "Level", "Route", "Event", "Message")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What one answer shows of the daemon, beside what it reads while it is sent.

    Attributes:
      matching: the number of routes that the view shows on all of its ``pages``.
      problems: the number of all routes with a problem.
      live: the number of connections that the view shows, of which ``connections`` are busiest.
    """

    view: View
    routes: list[RouteStats]
    pages: int
    matching: int
    total: int
    problems: int
    connections: list[Connection]
    live: int


class StatusPage:
    """The page of one daemon, with the samples for its rates."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._routes = Rates(route_counters)
        self._connections = Rates(connection_bytes)

    async def answer(self, request: Request) -> Response:
        """Return the page, or where it is not served the list of the paths.

        Raises:
          HttpError: the request's Host or query is not acceptable.
        """
        if reason := why_not(self._daemon.config, request):
            return index(reason)
        check_host(self._daemon.config, request)
        view = read_view(request.query)
        await up_to_date(self._daemon)
        shown = await self._look(view)
        title = f"vsockproxy: {count(shown.problems, 'route')} with a problem"
        pieces = document(title, self._body(shown), _REFRESH if view.refreshes else None)
        return Response(await body_of(pieces), media_type=HTML, headers=HEADERS)

    async def _look(self, view: View) -> _Shown:
        """Sample the counters, and choose what is shown."""
        await self._routes.look(self._daemon.supervisor.stats())
        await self._connections.look(live_connections(self._daemon))
        routes = self._daemon.supervisor.stats()
        judged = await every(
            (stats, self._has_problem(stats), view.shows(_words_of(stats))) for stats in routes
        )
        chosen = [
            stats
            for stats, is_problem, is_shown in judged
            if is_shown and (is_problem or not view.problems)
        ]
        pages = max(1, -(-len(chosen) // _ROUTES))
        view = replace(view, page=min(view.page, pages))
        seen = await every(
            (one, view.shows(_words_of_connection(one))) for one in live_connections(self._daemon)
        )
        live = [one for one, is_shown in seen if is_shown]
        return _Shown(
            view,
            chosen[(view.page - 1) * _ROUTES : view.page * _ROUTES],
            pages,
            len(chosen),
            len(routes),
            sum(is_problem for _, is_problem, _ in judged),
            await busiest(live, _CONNECTIONS, self._connections),
            len(live),
        )

    def _has_problem(self, stats: RouteStats) -> bool:
        if self._daemon.supervisor.state_of(stats) != "listening":
            return True
        return any(target.name in ("refused", "down") for target in stats.targets)

    # ---- the page ----

    def _body(self, shown: _Shown) -> Iterator[Markup]:
        yield from self._daemon_lines(shown)
        yield _navigation(shown)
        yield element("h2", _heading("Routes", shown.matching, len(shown.routes)))
        yield from _table(_ROUTE_COLUMNS, _ROUTE_NUMBERS, map(self._route, shown.routes))
        yield element("h2", _heading("Connections by rate", shown.live, len(shown.connections)))
        rows = map(self._connection, shown.connections)
        yield from _table(_CONNECTION_COLUMNS, _CONNECTION_NUMBERS, rows)
        events = self._daemon.events.after(0)[: -_EVENTS - 1 : -1]
        yield element("h2", "Recent events")
        yield from _table(_EVENT_COLUMNS, (), map(_event, events))
        paths = ("metrics", "readyz", "healthz")
        yield element("p", joined((element("a", f"/{path}", href=path) for path in paths), " · "))

    def _daemon_lines(self, shown: _Shown) -> Iterator[Markup]:
        daemon, supervisor = self._daemon, self._daemon.supervisor
        limit = supervisor.admission.limits.max_connections
        live = count(supervisor.live(), "connection") + ("" if limit is None else f" of {limit}")
        uptime = duration(time.time() - daemon.started)
        yield element("h1", f"vsockproxy {__version__}")
        if REVISION:
            yield element("p", f"revision {REVISION}", class_="dim")
        yield element(
            "p",
            f"process {os.getpid()} · up {uptime} · {daemon.pump_name} pump · {live} ·"
            f" {supervisor.admission.descriptors_free()} file descriptors free",
        )
        yield element(
            "p",
            f"configuration {daemon.config.source} ({daemon.reloads.fingerprint}) ·"
            f" {count(shown.total, 'route')} · {time.strftime('%Y-%m-%d %H:%M:%S %Z')}",
            class_="dim",
        )
        not_ready = daemon.not_ready()
        if not not_ready:
            yield element("p", "ready", class_="good")
        yield from _lines("bad", [f"not ready: {reason}" for reason in not_ready])
        yield from _lines("warn", daemon.closed_routes())
        if failure := daemon.reloads.last_failure:
            ago = duration(time.time() - failure.time)
            sentence = f"the last reload failed {ago} ago, the old configuration runs"
            yield from _lines("bad", [f"{sentence}: {line}" for line in failure.problems])

    def _route(self, stats: RouteStats) -> Markup:
        accepted, failed, upstream, downstream = self._routes.of(stats)
        supervisor, route = self._daemon.supervisor, stats.route
        state = supervisor.state_of(stats)
        why = supervisor.queued_by(stats) if state == "queued" else supervisor.closed_by(stats)
        error = stats.last_error
        limit = route.policy.max_connections
        cells = (
            joined([element("b", route.name), _dim(route.listen)]),
            joined([_badge(state), _dim(why or "")]),
            _targets(stats),
            joined(
                [
                    f"{len(stats.live)}{'' if limit is None else f' of {limit}'}",
                    _dim(f"{stats.held} held" if stats.held else ""),
                ]
            ),
            _rate_and_total(_number(accepted), stats.connections),
            _rate_and_total(_number(failed), sum(stats.dial_failures.values()), is_bad=failed > 0),
            _limits_reached(stats),
            _rate_and_total(size(upstream), size(stats.upstream_bytes)),
            _rate_and_total(size(downstream), size(stats.downstream_bytes)),
        )
        row = _row(_ROUTE_COLUMNS, _ROUTE_NUMBERS, cells, has_note=error is not None)
        if error is None:
            return row
        ago = duration(time.time() - error.time)
        remedy = f"; {error.remedy}" if error.remedy else ""
        note = f"last error, {ago} ago: {error.reason}: {error.message}{remedy}"
        width = len(_ROUTE_COLUMNS) + len(_ROUTE_NUMBERS)
        return joined([row, element("tr", element("td", note, class_="note bad", colspan=width))])

    def _connection(self, live: Connection) -> Markup:
        is_open = live.dial_seconds is not None
        asked = "" if live.request is None else f"{live.request} → "
        state = ("half-closed" if any(live.halves) else "open") if is_open else live.stage
        cells = (
            live.number,
            live.route.name,
            live.client,
            f"{asked}{live.target}",
            _badge(state),
            size(live.upstream_bytes),
            size(live.downstream_bytes),
            f"{size(sum(self._connections.of(live)))}/s",
            duration(live.idle_seconds),
            duration(time.monotonic() - live.opened),
        )
        return _row(_CONNECTION_COLUMNS, _CONNECTION_NUMBERS, cells)


# ---- its parts ----


def _words_of(stats: RouteStats) -> Iterator[object]:
    yield stats.route.name
    yield stats.route.listen
    yield stats.route.leads_to


def _words_of_connection(live: Connection) -> Iterator[object]:
    yield live.route.name
    yield live.client
    yield live.target


def _navigation(shown: _Shown) -> Markup:
    """Return the links to other views, and the form that looks for a text."""
    view = shown.view
    first = replace(view, page=1)
    links = [
        _choice("all", replace(first, problems=False), is_chosen=not view.problems),
        _choice(f"with a problem: {shown.problems}", replace(first, problems=True), view.problems),
    ]
    if view.page > 1:
        links.append(_choice("← previous page", replace(view, page=view.page - 1)))
    if shown.pages > 1:
        links.append(element("span", f"page {view.page} of {shown.pages}"))
    if view.page < shown.pages:
        links.append(_choice("next page →", replace(view, page=view.page + 1)))
    if view.match:
        links.append(_choice(f"clear search {view.match!r}", replace(first, match="")))
    if view.refreshes:
        links.append(element("span", f"refreshed every {_REFRESH} s", class_="dim"))
        links.append(_choice("stop, or search", replace(view, refreshes=False)))
        return element("nav", *links)
    links.append(_choice("refresh again", replace(view, refreshes=True)))
    text = element("input", name_="match", value=view.match, aria_label="text to look for")
    form = element("form", text, " ", element("button", "search"), method="get")
    return joined([element("nav", *links), form])


def _choice(text: str, view: View, is_chosen: bool = False) -> Markup:
    return element("b", text) if is_chosen else element("a", text, href=view.link)


def _heading(noun: str, total: int, shown: int) -> str:
    return f"{noun} ({shown} of {total})" if shown < total else f"{noun} ({total})"


def _table(
    texts: tuple[str, ...], numbers: tuple[str, ...], rows: Iterable[Markup]
) -> Iterator[Markup]:
    """Yield a table row by row."""
    heads = [element("th", name) for name in texts]
    heads += [element("th", name, class_="number") for name in numbers]
    yield Markup(f"<table>{element('thead', element('tr', *heads))}<tbody>")
    yield from rows
    yield Markup("</tbody></table>")


def _row(
    texts: tuple[str, ...],
    numbers: tuple[str, ...],
    cells: Iterable[object],
    has_note: bool = False,
) -> Markup:
    """Return a row; a narrow screen shows the column's name before each cell."""
    cells = iter(cells)
    row = [element("td", next(cells), data_name=name) for name in texts]
    row += [element("td", next(cells), data_name=name, class_="number") for name in numbers]
    return element("tr", *row, **({"class_": "has-note"} if has_note else {}))


def _lines(colour: str, sentences: list[str]) -> Iterator[Markup]:
    """Yield a paragraph for each of the first sentences, and the number of the others."""
    for sentence in sentences[:_REASONS]:
        yield element("p", sentence, class_=colour)
    if len(sentences) > _REASONS:
        yield element("p", f"and {len(sentences) - _REASONS} more", class_=colour)


def _badge(state: str) -> Markup:
    return element("span", state, class_=_COLOURS.get(state, "warn"))


def _dim(text: object) -> Markup:
    return element("div", text, class_="dim") if str(text) else Markup()


def _targets(stats: RouteStats) -> Markup:
    """Return the targets with their states, or how clients name them."""
    route = stats.route
    if route.by is not None:
        return joined([f"by {route.by}", *map(_dim, route.to[:_TARGETS])])
    more = len(stats.targets) - _TARGETS
    shown = [element("div", *_target(target)) for target in stats.targets[:_TARGETS]]
    return joined([*shown, _dim(f"and {more} more" if more > 0 else "")])


def _target(target: TargetState) -> tuple[object, ...]:
    lasting = "" if target.name == "unknown" else f" for {duration(target.seconds)}"
    return target.address, " ", _badge(target.name), element("span", lasting, class_="dim")


def _limits_reached(stats: RouteStats) -> Markup:
    """Return how often each rule or limit has rejected a client, or has queued clients."""
    reached = [f"rejected {number}: {reason}" for reason, number in stats.rejected.items()]
    reached += [f"queued {number}: {reason}" for reason, number in stats.accept_pauses.items()]
    return joined([element("div", one) for one in reached])


def _rate_and_total(rate: str, total: object, is_bad: bool = False) -> Markup:
    shown = element("span", f"{rate}/s", **({"class_": "bad"} if is_bad else {}))
    return joined([shown, _dim(total)])


def _number(rate: float) -> str:
    return f"{rate:.1f}" if 0 < rate < 10 else f"{rate:.0f}"


def _event(event: RecentEvent) -> Markup:
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    colour = {"info": "dim", "error": "bad"}.get(event.level, "warn")
    level = element("span", event.level, class_=colour)
    cells = (when, level, event.route or "", event.event, event.message)
    return _row(_EVENT_COLUMNS, (), cells)
