"""Describe the machine and the versions of the measured programs."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from peers import Peer


def description(peers: Iterable[Peer]) -> dict[str, object]:
    """Return the machine's description for readers of the results."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _line(["git", "describe", "--always", "--dirty"]),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "gcc": _line(["gcc", "--version"]),
        "load_average": os.getloadavg()[0],
        "peers": {peer.name: peer.version_line() for peer in peers},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _line(command: list[str]) -> str:
    """Return the first line that a command prints; "unknown" if it is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0]
