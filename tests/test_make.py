"""The Makefile: its help, and the creation of .venv, with fakes in place of the Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import vsockproxy
from tests.daemon_process import REPOSITORY
from tests.kernel.boot import require


def make(*words: str, folder: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    require(make="make")
    line = ["make", "--no-print-directory", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """Return a folder with what the Makefile's environment depends on, and no .venv."""
    for name in ("Makefile", "pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    native = "pump/_native"
    shutil.copytree(Path(vsockproxy.__file__).parent / native, tmp_path / "vsockproxy" / native)
    return tmp_path


def fake_python(folder: Path, script: str) -> str:
    """Return the path of a fake Python: a shell script."""
    path = folder / "fake-python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_help_lists_every_command() -> None:
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", "")
    [names] = re.findall(r"(?m)^\.PHONY: (.*)$", makefile)
    listed = [line.split()[1] for line in make("help").stdout.splitlines()]
    assert sorted(listed) == sorted(names.split())


def test_an_old_python_is_refused_and_leaves_no_environment(fresh: Path) -> None:
    old = fake_python(fresh, "exit 1")  # as `sys.exit(sys.version_info < (3, 11))` does there
    done = make("demo", f"PYTHON={old}", folder=fresh)
    assert done.returncode != 0
    assert f"{old} is not Python 3.11 or newer" in done.stderr
    assert not (fresh / ".venv").exists()


def test_a_python_without_venv_names_the_package_and_leaves_no_environment(fresh: Path) -> None:
    half = 'if [ "$1" = -m ]; then mkdir -p .venv/bin && exit 1; fi'
    done = make("demo", f"PYTHON={fake_python(fresh, half)}", folder=fresh)
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (fresh / ".venv").exists()


def test_an_environment_of_an_old_python_is_replaced(fresh: Path) -> None:
    left = fresh / ".venv" / "bin"
    left.mkdir(parents=True)
    shutil.move(fake_python(fresh, "exit 1"), left / "python")
    new = fake_python(fresh, 'if [ "$1" = -m ]; then mkdir .venv && echo created >&2; exit 1; fi')
    assert "created" in make("demo", f"PYTHON={new}", folder=fresh).stderr


def test_the_demo_installs_no_tool_of_the_tests(fresh: Path) -> None:
    planned = make("--dry-run", "demo", folder=fresh).stdout
    assert re.findall(r"pip install (.*)", planned) == ["--editable '.'"]
