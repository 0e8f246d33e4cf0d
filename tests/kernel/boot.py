"""A kernel as a process: started, bounded in time, ended, and what is known of it.

Owns: `Completed`, `KernelError`, the packages that kernels need, and the wait for a
kernel's end.  Knows nothing of what kind of kernel it is.  The convention that `run`
expects of a kernel's init: it writes a command's exit status to ``status`` and what the
command printed to ``output``, both in the scratch folder, then ends the kernel.
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
    """A kernel did not do what it was booted for; the text shows its console."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command left behind: its exit status, and stdout and stderr as one text."""

    status: int
    output: str


def require(**programs: str) -> None:
    """Skip the test unless each program (``program="package"``) is there."""
    missing = {package for program, package in programs.items() if not shutil.which(program)}
    if missing:
        lacking(f"install what is missing (Debian: apt install {' '.join(sorted(missing))})")


def lacking(what: str) -> NoReturn:
    """Skip the test, or fail it where the kernels are required, saying what is missing."""
    if os.environ.get("VSOCKPROXY_REQUIRE_KERNELS") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def enter_repository() -> str:
    """The lines of an init that lead to the repository, with files in memory for the rest."""
    return f"""\
export PATH={shlex.quote(os.environ["PATH"])}:/usr/sbin:/sbin LANG=C.UTF-8
export HOME=/run/home TMPDIR=/run/tmp
export PYTHONDONTWRITEBYTECODE=1 VSOCKPROXY_TEST_KERNEL=1
mkdir -p $HOME $TMPDIR
cd {shlex.quote(str(REPOSITORY))}"""


def run(line: Sequence[str], scratch: Path, timeout: float) -> Completed:
    """Run a kernel until it ends; its console goes to ``console`` in the scratch folder.

    Raises `KernelError` when it ends without an exit status of the command, or has not
    ended after ``timeout`` seconds.  Either way nothing of it runs on.
    """
    status = scratch / "status"
    status.unlink(missing_ok=True)
    with (scratch / "console").open("wb") as console:
        ended = _wait(line, console.fileno(), timeout)
    if not ended or not status.exists():
        how = "ended without a result" if ended else f"had not ended after {timeout:g} s"
        raise KernelError(f"{line[0]} {how}:\n{_evidence(scratch)}")
    return Completed(int(status.read_text()), _read(scratch / "output"))


def _wait(line: Sequence[str], console: int, timeout: float) -> bool:
    """Whether the kernel ended by itself."""
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
            # A process in UML is one here as well, and some outlive the kernel.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, SIGKILL)
        return True


def _evidence(scratch: Path) -> str:
    console, output = _read(scratch / "console"), _read(scratch / "output")
    return f"--- console ---\n{console[-8000:]}\n--- output ---\n{output[-8000:]}"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
