"""Measure new connections over a target's own address family, without a proxy.

    PYTHONPATH=. python benchmarks/vsock.py without     # AF_VSOCK, in a User-Mode Linux kernel

Prints the median of the connections a second: no proxy can have more of them than the kernel.
"""

from __future__ import annotations

import statistics
import sys

import traffic


def main(address: str) -> int:
    """Measure and print."""
    with traffic.server(address, ()):
        for at_once in (1, 8, 64):
            group = f"connections={at_once},requests=1"
            results = [traffic.run(address, [group], 0.7, ()) for _ in range(5)]
            rates = [result.groups[0].requests / result.seconds for result in results]
            print(f"{at_once} at once: {statistics.median(rates):.0f} connections a second")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
