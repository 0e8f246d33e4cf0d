"""Measure the daemon alone: time until it is ready, memory at rest, cost of a scrape."""

from __future__ import annotations

import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import traffic
from footprint import daemon
from measure import Place, Sample
from peers import Peer, Proxy
from usage import memory_of, usage_of

_SCRAPES: Final = 5  # of one sample


def at_rest(folder: Path, routes: int) -> Sample:
    """Return the seconds until the daemon is ready, and its memory then."""
    started = time.monotonic()
    with daemon(folder, routes) as process:
        ready = time.monotonic() - started
        memory = memory_of(process.pid)
    return {"ready_seconds": ready, "rss": memory.rss, "pss": memory.pss}


def scraped(peer: Peer, routes: int) -> Peer:
    """Return the daemon as a peer, which has metrics, with ``routes`` routes."""
    more = (f'"unix:{{folder}}/{n}" = "unix:{{target_path}}"' for n in range(1, routes))
    return replace(peer, config=peer.config + "\n".join(more))


def scrape(place: Place, proxy: Proxy, connections: int) -> Sample:
    """Return the seconds and processor seconds of a scrape, with idle connections open."""
    taken: Sample = {}

    def several() -> None:
        before, began = usage_of(proxy.pid), time.monotonic()
        size = [_get(proxy.folder / "metrics") for _ in range(_SCRAPES)][-1]
        taken["scrape_seconds"] = (time.monotonic() - began) / _SCRAPES
        taken["scrape_cpu"] = (usage_of(proxy.pid).cpu - before.cpu) / _SCRAPES
        taken["scrape_bytes"] = size

    _get(proxy.folder / "metrics")  # the first one imports modules
    if connections:
        groups = [f"connections={connections},flight=0"]
        traffic.run(proxy.address, groups, 0, place.client_cpus, started=several)
    else:
        several()
    return taken


def _get(path: Path) -> int:
    """Scrape once; return the size of the answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(1 << 20), b""))
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"a scrape was answered {answer[:80]!r}")
    return len(answer)
