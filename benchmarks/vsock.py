"""Run the benchmarks with AF_VSOCK targets, in a User-Mode Linux kernel, against socat.

    PYTHONPATH=. python benchmarks/vsock.py

Writes build/bench/vsock.json.  That kernel has one processor and slow system calls, so only
the ratios count.  The machine's own vsock is not touched; see docs/testing.md.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.kernel.uml import run_in_uml

ROOT: Final = Path(__file__).parents[1]
ROWS: Final = "up-,down-,trips-,churn-"
TARGET: Final = "vsock:1:5000"
"""CID 1 is the loopback."""


def main() -> int:
    """Run the benchmarks there and fetch the results; return their exit status."""
    with TemporaryDirectory(prefix="bench-vsock-") as name:
        scratch = Path(name)
        results = scratch / "results.json"
        line = [
            *(sys.executable, "benchmarks/bench.py", "--target", TARGET, "--only", ROWS),
            *("--peers-file", "benchmarks/peers-vsock.toml", "--output", str(results)),
            *("--block", "4"),  # MiB: a run finishes its requests, and socat is slow
        ]
        done = run_in_uml(line, scratch, timeout=900)
        print(done.output)
        if results.exists():
            kept = ROOT / "build" / "bench" / "vsock.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(results, kept)
        return done.status


if __name__ == "__main__":
    sys.exit(main())
