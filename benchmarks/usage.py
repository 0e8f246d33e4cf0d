"""Read what a tree of processes has used: processor time, memory, switches, system calls.

Everything is read from /proc.  perf counts system calls where that is permitted, in separate runs:
a tracepoint at each call would slow a timed run.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_ENDED: Final = (FileNotFoundError, ProcessLookupError)  # it ended between two reads


@dataclass(frozen=True, slots=True)
class Usage:
    """A tree's totals: processor seconds, and context switches of all its threads."""

    cpu: float
    switches: int
    pids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Memory:
    """A tree's totals in bytes; ``pss`` divides shared pages between processes."""

    rss: int
    pss: int


def usage_of(root: int) -> Usage:
    """Return what the tree has used; ended children count once their parent has waited for them."""
    pids = tree(root)
    cpu, switches = 0.0, 0
    for pid in pids:
        with suppress(*_ENDED):
            fields = _stat(pid)
            cpu += (int(fields[13]) + int(fields[14])) * _TICK  # cutime, cstime: proc(5)
            own = 0.0
            for task in Path(f"/proc/{pid}/task").iterdir():
                own += _run_seconds(task)
                switches += _switches(task)
            # utime and stime have threads that have ended, too, but not to the nanosecond.
            cpu += max(own, (int(fields[11]) + int(fields[12])) * _TICK)
    return Usage(cpu, switches, frozenset(pids))


def memory_of(root: int) -> Memory:
    """Return the tree's resident and proportional memory."""
    rss = pss = 0
    for pid in tree(root):
        with suppress(*_ENDED):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
            rss += sizes["Rss"] * 1024
            pss += sizes["Pss"] * 1024
    return Memory(rss, pss)


def tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(*_ENDED):
                parent = int(_stat(int(entry.name))[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _run_seconds(task: Path) -> float:
    """Return the processor time, to the nanosecond where the kernel has it."""
    schedstat = task / "schedstat"
    if schedstat.exists():
        return int(schedstat.read_text().split()[0]) / 1e9
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK


def _switches(task: Path) -> int:
    lines = (task / "status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


class SystemCalls:
    """Counts the system calls of a tree, later children included; needs `perf_counts`."""

    def __init__(self, root: int) -> None:
        """Start counting."""
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        line = [
            *("perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-D", "-1"),
            *("--control", f"fd:{orders},{answers}", "-p", ",".join(map(str, tree(root)))),
        ]
        self._perf = subprocess.Popen(
            line, stderr=subprocess.PIPE, text=True, pass_fds=(orders, answers)
        )
        os.close(orders)
        os.close(answers)
        self._order(b"enable\n")

    def stop(self) -> int:
        """Stop counting and return the number."""
        self._order(b"disable\n")
        self._perf.send_signal(signal.SIGINT)
        _, output = self._perf.communicate(timeout=10)
        os.close(self._orders)
        os.close(self._answers)
        counted = next(line for line in output.splitlines() if "raw_syscalls" in line)
        number = counted.split(",")[0]
        return int(number) if number.isdigit() else 0  # "<not counted>": the tree did not run

    def _order(self, order: bytes) -> None:
        os.write(self._orders, order)
        os.read(self._answers, 16)  # its "ack"


@cache
def perf_counts() -> bool:
    """Return whether perf is installed and may trace system calls."""
    if shutil.which("perf") is None:
        return False
    line = ["perf", "stat", "-e", "raw_syscalls:sys_enter", "true"]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0
