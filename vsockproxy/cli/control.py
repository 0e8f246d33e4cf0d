"""The commands that query and control a running daemon through its control socket.

Owns: `status`, `connections`, `kill`, `pause`, `drain`, `resume` and `reload`.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vsockproxy.cli.output import say, say_json
from vsockproxy.cli.shared import (
    argument,
    color_option,
    command,
    command_with,
    config_option,
    daemon_client,
    fail,
    json_option,
    socket_option,
    whole_number,
)
from vsockproxy.errors import VsockproxyError
from vsockproxy.readable import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vsockproxy.admin.client import Answer, Client

_EVERY = 1.0  # seconds between the tables of --watch
_COMPLETION_TIMEOUT = 1.0  # seconds; the user waits at a prompt
_LARGEST_PAGE = 1000  # connections

client_option: Final = click.option(
    "--client", metavar="RULE", help="Only this address, IP network or CID."
)
watch_option: Final = click.option("--watch", "-w", is_flag=True, help="Refresh every second.")


def _route_names(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the route names that complete a word; none if no daemon answers."""
    return [name for name in _asked(context, "routes", "name") if name.startswith(incomplete)]


def _asked(context: click.Context, what: str, key: str) -> list[str]:
    """Return a field of each route or connection of the daemon; none if it does not answer."""
    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use

    options = (context.params.get("socket"), context.params.get("config"))
    path, config = (Path(option) if option else None for option in options)
    try:
        client = Client(find_socket(path, config, os.environ), _COMPLETION_TIMEOUT)
        return [str(one[key]) for one in client.get(f"/v1/{what}")[what]]
    except VsockproxyError:
        return []


