"""`make tag`: what it refuses, with a repository and a record of a check made for the test."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

import vsockproxy
from release.check import STEPS, commit_of, missing
from release.tag import main
from tests.daemon_process import REPOSITORY
from tests.kernel.boot import require

VERSIONED: Final = {
    "Dockerfile": "ARG VERSION={}\n",
    "config/container/sidecar-mux.yaml": "image: vsockproxy:{}\n",
    "config/container/sidecar-vsock.yaml": "image: vsockproxy:{}\n",
    "config/kubernetes/kustomization.yaml": "newTag: {}\n",
    "docs/kubernetes.md": "newTag: {}\n",
}
"""What else names the version: the file, and how."""


@pytest.mark.parametrize("name", VERSIONED)
def test_a_file_that_names_the_version_names_the_packages(name: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert vsockproxy.__version__ == project["version"]
    assert VERSIONED[name].format(project["version"]) in (REPOSITORY / name).read_text()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository whose version, changelog and record agree."""
    require(git="git")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## [0.2.0] - 2026-01-01\n\n## [0.1.0]\n")
    git(folder, "init", "-q")
    commit(folder)
    write_record(folder)
    return folder


def git(folder: Path, *words: str) -> str:
    line = ["git", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True).stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "--allow-empty", "-m", "x")


def record_of(folder: Path) -> Path:
    return folder.parent / "record.json"


def write_record(folder: Path, **changes: Any) -> None:
    steps = {step.name: "ran" for step in STEPS}
    record = {"commit": commit_of(folder)[0], "is_clean": True, "steps": steps}
    record_of(folder).write_text(json.dumps(record | changes))


def refused(folder: Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main(folder, record_of(folder))
    assert git(folder, "tag") == ""
    return str(ended.value)


def test_a_checked_commit_is_tagged(repository: Path) -> None:
    main(repository, record_of(repository))
    assert git(repository, "tag").split() == ["v0.2.0"]


def test_a_changed_tree_is_refused(repository: Path) -> None:
    (repository / "new").touch()
    assert "the working tree has changes" in refused(repository)


def test_another_newest_section_is_refused(repository: Path) -> None:
    (repository / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.2.0]\n")
    commit(repository)
    write_record(repository)
    assert "the newest section of CHANGELOG.md is Unreleased" in refused(repository)


def test_a_commit_after_the_check_is_refused(repository: Path) -> None:
    commit(repository)
    assert "the check ran on" in refused(repository)


def test_a_check_of_a_changed_tree_is_refused(repository: Path) -> None:
    write_record(repository, is_clean=False)
    assert "with changes; run make release-check" in refused(repository)


def test_failed_and_missing_steps_are_refused(repository: Path) -> None:
    write_record(repository, steps={"packages": "failed: status 1"})
    reasons = refused(repository)
    assert "the step packages of the check: failed: status 1" in reasons
    assert "the step soak of the check: not run" in reasons


def test_without_a_record_the_tag_is_refused(repository: Path) -> None:
    record_of(repository).unlink()
    assert "there is no record of a whole check" in refused(repository)


def test_a_step_alone_names_the_steps_before_it() -> None:
    [line] = missing([step for step in STEPS if step.name == "try-wheels"])
    assert line == "try-wheels needs what these steps leave, run them first: packages wheels\n"
    assert list(missing(STEPS)) == []
