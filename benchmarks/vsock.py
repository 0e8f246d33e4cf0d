"""Run the benchmarks over AF_VSOCK, in a User-Mode Linux kernel, against socat.

    PYTHONPATH=. python benchmarks/vsock.py [in|out|without]

`in` is TCP to vsock, into a guest, and writes build/bench/vsock.json; `out` is vsock to TCP, out of
one, and writes build/bench/vsock-out.json; `without` is vsock without a proxy, and is printed.
That kernel has one processor and slow system calls, so only the ratios count.  The machine's own
vsock is not touched; see docs/testing.md.
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
WAYS: Final = {
    # The target, where CID 1 is the loopback; the peers; the results.
    "in": ("vsock:1:5000", "peers-vsock.toml", "vsock.json"),
    "out": ("tcp:127.0.0.1:5000", "peers-vsock-out.toml", "vsock-out.json"),
}


def main(way: str = "in") -> int:
    """Run the benchmarks there and fetch the results; return their exit status."""
    if way == "without":
        return _without_proxy()
    target, peers, kept = WAYS[way]
    with TemporaryDirectory(prefix="bench-vsock-") as name:
        scratch = Path(name)
        results = scratch / "results.json"
        line = [
            *(sys.executable, "benchmarks/bench.py", "--target", target, "--only", ROWS),
            *("--peers-file", f"benchmarks/{peers}", "--output", str(results)),
            *("--block", "4"),  # MiB: a run finishes its requests, and socat is slow
        ]
        done = run_in_uml(line, scratch, timeout=900)
        print(done.output)
        if results.exists():
            folder = ROOT / "build" / "bench"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(results, folder / kept)
        return done.status


def _without_proxy() -> int:
    with TemporaryDirectory(prefix="bench-vsock-") as name:
        line = [sys.executable, "benchmarks/without_proxy.py", "vsock:1:5000"]
        done = run_in_uml(line, Path(name), timeout=300)
    print(done.output)
    return done.status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
