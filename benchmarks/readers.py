"""Measure the readers of clients that name their targets, beside a plain route and other programs.

    python benchmarks/readers.py [--rounds 5] [--scale 1]

TCP in front and behind; peers-by-name.toml has the programs.  Prints a table of ratios to the plain
route, each within its round.  ``make build/load`` first.
"""

from __future__ import annotations

import argparse
import ssl
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import measure
import traffic
from bench import HERE, allow_descriptors, place_in, take_all
from measure import Place
from peers import Peer, free_port, read_peers, running
from plan import Opener, Step, Taker
from rows import Row, rows

PLAIN: Final = "plain"
ROWS: Final = ("churn-8", "trips-64-64")
NAME: Final = "a.example.com"

Results = dict[str, dict[str, dict[str, dict[str, list[float]]]]]


@dataclass(frozen=True, slots=True)
class Reader:
    """A protocol: what a client sends, as options of the load program."""

    name: str
    greetings: tuple[tuple[bytes, str], ...]
    passed_on: bool = False  # the target is sent the greeting, too

    def row(self, row: Row) -> Row:
        """Return a row whose connections begin with the greetings."""
        words = [f"{data.hex()}:{answer}" for data, answer in self.greetings]
        options = (option for word in words for option in ("--greet", word))
        return replace(row, groups=(*options, *row.groups))

    @property
    def skipped(self) -> int:
        """The bytes of the greetings that a target is sent."""
        return sum(len(data) for data, _ in self.greetings) if self.passed_on else 0


def readers(port: int) -> tuple[Reader, ...]:
    """Return the protocols, for a target at a port of the loopback."""
    request = b"\5\1\0\1\x7f\0\0\1" + port.to_bytes(2, "big")
    connect = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    get = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n".encode()
    return (
        Reader("socks5", ((b"\5\1\0", "2"), (request, "10"))),
        Reader("http-connect", ((connect, "head"),)),
        Reader("sni", ((_hello(), "0"),), passed_on=True),
        Reader("http-host", ((get, "0"),), passed_on=True),
        Reader("mux", ((b"CONNECT web 80\n", "6"),)),
    )


def _hello() -> bytes:
    """Return the ClientHello of OpenSSL."""
    sent = ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=NAME)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return sent.read()
    raise AssertionError("a handshake without a server has ended")


def main() -> int:
    """Measure every reader and print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--scale", type=float, default=1.0, help="stretches each sample")
    chosen = options.parse_args()
    allow_descriptors()
    peers = [peer for peer in read_peers(HERE / "peers-by-name.toml") if peer.installed]
    results: Results = {}
    port = free_port()
    with TemporaryDirectory(prefix="readers-") as folder:
        place = place_in(Path(folder), f"tcp:127.0.0.1:{port}")
        for reader in readers(port):
            compared = [peer for peer in peers if peer.reader in ("", reader.name)]
            steps = list(_steps(reader, compared, chosen.rounds, 0.7 * chosen.scale))
            with traffic.server(place.target, place.server_cpus, reader.skipped):
                take_all(place, steps, results)
    for line in _table(results):
        print(line)
    return 0


def _steps(reader: Reader, peers: Sequence[Peer], rounds: int, seconds: float) -> Iterator[Step]:
    for row in rows():
        if row.name in ROWS:
            opener = _beside(reader, row, peers, seconds)
            cost = len(peers) * (seconds + 0.3)
            yield Step(f"{reader.name} {row.name}", row.title, rounds, cost, opener)


def _beside(reader: Reader, row: Row, peers: Sequence[Peer], seconds: float) -> Opener:
    """Run all peers during all rounds; the plain route's clients greet only a target."""

    def open_them(place: Place, stack: ExitStack) -> Iterator[Taker]:
        for peer in peers:
            proxy = stack.enter_context(running(peer, place.folder, place.target, place.proxy_cpus))
            greets = peer.reader or reader.passed_on
            asked = reader.row(row) if greets else row
            yield peer.name, partial(measure.sample, place, proxy, asked, seconds)

    return open_them


def _table(results: Results) -> Iterator[str]:
    yield "| protocol | program | connections per second | cpu of each | round trips per second |"
    yield "|---|---|---:|---:|---:|"
    for name in dict.fromkeys(row.partition(" ")[0] for row in results):
        churn, trips = (results[f"{name} {row}"]["samples"] for row in ROWS)
        for peer in churn:
            if peer == PLAIN:
                continue
            figures = (
                _ratio(churn, peer, "rate"),
                _ratio(churn, peer, "cpu_per_unit"),
                _ratio(trips, peer, "rate"),
            )
            yield f"| `{name}` | {peer} | {' | '.join(figures)} |"
    plain = results[f"socks5 {ROWS[0]}"]["samples"][PLAIN]
    micros = statistics.median(plain["cpu_per_unit"]) * 1e6
    rate = statistics.median(plain["rate"])
    yield f"\nplain: {rate:,.0f} connections per second, {micros:.0f} µs of processor time each"


def _ratio(samples: dict[str, dict[str, list[float]]], peer: str, figure: str) -> str:
    """Return the median of a figure's ratios to the plain route's within each round."""
    pairs = zip(samples[peer][figure], samples[PLAIN][figure], strict=False)
    return f"{statistics.median(one / other for one, other in pairs):.2f}"


if __name__ == "__main__":
    sys.exit(main())
