"""Measure the daemon against its peers; docs/benchmarks.md explains the rows.

    python benchmarks/bench.py [--only churn --peers vsockproxy,haproxy --rounds 3]

TCP in front, a Unix socket behind, each proxy in turn, A B A B; samples go to
build/bench/results.json, or to last.json beside it when only some rows or peers were measured.
Everything is on the loopback.  `make build/load` first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import machine
import measure
import traffic
from measure import Place
from peers import Peer, read_peers
from plan import OURS, Outcome, Plan, Step

HERE: Final = Path(__file__).parent
BUILD: Final = HERE.parent / "build" / "bench"
DESCRIPTORS: Final = 18100  # two for each of 8000 connections, and some for other files
CPUS_TO_SPARE: Final = 4  # with this many, the load never lacks one

Results = dict[str, Any]


def main() -> int:
    """Measure the rows; return 1 if the daemon lost bytes.  A peer's loss is only a result."""
    options = _options()
    allow_descriptors()
    peers = _choose(options.peers_file, options.peers)
    few = len(os.sched_getaffinity(0)) < CPUS_TO_SPARE
    plan = Plan(peers, options.rounds, options.scale, few, options.block * 2**20)
    wanted = tuple(options.only.split(","))
    steps = [step for step in plan.steps() if step.cost and step.name.startswith(wanted)]
    results: Results = {"machine": machine.description(peers), "half_close": {}, "rows": {}}
    try:
        with TemporaryDirectory(prefix="bench-") as name:
            place = place_in(Path(name), options.target)
            with traffic.server(place.target, place.server_cpus):
                for peer in peers:
                    results["half_close"][peer.name] = measure.keeps_half_close(place, peer)
                take_all(place, steps, results["rows"])
    finally:  # also after an error: the samples so far
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1))
        _print_table(results)
    lost = (name for row in results["rows"].values() for name in row["lost"])
    return int(any(name.startswith(OURS) for name in lost))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", default="", help="rows whose names begin so: churn,up-8")
    options.add_argument("--peers", default="", help="their names; without it, all")
    options.add_argument("--peers-file", type=Path, default=HERE / "peers.toml")
    options.add_argument("--target", default="", help="the address behind, instead of a unix:PATH")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--scale", type=float, default=1.0, help="stretches each sample")
    options.add_argument("--block", type=int, default=32, help="MiB of a bulk stream's requests")
    options.add_argument("--quick", action="store_true", help="a look within two minutes")
    options.add_argument("--output", type=Path, help="without it, and not everything: last.json")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.peers, chosen.rounds, chosen.scale = "vsockproxy,haproxy", 3, 0.4
        chosen.only = chosen.only or "up-,down-,trips-64-,churn-8,idle,growth-,start"
    if chosen.output is None:
        chosen.output = BUILD / ("last.json" if chosen.only or chosen.peers else "results.json")
    return chosen


def allow_descriptors() -> None:
    """Raise the limit of descriptors for every connection; child processes inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        most = max(most, DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, PermissionError):
        raise SystemExit(f"too few open files are allowed: want ulimit -Hn {DESCRIPTORS}") from None


def _choose(file: Path, names: str) -> list[Peer]:
    peers = read_peers(file)
    wanted = names.split(",") if names else [peer.name for peer in peers]
    if unknown := set(wanted) - {peer.name for peer in peers}:
        raise SystemExit(f"{file} has no {', '.join(sorted(unknown))}")
    for peer in peers:
        if peer.name in wanted and not peer.installed:
            print(f"{peer.name} is not installed: left out", file=sys.stderr)
    return [peer for peer in peers if peer.name in wanted and peer.installed]


def place_in(folder: Path, target: str) -> Place:
    """Return a place with the load on one processor and the proxy on another, if there are two."""
    place = Place(folder, target or f"unix:{folder}/target")
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return place
    server = others[1] if len(others) + 1 >= CPUS_TO_SPARE else first
    return Place(folder, place.target, (first,), (server,), (others[0],))


def take_all(place: Place, steps: Sequence[Step], rows: Results) -> None:
    """Take all samples of the steps and add them to the rows of the same names."""
    progress = Progress(steps)
    for step in steps:
        row = rows.setdefault(step.name, {"title": step.title, "samples": {}, "lost": {}})
        for outcome in step.samples(place):
            progress.tell(step, outcome)
            name, taken = outcome
            if isinstance(taken, traffic.LostError):
                row["lost"].setdefault(name, []).append(str(taken))
                continue
            for key, value in taken.items():
                row["samples"].setdefault(name, {}).setdefault(key, []).append(value)
        progress.done(step)


class Progress:
    """Prints each sample, and how long the rest will take."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._total = sum(step.cost * step.rounds for step in steps)
        self._done = 0.0
        self._began = time.monotonic()

    def tell(self, step: Step, outcome: Outcome) -> None:
        """Print a sample."""
        name, taken = outcome
        if isinstance(taken, traffic.LostError):
            values = f"LOST: {taken}"
        else:
            values = " ".join(f"{key}={value:.5g}" for key, value in taken.items())
        print(f"{step.name} {name}: {values}", file=sys.stderr)

    def done(self, step: Step) -> None:
        """Count a step as finished, and print the time left."""
        self._done += step.cost * step.rounds
        passed = time.monotonic() - self._began
        left = (self._total / self._done - 1) * passed
        print(f"[{passed:.0f} s passed, about {left:.0f} s left]", file=sys.stderr)


def _print_table(results: Results) -> None:
    """Print the medians of each row."""
    for name, row in results["rows"].items():
        print(f"\n{name}: {row['title']}")
        for peer, samples in row["samples"].items():
            medians = (f"{key} {statistics.median(values):.5g}" for key, values in samples.items())
            print(f"  {peer:22} {'  '.join(medians)}")
        for peer, why in row["lost"].items():
            print(f"  {peer:22} LOST in {len(why)} runs: {why[0]}")
    for peer, why in results["half_close"].items():
        if why:
            print(f"{peer} loses the answer after a half-close: {why}")


if __name__ == "__main__":
    sys.exit(main())
