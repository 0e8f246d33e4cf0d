"""Measure the daemon against its peers; docs/benchmarks.md says what, and how to read it.

    python benchmarks/bench.py [--only churn --peers vsockproxy,haproxy --rounds 3]

TCP in front, a Unix socket behind, each proxy in turn, A B A B; samples and medians go to
build/bench/results.json.  Everything is on the loopback.  `make build/load` first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import measure
import traffic
from measure import Place, Sample, Step
from peers import Peer, read_peers
from rows import ROWS, growth, idle
from usage import perf_counts

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE.parent / "build" / "bench" / "results.json"
DESCRIPTORS: Final = 18100

Results = dict[str, Any]


def main() -> int:
    """Measure what was asked for; 1 when a proxy has lost bytes."""
    options = _options()
    _allow_descriptors()
    peers = _choose(options.peers_file, options.peers)
    steps = list(_plan(peers, options))
    results: Results = {
        "peers": {peer.name: peer.version_line() for peer in peers},
        "half_close": {},
        "rows": {},
    }
    progress = Progress(steps)
    with TemporaryDirectory(prefix="bench-") as name:
        place = _place(Path(name), options.pin)
        with traffic.server(f"unix:{place.target}", place.server_cpus):
            for peer in peers:
                results["half_close"][peer.name] = measure.keeps_half_close(place, peer)
            for step in steps:
                _take(place, step, results["rows"], progress)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1))
    _print_table(results)
    return int(any(row["lost"] for row in results["rows"].values()))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", default="", help="rows whose names begin so: churn,up-8")
    options.add_argument("--peers", default="", help="names of peers.toml; without it, all")
    options.add_argument("--peers-file", type=Path, default=HERE / "peers.toml")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0, help="of one sample")
    options.add_argument("--quick", action="store_true", help="a look within two minutes")
    options.add_argument("--pin", choices=("split", "none"), default="split")
    options.add_argument("--output", type=Path, default=RESULTS)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.peers, chosen.rounds, chosen.seconds = "vsockproxy,haproxy", 3, 0.4
    return chosen


def _allow_descriptors() -> None:
    """Two for each of 8000 connections; what is started inherits it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < DESCRIPTORS:
        raise SystemExit(
            f"at most {most} open files are allowed here: want ulimit -Hn {DESCRIPTORS}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _choose(file: Path, names: str) -> list[Peer]:
    peers = read_peers(file)
    wanted = names.split(",") if names else [peer.name for peer in peers]
    if unknown := set(wanted) - {peer.name for peer in peers}:
        raise SystemExit(f"{file} has no {', '.join(sorted(unknown))}")
    for peer in peers:
        if peer.name in wanted and not peer.installed:
            print(f"{peer.name} is not installed: left out", file=sys.stderr)
    return [peer for peer in peers if peer.name in wanted and peer.installed]


def _place(folder: Path, pin: str) -> Place:
    """The load on one processor and the proxy on the next, where there are two."""
    cpus = sorted(os.sched_getaffinity(0))
    if pin == "none" or len(cpus) == 1:
        cpus_of: tuple[tuple[int, ...], ...] = ((), (), ())
    else:
        cpus_of = ((cpus[0],), (cpus[0],), (cpus[1],))
    return Place(folder, str(folder / "target"), *cpus_of)


def _plan(peers: Sequence[Peer], options: argparse.Namespace) -> Iterator[Step]:
    """Every step whose row was asked for."""
    few = tuple(peer for peer in peers if peer.name in ("vsockproxy", "haproxy"))
    steps = [Step(row, measure.sample, tuple(peers), options.rounds, 1) for row in ROWS]
    steps.append(Step(idle(8000), measure.idle, tuple(peers), options.rounds, 2, fresh=True))
    for connections in (10, 100, 1000, 8000):
        steps.append(Step(growth(connections), measure.sample, few, options.rounds, 1))
    if perf_counts():
        steps += [Step(row, measure.system_calls, tuple(peers), 1, 0.3) for row in ROWS]
    for step in steps:
        if step.row.name.startswith(tuple(options.only.split(","))):
            able = tuple(peer for peer in step.peers if peer.most >= step.row.connections)
            yield replace(step, peers=able, seconds=step.seconds * options.seconds)


def _take(place: Place, step: Step, rows: Results, progress: Progress) -> None:
    """All samples of a step, into the row of that name."""
    entry = rows.setdefault(step.row.name, {"title": step.row.title, "peers": {}, "lost": {}})
    for name, taken in measure.samples(place, step):
        progress.tell(step, name, taken)
        if isinstance(taken, traffic.LostError):
            entry["lost"].setdefault(name, []).append(str(taken))
            continue
        samples = entry["peers"].setdefault(name, {})
        for key, value in taken.items():
            samples.setdefault(key, []).append(value)


class Progress:
    """Says what was taken, and how long the rest will take."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._total = sum(step.cost * step.rounds * len(step.peers) for step in steps)
        self._done = 0.0
        self._began = time.monotonic()

    def tell(self, step: Step, peer: str, taken: Sample | traffic.LostError) -> None:
        """One sample is there."""
        self._done += step.cost
        left = (self._total / self._done - 1) * (time.monotonic() - self._began)
        if isinstance(taken, traffic.LostError):
            values = f"LOST: {taken}"
        else:
            values = " ".join(f"{key}={value:.5g}" for key, value in taken.items())
        print(f"[{left:4.0f} s left] {step.row.name} {peer}: {values}", file=sys.stderr)


def _print_table(results: Results) -> None:
    """Medians, for whoever ran one row."""
    for name, row in results["rows"].items():
        print(f"\n{name}: {row['title']}")
        for peer, samples in row["peers"].items():
            medians = (f"{key} {statistics.median(values):.5g}" for key, values in samples.items())
            print(f"  {peer:22} {'  '.join(medians)}")
        for peer, why in row["lost"].items():
            print(f"  {peer:22} LOST in {len(why)} runs: {why[0]}")
    for peer, why in results["half_close"].items():
        if why:
            print(f"{peer} loses the answer after a half-close: {why}")


if __name__ == "__main__":
    sys.exit(main())
