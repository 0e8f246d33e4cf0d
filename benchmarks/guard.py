"""Fail when the daemon's data path has become much more expensive.

    python benchmarks/guard.py

Compares its processor time a unit with that of the load program's plain relay, which does the
least a relay can do.  The two run in turn: their ratio holds on a slow or busy machine, where a
time would not.  Exit status 1 when a ratio is over its bound.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import traffic
from bench import HERE, allow_descriptors, place_in, take_all
from peers import Peer, read_peers
from plan import OURS, Plan, Step
from targets import Table

RELAY: Final = Peer(
    "relay", f"{traffic.LOAD} relay tcp:127.0.0.1:{{listen_port}} unix:{{target_path}}", ""
)
BOUNDS: Final = {"up-1": 1.6, "down-1": 1.6, "trips-64-64": 1.6, "churn-8": 3.5}
"""The bounds, in multiples of the relay's processor time: 1.5 times those of a quiet machine."""


def main() -> int:
    """Measure and print; return 1 if a ratio is over its bound."""
    ours = next(peer for peer in read_peers(HERE / "peers.toml") if peer.name == OURS)
    table = measured([ours, RELAY], tuple(BOUNDS))
    over = [row for row, bound in BOUNDS.items() if not _within(table, row, bound)]
    return int(bool(over))


def measured(peers: Sequence[Peer], names: Sequence[str], rounds: int = 5) -> Table:
    """Measure some rows with each of the peers."""
    allow_descriptors()
    steps: dict[str, Step] = {}
    for step in Plan(peers, rounds, 0.5, False, 2**23).steps():
        steps.setdefault(step.name, step)  # the second step of that name counts system calls
    rows: dict[str, object] = {}
    with TemporaryDirectory(prefix="guard-") as name:
        place = place_in(Path(name), "")
        with traffic.server(place.target, place.server_cpus):
            take_all(place, [steps[row] for row in names], rows)
    return Table(rows)


def _within(table: Table, row: str, bound: float) -> bool:
    """Print a ratio and return whether it is within its bound; False also without samples."""
    ratio = table.ratio(row, OURS, RELAY.name, "cpu_per_unit")
    fine = ratio is not None and ratio <= bound
    said = "lost bytes" if ratio is None else f"{ratio:.2f} x the plain relay's processor time"
    print(f"{row:12} {said}, at most {bound}: {'fine' if fine else 'TOO MUCH'}")
    return fine


if __name__ == "__main__":
    sys.exit(main())
