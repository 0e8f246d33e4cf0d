"""Find a Python of a version, and install locked wheels for a Python that cannot run here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[1]
DIST: Final = REPOSITORY / "dist"
LOCK: Final = REPOSITORY / "release" / "requirements.txt"
HOUSE: Final = REPOSITORY / "build" / "wheelhouse"


def find_python(version: str) -> str:
    """Return this machine's Python of a version, also one of pyenv's; exit if there is none."""
    ask = f'python{version} -c "import sys; print(sys.executable)"'
    line = ["sh", "-c", f"PYENV_VERSION=$(pyenv latest {version}) {ask}"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"no Python {version}: install python{version}, or put it on PATH")
    return done.stdout.strip()


def find_wheel(pattern: str) -> Path:
    """Return the wheel of dist/ whose tags match a pattern; exit if there is none."""
    found = list(DIST.glob(f"vsockproxy-*-{pattern}.whl"))
    if len(found) != 1:
        sys.exit(f"{len(found)} wheels {pattern} in {DIST}: run make wheel")
    return found[0]


def download(*pip: str, options: Sequence[str] = ()) -> None:
    """Fetch the locked requirements into `HOUSE`, for installations without an index."""
    line = ("download", "--quiet", "--require-hashes", "--requirement", str(LOCK))
    run(*pip, *line, "--dest", str(HOUSE), *options)


def options_for(python: str, processor: str) -> list[str]:
    """Return pip's options for wheels of another Python."""
    platforms = (f"manylinux{libc}_{processor}" for libc in ("_2_28", "_2_17", "2014"))
    options = ["--only-binary=:all:", f"--python-version={python}"]
    return options + [f"--platform={platform}" for platform in platforms]


def install_into(folder: Path, wheel: Path, python: str, processor: str) -> None:
    """Install a wheel and its requirements for another Python, without an index."""
    pip = (sys.executable, "-m", "pip")
    options = options_for(python, processor)
    download(*pip, options=options)
    line = ("install", "--quiet", "--no-index", "--find-links", str(HOUSE), *options)
    run(*pip, *line, "--no-compile", "--target", str(folder), str(wheel))


def run(*line: str, cwd: Path = REPOSITORY) -> str:
    """Run a command, and return its output; exit with its messages if it fails."""
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(line)}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
