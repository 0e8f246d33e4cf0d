"""The steps of `make release-check`: their outcomes, limits and order, with fakes as steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from release import check
from release.check import STEPS, Result, Step, table


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(check, "LOGS", tmp_path)
    monkeypatch.setattr(check, "RECORD", tmp_path / "record.json")
    return tmp_path


def outcomes(*steps: Step) -> list[str]:
    return [result.outcome for result in check.run(steps)]


def test_the_output_of_a_step_is_in_its_log(logs: Path) -> None:
    assert outcomes(Step("fake", "echo out; echo err >&2", 10)) == ["ran"]
    assert (logs / "fake.log").read_text() == "out\nerr\n"


def test_a_step_has_no_path_on_which_pip_would_find_the_package_installed(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/work")
    assert outcomes(Step("fake", 'echo "path: $PYTHONPATH"', 10)) == ["ran"]
    assert (logs / "fake.log").read_text() == "path: \n"


def test_a_step_that_fails_fails_those_that_use_its_result_and_no_other() -> None:
    steps = (Step("a", "exit 3", 10), Step("b", "true", 10, ("a",)), Step("c", "true", 10))
    assert outcomes(*steps, Step("d", "true", 10, ("b",))) == [
        *("failed: status 3", "not run: a failed", "ran", "not run: b failed")
    ]


def test_a_command_that_does_not_exist_fails_its_step() -> None:
    assert outcomes(Step("a", "no-such-command", 10)) == ["failed: status 127"]


def test_a_step_over_its_limit_fails(logs: Path) -> None:
    [result] = check.run([Step("a", f"mkfifo {logs}/pipe && cat {logs}/pipe", 0.2)])
    assert result.outcome == "failed: not within 0.2 s"
    assert result.seconds < 10


def test_the_table_has_each_step_and_the_sum() -> None:
    step = Step("a", "true", 10)
    lines = list(table([Result(step, "ran", 2), Result(step, "failed: status 1", 3)]))
    assert [line.split()[:2] for line in lines[:2]] == [["a", "2"], ["a", "3"]]
    assert lines[2].startswith("1 passed, 1 failed in 5 s")


def test_every_step_comes_after_those_whose_results_it_uses() -> None:
    names = [step.name for step in STEPS]
    assert all(names.index(name) < names.index(step.name) for step in STEPS for name in step.after)
    assert len(set(names)) == len(names)


def test_the_step_of_the_browser_fails_without_a_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    [step] = [step for step in STEPS if step.name == "browser"]
    assert check.run_one(step).startswith("failed: ")


def test_an_unknown_step_ends_with_the_list_of_the_steps() -> None:
    with pytest.raises(SystemExit, match="no step try-rpm: packages wheels"):
        check.main(["try-rpm"])


def test_a_whole_check_is_recorded_and_a_part_is_not(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (Step("a", "true", 10), Step("b", "exit 3", 10))
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(check, "commit_of", lambda _folder: ("0123", True))
    with pytest.raises(SystemExit):
        check.main(["a"])
    assert not (logs / "record.json").exists()
    with pytest.raises(SystemExit):
        check.main([])
    assert json.loads((logs / "record.json").read_text()) == {
        "commit": "0123",
        "is_clean": True,
        "steps": {"a": "ran", "b": "failed: status 3"},
    }


def test_a_tree_that_changes_during_the_check_is_not_clean(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "commit_of", lambda _folder: ("0123", False))
    check.record([], ("0123", True))
    assert json.loads((logs / "record.json").read_text())["is_clean"] is False
