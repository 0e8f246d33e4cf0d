"""A route whose clients name their targets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tests.fake_services import Service, echo
from tests.listen.running_route import Served, serving
from tests.waiting import PATIENCE
from vsockproxy.address.endpoint import Dialable, ListenEndpoint, TcpEndpoint
from vsockproxy.config.by_name import ByName, Fixed, ToRule, guest_rule
from vsockproxy.config.destination import parse_name
from vsockproxy.config.request import By
from vsockproxy.config.settings import Policy, PumpChoice
from vsockproxy.guests.directory import Guests

POLICY = Policy(connect_timeout=PATIENCE)


@asynccontextmanager
async def naming(
    by: By,
    targets: Mapping[str, Dialable] | None = None,
    *,
    policy: Policy = POLICY,
    guest: str | None = None,
    credentials: Path | None = None,
    service: Service = echo,
    listen_at: ListenEndpoint = TcpEndpoint("127.0.0.1", 0),  # noqa: B008 - it is frozen
    choice: PumpChoice = "auto",
    guests: Guests | None = None,
) -> AsyncIterator[Served]:
    """Run a route; by default ``web.vm`` is a TCP service, and every other name is denied."""
    async with trio.open_nursery() as nursery:
        if targets is None:
            serve = partial(trio.serve_tcp, service, 0, host="127.0.0.1")
            [web] = await nursery.start(serve)
            targets = {"web.vm": TcpEndpoint("127.0.0.1", web.socket.getsockname()[1])}
        rules = [
            ToRule(parse_name(name), Fixed(target), str(target)) for name, target in targets.items()
        ]
        if guest is not None:
            rules = [guest_rule(guest)]
        file = None if credentials is None else str(credentials)
        target = ByName(by, tuple(rules), guest, file)
        async with serving(
            policy, dial_to=target, listen_at=listen_at, choice=choice, guests=guests
        ) as route:
            yield route
        nursery.cancel_scope.cancel()
