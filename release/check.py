"""Run what is longer than the gate, each step within a time limit: release/check.py [STEP...].

Ends with a table of the steps; a step that cannot run has failed.  Without STEP all are run.
Needs Debian 12 and root; the step `packages` installs the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from release.pythons import REPOSITORY

LOGS: Final = REPOSITORY / "build" / "release-check"

RECORD: Final = LOGS / "record.json"
"""What the last whole check came to, for `release.tag`: commit, is_clean, outcomes of the steps."""

PACKAGES: Final = (
    *("debhelper", "lintian"),  # release/deb.py
    *("debootstrap", "qemu-user-static"),  # release/try_wheels.py
    *("user-mode-linux", "kmod", "iproute2"),  # release/try_deb.py
    "chromium-headless-shell",  # tests/e2e/test_page_in_browser.py
)

APT: Final = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends"

# Without the browser the test would be skipped, and the step pass.
BROWSER: Final = (
    "command -v chromium-headless-shell && $PYTHON -m pytest -q tests/e2e/test_page_in_browser.py"
)


@dataclass(frozen=True)
class Step:
    """A command of the shell, its limit in seconds, and the steps whose results it uses."""

    name: str
    command: str
    limit: float
    after: tuple[str, ...] = ()


STEPS: Final = (
    Step("packages", f"apt-get update -qq && {APT} {' '.join(PACKAGES)}", 600),
    Step("wheels", "make wheel", 900),
    Step("try-wheels", "$PYTHON -m release.try_wheels", 1800, ("packages", "wheels")),
    Step("onefile", "make onefile", 600, ("wheels",)),
    Step("sbom", "make sbom", 300, ("wheels",)),
    Step("oldest", "$PYTHON -m release.suite oldest 3.11", 2400, ("wheels",)),
    Step("newest", "$PYTHON -m release.suite newest 3.13", 2400, ("wheels",)),
    Step("deb", "make deb", 300, ("packages", "wheels")),
    Step("lintian", "lintian --fail-on error dist/*~deb12_*.deb", 300, ("deb",)),
    Step("deb-trixie", "make deb SUITE=trixie", 300, ("packages", "wheels")),
    Step("try-trixie", "$PYTHON -m release.try_trixie", 300, ("try-wheels", "deb-trixie")),
    Step("host", "tests/kernel/make_systemd_root.sh", 600, ("packages",)),
    Step("try-deb", "$PYTHON -m release.try_deb", 1500, ("deb", "host")),
    Step("try-readme", "$PYTHON -m release.try_readme", 900, ("host",)),
    Step("docs", "make docs", 300),
    Step("browser", BROWSER, 300, ("packages",)),
    Step("soak", "make soak SCHEDULES=20000 MINUTES=10", 3600),
)


@dataclass(frozen=True)
class Result:
    """How a step ended: `outcome` is ``ran`` or the reason of the failure."""

    step: Step
    outcome: str
    seconds: float


def main(names: Sequence[str]) -> None:
    """Run the named steps, or all; exit with status 1 if one failed."""
    if unknown := set(names) - {step.name for step in STEPS}:
        sys.exit(f"check: no step {', '.join(unknown)}: {' '.join(step.name for step in STEPS)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    steps = [step for step in STEPS if not names or step.name in names]
    print(*missing(steps), sep="", end="")
    before = commit_of(REPOSITORY)
    results = list(run(steps))
    print(*table(results), sep="\n")
    if not names:
        record(results, before)
    sys.exit(any(result.outcome != "ran" for result in results))


def missing(steps: Sequence[Step]) -> Iterator[str]:
    """Yield a line for each step whose predecessors are not among ``steps``."""
    named = {step.name for step in steps}
    for step in steps:
        if before := [name for name in step.after if name not in named]:
            yield f"{step.name} needs what these steps leave, run them first: {' '.join(before)}\n"


def commit_of(repository: Path) -> tuple[str, bool]:
    """Return the commit that is checked out, and whether no file differs from it."""

    def git(*words: str) -> str:
        line = ["git", *words]
        return subprocess.run(
            line, cwd=repository, capture_output=True, text=True, check=True
        ).stdout

    return git("rev-parse", "HEAD").strip(), not git("status", "--porcelain")


def record(results: Sequence[Result], before: tuple[str, bool]) -> None:
    """Write `RECORD`; ``before`` is `commit_of` the start, and the tree may differ by now."""
    commit, was_clean = before
    outcomes = {result.step.name: result.outcome for result in results}
    is_clean = was_clean and commit_of(REPOSITORY) == before
    RECORD.write_text(json.dumps({"commit": commit, "is_clean": is_clean, "steps": outcomes}))


def run(steps: Sequence[Step]) -> Iterator[Result]:
    """Run each step whose predecessors have not failed, and yield its result."""
    failed = set[str]()
    for step in steps:
        began = monotonic()
        print(f"== {step.name}: {step.command}", flush=True)
        lost = failed.intersection(step.after)
        outcome = f"not run: {min(lost)} failed" if lost else run_one(step)
        if outcome != "ran":
            failed.add(step.name)
        yield Result(step, outcome, monotonic() - began)


def run_one(step: Step) -> str:
    """Return the outcome; the output goes to a log, and its end to the terminal on a failure.

    Resource handling: every process of the step has been killed when this returns.
    """
    log = LOGS / f"{step.name}.log"
    environ = {**os.environ, "PYTHON": sys.executable}
    # pip would find the sdist's egg-info there, and take the package for installed.
    environ.pop("PYTHONPATH", None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", step.command],
            cwd=REPOSITORY,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        outcome = _end(process, step.limit)
    lines = log.read_text(errors="replace").splitlines()
    print(*(f"   {line}" for line in lines[-(40 if outcome != "ran" else 12) :]), sep="\n")
    return outcome


def _end(process: subprocess.Popen[bytes], limit: float) -> str:
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"failed: not within {limit:g} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"failed: status {status}" if status else "ran"


def table(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each step, and the sum."""
    for result in results:
        yield f"{result.step.name:12} {result.seconds:7.0f} s  {result.outcome}"
    failed = sum(result.outcome != "ran" for result in results)
    total = sum(result.seconds for result in results)
    yield f"{len(results) - failed} passed, {failed} failed in {total:.0f} s: {LOGS}"


if __name__ == "__main__":
    main(sys.argv[1:])
