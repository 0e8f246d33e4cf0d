"""Run a kernel as a process with a time limit, and return what its command printed.

Owns: `Completed`, `KernelError`, the check for the packages that kernels need, and the wait
for a kernel's end.  The kind of kernel (`uml`, `qemu`, `systemd`) is the caller's.  The init
of each kernel writes its command's exit status to ``status`` and the command's output to
``output``, both in the scratch folder, then powers off.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Final, NoReturn

import pytest

REPOSITORY: Final = Path(__file__).parents[2]


class KernelError(Exception):
    """A kernel hung, or ended without its command's exit status; the text shows its console."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command's exit status, and its stdout and stderr as one text."""

    status: int
    output: str


def require(**programs: str) -> None:
    """Skip or fail the test unless each program (``program="package"``) is installed."""
    missing = {package for program, package in programs.items() if not shutil.which(program)}
    if missing:
        skip_or_fail(f"missing packages: apt install {' '.join(sorted(missing))} (Debian)")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, or fail it where ``VSOCKPROXY_REQUIRE_KERNELS=1``."""
    if os.environ.get("VSOCKPROXY_REQUIRE_KERNELS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def enter_repository() -> str:
    """Return the lines of an init that enter the repository; HOME and TMPDIR are in memory."""
    return f"""\
export PATH={shlex.quote(os.environ["PATH"])}:/usr/sbin:/sbin LANG=C.UTF-8
export HOME=/run/home TMPDIR=/run/tmp
export PYTHONDONTWRITEBYTECODE=1 VSOCKPROXY_TEST_KERNEL=1
mkdir -p $HOME $TMPDIR
cd {shlex.quote(str(REPOSITORY))}"""


def run(line: Sequence[str], scratch: Path, timeout: float) -> Completed:
    """Run a kernel until it ends; its console goes to ``console`` in the scratch folder.

    Raises:
      KernelError: the kernel ended without the command's exit status, or did not end within
        ``timeout`` seconds.

    Resource handling: every process of the kernel is killed before this returns or raises.
    """
    status = scratch / "status"
    status.unlink(missing_ok=True)
    with (scratch / "console").open("wb") as console:
        ended = _wait(line, console.fileno(), timeout)
    if not ended or not status.exists():
        how = "ended without a result" if ended else f"did not end within {timeout:g} s"
        raise KernelError(f"{line[0]} {how}:\n{_evidence(scratch)}")
    return Completed(int(status.read_text()), _read(scratch / "output"))


def _wait(line: Sequence[str], console: int, timeout: float) -> bool:
    """Return whether the kernel ended within ``timeout`` seconds."""
    with subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as kernel:
        try:
            kernel.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        finally:
            # UML runs its processes as host processes, and some outlive the kernel.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, SIGKILL)
        return True


def _evidence(scratch: Path) -> str:
    console, output = _read(scratch / "console"), _read(scratch / "output")
    return f"--- console ---\n{console[-8000:]}\n--- output ---\n{output[-8000:]}"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
