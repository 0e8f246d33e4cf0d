"""The faults of earlier versions, put back one by one: the random schedules find each of them.

Copies the package, and compiles it, for every fault: a part of `make soak` alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NATIVE = "vsockproxy/pump/_native/"
SCHEDULES = 6000


@dataclass(frozen=True)
class Fault:
    """A text of a file, and what stood there."""

    choice: str
    file: str
    now: str
    before: str
    seen: str = " end: "  # the left or the right one


FAULTS = {
    "a reset behind a FIN hides the FIN": Fault(
        "native",
        NATIVE + "side.c",
        "if (error == EPIPE && vsp_side_is_tcp(side))",
        "if (error == 0)",
    ),
    "an error is left to a read that never comes": Fault(
        "native",
        NATIVE + "side.c",
        "!side->urgent && !side->gone &&",
        "!side->urgent && !side->error &&",
        "no end",
    ),
    "a time-out closes without a reset": Fault(
        "native",
        NATIVE + "closing.c",
        "if (!tcp)",
        "if (!tcp || reason == VSP_IDLE_TIMEOUT || reason == VSP_HALF_CLOSE_TIMEOUT)",
    ),
    "an upload that is killed ends with a FIN": Fault(
        "native",
        NATIVE + "closing.c",
        "if (!tcp)",
        "if (!tcp || (!client && reason == VSP_CANCELLED))",
    ),
    "what came before the target's reset is thrown away": Fault(
        "native",
        NATIVE + "closing.c",
        "reason == VSP_TARGET_RESET ? VSP_DELIVER : VSP_RESET",
        "reason == VSP_TARGET_RESET ? VSP_RESET : VSP_RESET",
    ),
    "a close over unread input throws the tail away": Fault(
        "native", NATIVE + "closing.c", "return ended ? VSP_CLOSE : VSP_LINGER", "return VSP_CLOSE"
    ),
    "a time-out closes without a reset, in trio": Fault(
        "portable",
        "vsockproxy/pump/closing.py",
        "if not tcp:",
        'if not tcp or reason in ("idle_timeout", "half_close_timeout"):',
    ),
    "an upload that is killed ends with a FIN, in trio": Fault(
        "portable",
        "vsockproxy/pump/closing.py",
        "if not tcp:",
        'if not tcp or (not client and reason == "killed"):',
    ),
    "what came before the target's reset is thrown away, in trio": Fault(
        "portable", "vsockproxy/pump/closing.py", 'return "deliver" if', 'return "reset" if'
    ),
    "a close over unread input throws the tail away, in trio": Fault(
        "portable",
        "vsockproxy/pump/closing.py",
        'return "close" if ended else "linger"',
        'return "close"',
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", FAULTS)
def test_a_build_with_an_old_fault_fails(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    for folder in ("vsockproxy", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    file = tmp_path / fault.file
    text = file.read_text()
    assert text.count(fault.now) == 1
    file.write_text(text.replace(fault.now, fault.before))
    if fault.choice == "native":
        for library in (tmp_path / NATIVE).glob("*.so"):
            library.unlink()
        build = "from vsockproxy.pump._native.build import ffibuilder; ffibuilder.compile()"
        built = subprocess.run(
            [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # which the build must not see
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qxk", fault.choice, "tests/pump/test_differential.py"],
        cwd=tmp_path,
        env=os.environ | {"VSOCKPROXY_SCHEDULES": str(SCHEDULES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert fault.seen in done.stdout
