"""The commands route and guest: add, replace and remove them in a running daemon."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import click

from vsockproxy.cli.output import say
from vsockproxy.cli.shared import (
    argument,
    command_with,
    config_option,
    daemon_client,
    socket_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vsockproxy.config.document import Plain


class Action(StrEnum):
    """What to do."""

    ADD = "add"
    REPLACE = "replace"
    REMOVE = "remove"


_DONE: Final = {Action.ADD: "added", Action.REPLACE: "replaced", Action.REMOVE: "removed"}


change_command: Final = command_with(
    argument(
        "action",
        type=click.Choice([str(action) for action in Action]),
        help="add, replace or remove.",
    ),
    argument("name", metavar="NAME", help="Its name."),
    argument("keys", metavar="KEY=VALUE", nargs=-1, help="Keys of its table, as in a TOML file."),
    config_option,
    socket_option,
    click.option(
        "--persist", is_flag=True, help="Write it to a file in the first include's folder."
    ),
)


@change_command
def route(
    action: str,
    name: str,
    keys: Sequence[str],
    config: Path | None,
    socket: Path | None,
    *,
    persist: bool,
) -> None:
    """Add, replace or remove a route of the running daemon, without a reload.

    It lasts until the daemon ends; with --persist it is a file that the next
    daemon reads too. A route of any other file cannot be changed.

    \b
    vsockproxy route add sbx-7 listen=unix:/run/sbx-7.sock target=sbx-7:443
    vsockproxy route remove sbx-7
    """
    _change("routes", Action(action), name, keys, persist=persist, config=config, socket=socket)


@change_command
def guest(
    action: str,
    name: str,
    keys: Sequence[str],
    config: Path | None,
    socket: Path | None,
    *,
    persist: bool,
) -> None:
    """Add, replace or remove a guest of the running daemon, as route does.

    \b
    vsockproxy guest add sbx-7 mux=/run/sbx/7/v.sock
    vsockproxy guest replace sbx-7 cid=12
    """
    _change("guests", Action(action), name, keys, persist=persist, config=config, socket=socket)


def _change(
    kind: str,
    action: Action,
    name: str,
    keys: Sequence[str],
    *,
    persist: bool,
    config: Path | None,
    socket: Path | None,
) -> None:
    from vsockproxy.config.changes import describe  # noqa: PLC0415 - at its use

    if persist and action is not Action.ADD:
        raise click.BadParameter("--persist is for add only: the others find the file themselves")
    if bool(keys) == (action is Action.REMOVE):
        raise click.BadParameter("add and replace need KEY=VALUE, and remove has none")
    table = dict(map(_pair, keys))
    path = f"/v1/{kind}/{quote(name, safe='')}"
    with daemon_client(config, socket) as daemon:
        match action:
            case Action.ADD:
                where = f"/v1/{kind}?persist=true" if persist else f"/v1/{kind}"
                answer = daemon.post(where, {**table, "name": name})
            case Action.REPLACE:
                answer = daemon.put(path, table)
            case Action.REMOVE:
                answer = daemon.delete(path)
    say(f"{kind.removesuffix('s')} {name}: {_DONE[action]}")
    if kind == "guests" and any(answer.values()):
        say(*describe(answer))  # its routes


def _pair(text: str) -> tuple[str, Plain]:
    """Return a key and its value: a TOML value if it is one, else a text."""
    import tomllib  # noqa: PLC0415 - at its use

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} has no value: write KEY=VALUE, as in cid=3")
    try:
        found: Plain = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
    return key, found if isinstance(found, dict | list | str | int | float) else value
