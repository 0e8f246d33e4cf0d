"""Clients that name their target: the request, the decision on it, the dial and the answer.

Owns: `ByNameTargets`, for a route, and `NamedTarget`, for one connection until bytes move; the
sentences that clients are told, and the audit line of a decision.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from vsockproxy.address.sockaddr import borrowed, peer_name
from vsockproxy.admit.credentials import Users
from vsockproxy.admit.decision import Verdict, decide
from vsockproxy.admit.gate import Gate, RejectReason
from vsockproxy.admit.peer import peer_at, peer_of
from vsockproxy.config.access import Peer
from vsockproxy.config.by_name import ByName
from vsockproxy.config.reach import Reach
from vsockproxy.config.request import Request
from vsockproxy.connection import Connection, EndedError
from vsockproxy.dial.named import dial_named
from vsockproxy.dial.target import Dialer
from vsockproxy.errors import DialError, dial_error
from vsockproxy.guests.directory import Guests
from vsockproxy.pump.closing import close
from vsockproxy.pump.reset import reset
from vsockproxy.request.reader import Asked, Reader, Refusal
from vsockproxy.request.reading import NoRequestError, read_request, send_reply
from vsockproxy.stats import RouteStats, TargetState

_REASONS: Final[dict[str, RejectReason]] = {
    "malformed": "request_malformed",
    "timeout": "request_timeout",
    "unauthenticated": "request_unauthenticated",
}

# The log has more. A client need not know the paths and addresses behind a name.
_SENTENCES: Final = {
    "forbidden": "it is at an address that is not allowed",
    "refused": "nothing listens there",
    "busy": "nothing listens there, or its backlog is full",
    "timeout": "no answer in time",
    "no_answer": "no answer in time",
    "name": "the name does not resolve",
    "unreachable": "there is no route to it",
    "no_transport": "it is not up",
    "not_found": "it is not up",
    "guest": "its guest was not found",
}


@dataclass(frozen=True, slots=True)
class ByNameTargets:
    """The targets that the clients of one route name; ``users`` are those that may ask."""

    by_name: ByName
    users: Users | None
    stats: RouteStats
    gate: Gate
    guests: Guests
    log: Any

    async def ask(self, client: int, family: int, connection: Connection) -> NamedTarget:
        """Read and judge a client's request; its descriptor stays the caller's.

        Raises:
          EndedError: the client is rejected; with what it is to be told.
          DialError: it has left.
        """
        source = self._source(client, family, connection)
        reader, asked = await self._read(client, family, connection, source)
        connection.request = asked.request
        verdict = await self._decide(connection, asked.request, source)
        named = NamedTarget(self, client, connection, reader, asked, verdict, source.source or "")
        if verdict.target is None:
            named.note("denied", error=verdict.reason)
            self.gate.reject(connection, "request_denied", verdict.reason)
            sentence = f"{asked.request} is denied: {verdict.told or verdict.reason}"
            reply = reader.refused(Refusal("denied", sentence))
            raise EndedError("rejected_request_denied", reply)
        connection.target = verdict.target
        return named

    def _source(self, client: int, family: int, connection: Connection) -> Peer:
        """Return the client: the one in its PROXY header, if it had to send one."""
        if connection.route.policy.accept_proxy:
            return peer_at(connection.family, connection.address)
        return peer_of(client, family, connection.address)

    async def _decide(self, connection: Connection, request: Request, source: Peer) -> Verdict:
        deadline = trio.current_time() + connection.route.policy.connect_timeout
        with connection.cancellable():
            return await decide(request, connection.route, source, self.guests, deadline)

    async def _read(
        self, client: int, family: int, connection: Connection, source: Peer
    ) -> tuple[Reader, Asked]:
        by, guest = self.by_name.by, self.by_name.guest
        check = None if self.users is None else partial(self.users.check, peer=source)
        timeout = connection.route.policy.connect_timeout
        try:
            with borrowed(client, family) as sock, connection.cancellable():
                return await read_request(sock, by, timeout, check=check, guest=guest)
        except NoRequestError as error:
            if error.reason == "left":
                raise dial_error(connection.target, "client_left") from error
            reason = _REASONS[error.reason]
            self.gate.reject(connection, reason, str(error))
            raise EndedError(f"rejected_{reason}", error.reply) from error


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """The target that one client has named; ``source`` is the client, as `Peer.source`."""

    targets: ByNameTargets
    client: int
    connection: Connection
    reader: Reader
    asked: Asked
    verdict: Verdict
    source: str

    async def dial(self) -> socket.socket:
        """Return a socket connected to the target, which the caller owns; see `dial_named`."""
        route, target = self.connection.route, self.verdict.target
        assert target is not None
        dialer = Dialer(
            TargetState(target),
            route.policy,
            self.targets.guests,
            names={"route": route.name, "target": str(target)},
            log=self.targets.log,
            destinations=self.verdict.destinations,
            chosen_by=self.source if isinstance(self.verdict.destinations, Reach) else None,
        )
        try:
            sock = await dial_named(self.client, self.connection, dialer, self.targets.stats)
        except DialError as error:
            self.note("denied" if error.reason == "forbidden" else "allowed", error=error.summary)
            raise
        except BaseException:  # a kill, max_lifetime or a stop: the target may have been dialled
            self.note("allowed", error="the connection was ended during the dial")
            raise
        self.note("allowed", address=_peer_of(sock))
        return sock

    def answer(self, client: socket.socket, target: socket.socket) -> None:
        """Tell the client that the target is connected.  Raises `DialError` if it has left."""
        self.connection.replayed = len(self.asked.replay)
        try:
            send_reply(client, self.reader.accepted(target.getsockname()))
        except OSError as error:
            raise dial_error(self.connection.target, "client_left") from error

    def refused(self, error: DialError) -> bytes:
        """Return what the client is told about a failed dial."""
        if error.reason == "client_left":
            return b""
        sentence = _SENTENCES.get(error.reason, f"the connection failed ({error.reason})")
        sentence = f"cannot reach {self.asked.request}: {sentence}"
        return self.reader.refused(Refusal(error.reason, sentence))

    def note(self, verdict: str, **outcome: str) -> None:
        """Count a decision, and write its audit line."""
        self.targets.stats.requests[verdict] += 1
        user = self.asked.request.user
        self.targets.log.info(
            "request_decided",
            **self.connection.names(),
            **({} if user is None else {"user": user}),
            verdict=verdict,
            **({"rule": self.verdict.rule} if self.verdict.rule else {}),
            **outcome,
        )


async def hang_up(client: int, family: int, reply: bytes, linger: float) -> None:
    """Close a client that is not served: by a reset, or so that a reply reaches it.

    Its descriptor is closed, also when cancelled.  ``linger`` is as for `closing.close`.
    """
    sock = socket.socket(family, socket.SOCK_STREAM, 0, client)
    try:
        if not reply:
            return
        sock.setblocking(False)
        send_reply(sock, reply)
        await close(sock, "linger", linger)
    except OSError:
        return  # the client has gone
    finally:
        reset(sock)


def _peer_of(sock: socket.socket) -> str:
    try:
        return peer_name(sock.family, sock.getpeername())
    except OSError:  # it has closed already
        return ""