def _ids(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids of live connections that complete a word; none if no daemon answers."""
    return [one for one in _asked(context, "connections", "id") if one.startswith(incomplete)]


order_command: Final = command_with(
    argument(
        "routes",
        metavar="ROUTE",
        nargs=-1,
        shell_complete=_route_names,
        help="Names, as shown by status.",
    ),
    config_option,
    socket_option,
    click.option("--all", "everything", is_flag=True, help="All routes of the configuration."),
)
route_option: Final = click.option(
    "--route", metavar="NAME", shell_complete=_route_names, help="Only this route."
)


class Sort(StrEnum):
    """Sort keys of connections; names and ids ascend, numbers descend."""

    ID = "id"
    ROUTE = "route"
    CLIENT = "client"
    TARGET = "target"
    AGE = "age"
    IDLE = "idle"
    DIAL = "dial"
    BYTES = "bytes"
    RATE = "rate"


def _page_size(text: str) -> int:
    number = whole_number(text)
    if not 1 <= number <= _LARGEST_PAGE:
        raise click.BadParameter(f"not in the range 1 to {_LARGEST_PAGE}")
    return number


def _forbid_both(*, watch: bool, as_json: bool) -> None:
    if watch and as_json:
        raise click.BadParameter("--json prints once: leave --watch out")


@command()
@config_option
@socket_option
@watch_option
@json_option
@color_option
def status(config: Path | None, socket: Path | None, *, watch: bool, as_json: bool) -> None:
    """Show the running daemon and the state, connections, bytes and last error of each route."""
    _forbid_both(watch=watch, as_json=as_json)
    with daemon_client(config, socket) as client:
        if as_json:
            say_json({**client.get("/v1/status"), **client.get("/v1/routes")})
            return
        from vsockproxy.cli import drawing, tables  # noqa: PLC0415 - at its use

        def table() -> list[tables.Part]:
            return tables.status(client.get("/v1/status"), client.get("/v1/routes"))

        if watch:
            drawing.watch(table, _EVERY)
        else:
            drawing.show(table())


@command()
@config_option
@socket_option
@route_option
@client_option
@click.option(
    "--sort",
    type=click.Choice([str(key) for key in Sort]),
    default="id",
    show_default=True,
    help="Sort key; numbers descend.",
)
@click.option(
    "--limit",
    type=_page_size,
    default=100,
    show_default=True,
    metavar="NUMBER",
    help=f"Maximum rows, 1 to {_LARGEST_PAGE}.",
)
@watch_option
@json_option
@color_option
def connections(
    config: Path | None,
    socket: Path | None,
    *,
    route: str | None,
    client: str | None,
    sort: str,
    limit: int,
    watch: bool,
    as_json: bool,
) -> None:
    """List live connections: client, target, state, bytes, rate, idle time and age.

    kill takes the ids of the first column. With --json the output has every
    connection and both ports of each; --limit has no effect.
    """
    _forbid_both(watch=watch, as_json=as_json)
    query = {"route": route, "client": client, "sort": sort}
    with daemon_client(config, socket) as daemon:
        if as_json:
            _print_all(daemon, query)
            return
        from vsockproxy.cli import drawing, tables  # noqa: PLC0415 - at its use

        def table() -> list[tables.Part]:
            return tables.connections(daemon.get("/v1/connections", **query, limit=limit))

        if watch:
            drawing.watch(table, _EVERY)
        else:
            drawing.show(table())


def _print_all(daemon: Client, query: Answer) -> None:
    pages = list(daemon.connections(**query, limit=_LARGEST_PAGE))
    everything = [live for page in pages for live in page["connections"]]
    say_json({"total": len(everything), "connections": everything})


@command()
@argument(
    "ids",
    type=whole_number,
    metavar="ID",
    nargs=-1,
    shell_complete=_ids,
    help="Ids, as shown by connections.",
)
@config_option
@socket_option
@route_option
@client_option
@click.option("--all", "everything", is_flag=True, help="All connections.")
def kill(
    ids: Sequence[int],
    config: Path | None,
    socket: Path | None,
    *,
    route: str | None,
    client: str | None,
    everything: bool,
) -> None:
    """End live connections: those with the given ids, or all of a route or a client.

    The clients are reset. The access log records the reason `killed`.
    """
    filters = {"route": route, "client": client, "all": everything or None}
    given = {key: value for key, value in filters.items() if value is not None}
    if bool(ids) == bool(given):
        raise click.BadParameter("give either connection ids, or --route, --client or --all")
    with daemon_client(config, socket) as daemon:
        if ids:
            ended, missing = _kill_each(daemon, ids)
        else:
            ended, missing = daemon.post("/v1/connections/end", given)["ended"], []
    say(f"ended {count(len(ended), 'connection')}")
    if missing:
        fail(*missing)


def _kill_each(daemon: Client, ids: Sequence[int]) -> tuple[list[int], list[str]]:
    """Return the ids that were ended, and an error line for each that is not live."""
    from vsockproxy.admin.client import RequestError  # noqa: PLC0415 - at its use

    ended: list[int] = []
    missing: list[str] = []
    for number in ids:
        try:
            ended += daemon.delete(f"/v1/connections/{number}")["ended"]
        except RequestError as error:
            missing.append(str(error).splitlines()[0])
    return ended, missing


@order_command
def pause(
    routes: Sequence[str], config: Path | None, socket: Path | None, *, everything: bool
) -> None:
    """Pause routes: new clients are queued, live connections continue.

    A route stays paused across reloads, until resume or until the daemon
    stops.
    """
    _order(config, socket, routes, everything, "pause")


@order_command
def drain(
    routes: Sequence[str], config: Path | None, socket: Path | None, *, everything: bool
) -> None:
    """Drain routes: their listeners are closed, live connections continue.

    New clients are refused. A route stays drained across reloads, until
    resume or until the daemon stops. To end the remaining connections, use
    kill --route.
    """
    _order(config, socket, routes, everything, "drain")


@order_command
def resume(
    routes: Sequence[str], config: Path | None, socket: Path | None, *, everything: bool
) -> None:
    """Resume paused or drained routes."""
    _order(config, socket, routes, everything, "resume")


def _order(
    config: Path | None, socket: Path | None, names: Sequence[str], everything: bool, verb: str
) -> None:
    """Give an order to each route; one that fails keeps no other from it."""
    from vsockproxy.admin.client import RequestError, route_path  # noqa: PLC0415 - at its use

    if bool(names) == everything:
        raise click.BadParameter("give either names of routes, or --all")
    failures: list[str] = []
    with daemon_client(config, socket) as daemon:
        for name in names or [route["name"] for route in daemon.get("/v1/config")["routes"]]:
            try:
                answer = daemon.post(route_path(name, verb))
            except RequestError as error:
                failures += str(error).splitlines()
            else:
                live = count(answer["live"], "live connection")
                say(f"{answer['name']}: {answer['state']}, {live}")
    if failures:
        fail(*failures)


@command()
@config_option
@socket_option
@click.option("--dry-run", is_flag=True, help="Only show what a reload would change.")
def reload(config: Path | None, socket: Path | None, *, dry_run: bool) -> None:
    """Reload the configuration, as SIGHUP does, and show what it has changed.

    If the new configuration has an error, the daemon keeps the old one and the
    exit status is 1.
    """
    from vsockproxy.config.changes import describe  # noqa: PLC0415 - at its use

    with daemon_client(config, socket) as daemon:
        answer = daemon.post("/v1/reload?dry_run=true" if dry_run else "/v1/reload")
    if dry_run:
        say(f"a reload of {answer['source']} would change:")
    else:
        say(f"reloaded {answer['source']}: {answer['fingerprint']}")
    for line in describe(answer):
        say(f"  {line}")


class Level(StrEnum):
    """A level of the log; ``reset`` is the one of the start."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    RESET = "reset"


@command("log-level")
@argument(
    "level",
    type=click.Choice([str(level) for level in Level]),
    help="The least severe level that is logged: debug, info, warning or error; or reset.",
)
@config_option
@socket_option
def log_level(level: str, config: Path | None, socket: Path | None) -> None:
    """Log from another level on, until the daemon ends; status shows it.

    It wins over --log-level, $VSOCKPROXY_LOG_LEVEL and the file, also after a
    reload. reset goes back to these.
    """
    wanted = None if level == Level.RESET else level
    with daemon_client(config, socket) as daemon:
        say(f"log level: {daemon.post('/v1/log-level', {'level': wanted})['level']}")
