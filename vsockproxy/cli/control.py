"""The commands that ask and steer a running daemon by its operator's socket."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vsockproxy.cli.program import PLACES, ConfigOption, JsonOption, SocketOption, fail
from vsockproxy.errors import VsockproxyError
from vsockproxy.readable import count

if TYPE_CHECKING:
    from vsockproxy.admin.client import Answer, Client

_EVERY = 1.0  # seconds from one look of --watch to the next
_IMPATIENCE = 1.0  # seconds; somebody has pressed Tab
_MANY = 1000  # connections on a page, where all are wanted

ClientOption = Annotated[
    str | None,
    typer.Option("--client", metavar="WHO", help="Of an address, an IP network or a CID."),
]


def _route_names(context: typer.Context, incomplete: str) -> list[str]:
    """For the shell: the names of the running daemon's routes; none where none is found."""
    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use

    named = (context.params.get("socket"), context.params.get("config"))
    path, config = (Path(name) if name else None for name in named)
    try:
        client = Client(find_socket(path, config, os.environ, defaults=PLACES), _IMPATIENCE)
        names = [route["name"] for route in client.get("/v1/routes")["routes"]]
    except VsockproxyError:
        return []
    return [name for name in names if name.startswith(incomplete)]


RouteArgument = Annotated[
    str,
    typer.Argument(metavar="ROUTE", help="Its name, as in status.", autocompletion=_route_names),
]
RouteOption = Annotated[
    str | None,
    typer.Option("--route", metavar="NAME", help="Of this route.", autocompletion=_route_names),
]


class Sort(StrEnum):
    """What the connections are sorted by; names and ids ascend, numbers descend."""

    ID = "id"
    ROUTE = "route"
    CLIENT = "client"
    TARGET = "target"
    AGE = "age"
    IDLE = "idle"
    DIAL = "dial"
    BYTES = "bytes"
    RATE = "rate"


def add_to(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command(short_help="Show the routes of the running daemon.")(status)
    app.command(short_help="Show who is connected.")(connections)
    app.command(short_help="End connections now.")(kill)
    app.command(short_help="Have a route's clients wait.")(pause)
    app.command(short_help="Close a route's listener; its connections go on.")(drain)
    app.command(short_help="Have a route accept again.")(resume)
    app.command(short_help="Have the daemon read its configuration again.")(reload)


def status(
    config: ConfigOption = None, *, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Show the running daemon and its routes: state, connections, bytes, the last error."""
    with _asking(config, socket) as client:
        daemon, routes = client.get("/v1/status"), client.get("/v1/routes")
    if as_json:
        typer.echo(json.dumps({**daemon, **routes}, indent=2))
        return
    from vsockproxy.cli import tables  # noqa: PLC0415 - at its use

    tables.show(sys.stdout, tables.status(daemon, routes))


def connections(
    config: ConfigOption = None,
    *,
    socket: SocketOption = None,
    route: RouteOption = None,
    client: ClientOption = None,
    sort: Annotated[Sort, typer.Option(help="Numbers descend, names and ids ascend.")] = Sort.ID,
    limit: Annotated[int, typer.Option(min=1, max=_MANY, help="Rows at most.")] = 100,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Every second anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show who is connected: ports, bytes and rates each way, ages. The first column is for kill.

    --json prints every connection, whatever the limit is.
    """
    query = {"route": route, "client": client, "sort": sort.value}
    with _asking(config, socket) as daemon:
        if as_json:
            _print_all(daemon, query)
            return
        from vsockproxy.cli import tables  # noqa: PLC0415 - at its use

        def look() -> Any:
            return tables.connections(daemon.get("/v1/connections", **query, limit=limit))

        if watch:
            tables.watch(sys.stdout, look, _EVERY)
        else:
            tables.show(sys.stdout, look())


def _print_all(daemon: Client, query: Answer) -> None:
    pages = list(daemon.connections(**query, limit=_MANY))
    everything = [live for page in pages for live in page["connections"]]
    typer.echo(json.dumps({"total": len(everything), "connections": everything}, indent=2))


def kill(
    ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID...", help="As in connections.")
    ] = None,
    config: ConfigOption = None,
    *,
    socket: SocketOption = None,
    route: RouteOption = None,
    client: ClientOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every connection.")] = False,
) -> None:
    """End connections now, both ways: by their ids, or all of a route or a client.

    The client is reset; the access line says `killed`.
    """
    chosen = {"route": route, "client": client, "all": everything or None}
    question = {key: value for key, value in chosen.items() if value is not None}
    if bool(ids) == bool(question):
        raise typer.BadParameter("name the connections: ID..., or --route, --client, --all")
    with _asking(config, socket) as daemon:
        if ids:
            ended, missing = _kill_each(daemon, ids)
        else:
            ended, missing = daemon.post("/v1/connections/end", question)["ended"], []
    typer.echo(f"ended {count(len(ended), 'connection')}")
    if missing:
        fail(*missing)


def _kill_each(daemon: Client, ids: list[int]) -> tuple[list[int], list[str]]:
    """Those that were ended, and a sentence for each that is not there."""
    from vsockproxy.admin.client import RequestError  # noqa: PLC0415 - at its use

    ended: list[int] = []
    missing: list[str] = []
    for number in ids:
        try:
            ended += daemon.delete(f"/v1/connections/{number}")["ended"]
        except RequestError as error:
            missing.append(str(error).splitlines()[0])
    return ended, missing


def pause(
    route: RouteArgument, config: ConfigOption = None, *, socket: SocketOption = None
) -> None:
    """Have a route accept no more for now: new clients wait, live connections go on.

    Until resume, or the daemon's end; a reload keeps it.
    """
    _steer(config, socket, route, "pause")


def drain(
    route: RouteArgument, config: ConfigOption = None, *, socket: SocketOption = None
) -> None:
    """Close a route's listener: new clients are refused, live connections end by themselves.

    Until resume, or the daemon's end; a reload keeps it. Those that are left
    are ended by kill --route.
    """
    _steer(config, socket, route, "drain")


def resume(
    route: RouteArgument, config: ConfigOption = None, *, socket: SocketOption = None
) -> None:
    """Have a route accept again that was paused or drained."""
    _steer(config, socket, route, "resume")


def _steer(config: Path | None, socket: Path | None, route: str, action: str) -> None:
    from vsockproxy.admin.client import route_path  # noqa: PLC0415 - at its use

    with _asking(config, socket) as daemon:
        answer = daemon.post(route_path(route, action))
    live = count(answer["live"], "live connection")
    typer.echo(f"{answer['name']}: {answer['state']}, {live}")


def reload(config: ConfigOption = None, *, socket: SocketOption = None) -> None:
    """Have the daemon read its configuration again, as SIGHUP does, and say what is wrong.

    What is wrong changes nothing; the exit status is 1 then.
    """
    with _asking(config, socket) as daemon:
        answer = daemon.post("/v1/reload")
    typer.echo(f"reloaded {answer['source']}: {answer['fingerprint']}")


@contextmanager
def _asking(config: Path | None, path: Path | None) -> Iterator[Client]:
    """The daemon that is meant; what does not work ends the command with its words."""
    from vsockproxy.admin.client import Client, find_socket  # noqa: PLC0415 - at its use

    try:
        yield Client(find_socket(path, config, os.environ, defaults=PLACES))
    except VsockproxyError as error:
        fail(*str(error).splitlines())
