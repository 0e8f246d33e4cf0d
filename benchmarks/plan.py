"""The steps of a run: which rows are measured, in which order.

Owns: `Step` and the list of them.  A step is one row of the results: named takers,
called in turn, A B A B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import alone
import measure
import traffic
from measure import Place, Sample
from peers import Peer, Proxy, running
from rows import Row, growth, idle, rows
from usage import perf_counts

Taker = tuple[str, Callable[[], Sample]]
"""The name of the proxy, and the function that takes one sample."""

Outcome = tuple[str, Sample | traffic.LostError]
"""The name of the proxy, and its sample, or how bytes were lost."""

Measurement = Callable[[Place, Proxy, Row, float], Sample]

Opener = Callable[[Place, ExitStack], Iterable[Taker]]
"""Start the proxies that run during all rounds, and return the takers."""

OURS: Final = "vsockproxy"
REFERENCE: Final = "haproxy"


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the results; ``cost`` is about the seconds of all samples of a round.

    A cost of 0 means that no peer can be measured.
    """

    name: str
    title: str
    rounds: int
    cost: float
    open: Opener

    def samples(self, place: Place) -> Iterator[Outcome]:
        """Take all samples of the step."""
        with ExitStack() as stack:
            takers = list(self.open(place, stack))
            for _ in range(self.rounds):
                for name, take in takers:
                    try:
                        yield name, take()
                    except traffic.LostError as lost:
                        yield name, lost


@dataclass(frozen=True, slots=True)
class Plan:
    """A run's peers, its rounds, and the scale of a sample's length (1 is the full length)."""

    peers: Sequence[Peer]
    rounds: int
    scale: float
    bulk_anywhere: bool  # in bulk, no program is bound to a processor
    block: int  # bytes of one request of a bulk stream

    def steps(self) -> Iterator[Step]:
        """Return all steps."""
        for row in rows(self.block):
            step = self._compared(row, measure.sample, 0.7)
            anywhere = row.bulk and self.bulk_anywhere
            yield replace(step, open=_anywhere(step.open)) if anywhere else step
        yield self._idle(idle(8000))
        for connections in (10, 100, 1000, 8000):
            yield self._compared(growth(connections), measure.sample, 0.7, (OURS, REFERENCE))
        if perf_counts():
            for row in rows(self.block):
                yield replace(self._compared(row, measure.system_calls, 0.2), rounds=1)
        ours = next((peer for peer in self.peers if peer.name == OURS), None)
        if ours is not None:
            yield from self._mux(ours)
            yield from self._threads(ours)
            yield from self._alone(ours)

    def _compared(
        self, row: Row, take: Measurement, seconds: float, names: Sequence[str] = ()
    ) -> Step:
        """Return a step that compares peers."""
        peers = [peer for peer in self._able(row) if not names or peer.name in names]
        seconds *= self.scale
        cost = len(peers) * (seconds + 0.3 + row.connections / 5000)
        return Step(row.name, row.title, self.rounds, cost, _beside(row, take, seconds, peers))

    def _idle(self, row: Row) -> Step:
        """Return a step with a new process for each sample: a process keeps memory it once had."""
        peers, seconds = self._able(row), 2 * self.scale

        def one(place: Place, peer: Peer) -> Sample:
            with running(peer, place.folder, place.target, place.proxy_cpus) as proxy:
                return measure.idle(place, proxy, row, seconds)

        def open_them(place: Place, _stack: ExitStack) -> Iterator[Taker]:
            return ((peer.name, partial(one, place, peer)) for peer in peers)

        return Step(row.name, row.title, self.rounds, len(peers) * (seconds + 2.5), open_them)

    def _able(self, row: Row) -> list[Peer]:
        return [peer for peer in self.peers if peer.most >= row.connections]

    def _mux(self, ours: Peer) -> Iterator[Step]:
        """Return the step of new connections to a VMM's socket, beside those to a Unix socket."""
        beside = [peer for peer in self.peers if peer.name in (OURS, REFERENCE)]
        config = ours.config.replace('"unix:{target_path}"', '"vsock-mux:{target_path}:5"')
        # A held FIN would end the connections only after the measurement.
        config = config.replace("[defaults]", '[defaults]\nhalf_close = "forward"')
        mux = replace(ours, name="vsock-mux", config=config)
        seconds = 0.7 * self.scale

        def open_them(row: Row, place: Place, stack: ExitStack) -> Iterator[Taker]:
            vmm = replace(place, target=f"mux:{place.folder}/vmm")
            stack.enter_context(traffic.server(vmm.target, vmm.server_cpus))
            yield from _beside(row, measure.sample, seconds, beside)(place, stack)
            yield from _beside(row, measure.sample, seconds, [mux])(vmm, stack)

        for row in rows(self.block):
            if row.name.startswith("churn-"):
                title = f"{row.title}, vsock-mux target"
                cost = (len(beside) + 1) * (seconds + 0.3)
                yield Step(f"mux-{row.name}", title, self.rounds, cost, partial(open_them, row))

    def _threads(self, ours: Peer) -> Iterator[Step]:
        """Return the step of the daemon with 1, 2 and 4 pump threads, on every processor."""
        peers = [
            replace(ours, name=f"{n} threads", config=_set_threads(ours.config, n))
            for n in (1, 2, 4)
        ]
        seconds = 0.7 * self.scale
        for row in rows(self.block):
            if row.name in ("up-8", "down-8", "churn-64"):
                title = f"{row.title}, by pump threads"
                opener = _anywhere(_beside(row, measure.sample, seconds, peers))
                cost = len(peers) * (seconds + 0.3)
                yield Step(f"threads-{row.name}", title, self.rounds, cost, opener)

    def _alone(self, ours: Peer) -> Iterator[Step]:
        """Return the steps of the daemon alone."""

        def rests(place: Place, _stack: ExitStack) -> Iterator[Taker]:
            for routes in (1, 10, 100, 1000):
                yield f"{routes} routes", partial(alone.at_rest, place.folder, routes)

        def scrapes(place: Place, stack: ExitStack) -> Iterator[Taker]:
            for routes, connections in ((1, 0), (100, 0), (1000, 0), (1, 5000)):
                peer = alone.scraped(ours, routes)
                proxy = stack.enter_context(
                    running(peer, place.folder, place.target, place.proxy_cpus)
                )
                name = f"{routes} routes, {connections} connections"
                yield name, partial(alone.scrape, place, proxy, connections)

        yield Step(
            "start", "from its start until it is ready, and memory then", self.rounds, 3, rests
        )
        yield Step("scrape", "a scrape of the metrics", self.rounds, 3, scrapes)


def _beside(row: Row, take: Measurement, seconds: float, peers: Sequence[Peer]) -> Opener:
    """Run all peers during all rounds."""

    def open_them(place: Place, stack: ExitStack) -> Iterator[Taker]:
        for peer in peers:
            proxy = stack.enter_context(running(peer, place.folder, place.target, place.proxy_cpus))
            yield peer.name, partial(take, place, proxy, row, seconds)

    return open_them


def _anywhere(opener: Opener) -> Opener:
    """Return the same takers without processors assigned."""
    return lambda place, stack: opener(place.anywhere(), stack)


def _set_threads(config: str, threads: int) -> str:
    return config.replace("threads = 1\n", f"threads = {threads}\n")
