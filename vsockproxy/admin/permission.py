"""Which process asks at the control socket, and what it may do there.

Owns: the default permissions, the sentence of a denial, and the audit line.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any, Final

from vsockproxy.admit.peer import peer_of, pid_of
from vsockproxy.config.access import Peer
from vsockproxy.config.permission import Level
from vsockproxy.config.process import AdminSettings

_ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Requester:
    """The process at the other end of a client's socket, as it was when it connected.

    Attributes:
      pid: None where the kernel does not tell.
      peer: its user and groups; empty where the kernel does not tell.
    """

    pid: int | None = None
    peer: Peer = Peer()  # noqa: RUF009 - it is frozen


def requester_of(client: socket.socket) -> Requester:
    """Return the process behind a client's socket, which stays the caller's; empty over TCP."""
    if client.family != getattr(socket, "AF_UNIX", None):
        return Requester()
    return Requester(pid_of(client), peer_of(client.fileno(), client.family, None))


def is_allowed(settings: AdminSettings, peer: Peer, level: Level) -> bool:
    """Return whether a client of the control socket may perform operations of a level.

    Root and the daemon's own user may perform all.  Without ``may``, every other user that the
    mode of the socket's file lets in may read and steer.
    """
    if peer.uid in (_ROOT, os.geteuid()):
        return True
    if settings.may is None:
        return level != "change"
    return any(grant.allows(peer, level) for grant in settings.may)


def denial(peer: Peer, level: Level) -> tuple[str, str]:
    """Return why a client may not do something, and the remedy."""
    user = "this user" if peer.uid is None else f"uid {peer.uid}"
    rule = "uid:USER" if peer.uid is None else f"uid:{peer.uid}"
    sentence = f"permission denied: {user} may not {level} at the control socket"
    return sentence, f'as root: add "{level} {rule}" to [admin] may, then reload the daemon'


def audit(log: Any, requester: Requester, action: str, what: str, result: str) -> None:
    """Log an action that could change something, or was denied."""
    log.info(
        "admin_action",
        action=action,
        what=what,
        uid=requester.peer.uid,
        pid=requester.pid,
        result=result,
    )
