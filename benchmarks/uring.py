"""Measure what io_uring would save: a plain relay by io_uring beside one by epoll, and others.

    python benchmarks/uring.py [--rounds 5]

Prints ratios to the plain relay by epoll, each within its round.  ``make bench-uring`` builds both.
"""

from __future__ import annotations

import argparse
from typing import Final

from bench import HERE
from guard import RELAY, measured
from peers import Peer, read_peers
from plan import OURS, REFERENCE

PROGRAM: Final = HERE.parent / "build" / "uring-relay"
URING: Final = Peer(
    "relay by io_uring", f"{PROGRAM} tcp:127.0.0.1:{{listen_port}} unix:{{target_path}}", ""
)
ROWS: Final = ("up-1", "down-1", "trips-64-1", "trips-64-64", "trips-64-1000", "churn-8")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    others = [peer for peer in read_peers(HERE / "peers.toml") if peer.name in (OURS, REFERENCE)]
    table = measured([RELAY, URING, *others], ROWS, rounds)
    print("| | | units a second | processor time of a unit |\n|---|---|---:|---:|")
    for row in ROWS:
        title = table.rows[row]["title"]
        for peer in (URING, *others):
            rate, cost = (
                table.ratio(row, peer.name, RELAY.name, figure) or float("nan")
                for figure in ("rate", "cpu_per_unit")
            )
            print(f"| {title} | {peer.name} | {rate:.2f} | {cost:.2f} |")


if __name__ == "__main__":
    main()
