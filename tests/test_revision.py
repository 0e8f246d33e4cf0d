"""The revision in what is built: from git, from an sdist, and from neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import pytest

import vsockproxy
from tests.daemon_process import REPOSITORY
from tests.kernel.boot import require

FILES: Final = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "man")
NO_CONFIGURATION: Final = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of what the package is built from, without git and without a revision."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in FILES:
        place = REPOSITORY / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tree / name)
    compiled = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "_pump.c")
    package = Path(vsockproxy.__file__).parent
    shutil.copytree(package, tree / "vsockproxy", ignore=compiled)
    (tree / "vsockproxy" / "revision.py").write_text('REVISION = ""\n')
    return tree


def git(folder: Path, *words: str) -> str:
    require(git="git")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    environ = {**os.environ, **NO_CONFIGURATION}
    line = ("git", "-C", str(folder), *who, *words)
    return subprocess.run(
        line, env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    """Make the folder a repository of its content; return its commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=test")
    return git(folder, "rev-parse", "HEAD")


def setup(tree: Path, *words: str, **environ: str) -> None:
    line = (sys.executable, "setup.py", "--quiet", *words)
    everything = {**os.environ, **environ}
    subprocess.run(line, cwd=tree, env=everything, capture_output=True, check=True)


def built(tree: Path, **environ: str) -> str:
    """Return the revision in the package that a build of the tree makes."""
    place = tree.parent / "built"
    shutil.rmtree(place, ignore_errors=True)
    setup(tree, "build_py", f"--build-lib={place}", **environ)
    return revision_in(place)


def revision_in(folder: Path) -> str:
    module: dict[str, str] = {}
    exec((folder / "vsockproxy" / "revision.py").read_text(), module)
    return module["REVISION"]


def sdist(tree: Path, place: Path) -> Path:
    """Return the unpacked sdist of a tree."""
    setup(tree, "sdist", f"--dist-dir={tree.parent}")
    [archive] = tree.parent.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    [unpacked] = place.iterdir()
    return unpacked


def test_a_build_in_a_git_repository_has_its_commit_and_leaves_the_tree_unchanged(
    tree: Path,
) -> None:
    revision = commit(tree)
    assert built(tree) == revision
    assert git(tree, "diff", "--name-only") == ""


def test_a_build_of_a_changed_tree_says_so(tree: Path) -> None:
    revision = commit(tree)
    (tree / "README.md").write_text("changed")
    assert built(tree) == f"{revision}-dirty"


def test_an_sdist_has_the_commit_that_it_was_made_from(tree: Path, tmp_path: Path) -> None:
    revision = commit(tree)
    unpacked = sdist(tree, tmp_path / "unpacked")
    assert revision_in(unpacked) == revision
    assert built(unpacked) == revision


def test_an_sdist_inside_or_as_another_repository_keeps_its_commit(
    tree: Path, tmp_path: Path
) -> None:
    revision = commit(tree)
    unpacked = sdist(tree, tmp_path / "other" / "vendor")
    commit(tmp_path / "other")
    assert built(unpacked) == revision
    commit(unpacked)
    assert built(unpacked) == revision


def test_a_tree_without_git_inside_another_repository_has_no_revision(tree: Path) -> None:
    commit(tree.parent)
    assert built(tree) == ""


def test_a_variable_of_git_for_another_repository_is_not_followed(
    tree: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    commit(other)
    assert built(tree, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other)) == ""


def test_without_git_installed_a_build_has_no_revision(tree: Path, tmp_path: Path) -> None:
    commit(tree)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert built(tree, PATH=str(empty)) == ""


def test_a_tree_and_an_sdist_without_git_have_no_revision(tree: Path, tmp_path: Path) -> None:
    assert built(tree) == ""
    assert built(sdist(tree, tmp_path / "unpacked")) == ""


def test_the_revision_of_the_environment_is_for_a_tree_without_git(tree: Path) -> None:
    assert built(tree, VSOCKPROXY_REVISION="abc") == "abc"
    assert built(tree, VSOCKPROXY_REVISION="") == ""


def test_two_builds_of_a_commit_have_the_same_bytes_and_time(tree: Path) -> None:
    commit(tree)
    file = tree.parent / "built" / "vsockproxy" / "revision.py"
    both = []
    for _ in range(2):
        built(tree)
        both.append((file.read_bytes(), file.stat().st_mtime_ns))
    assert both[0] == both[1]
