"""The forge's files, which nothing here runs: workflows, forms, and the map of CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

import vsockproxy
from tests.daemon_process import REPOSITORY

FORGE: Final = REPOSITORY / ".github"
WORKFLOWS: Final = sorted(FORGE.glob("workflows/*.yml"))
FORMS: Final = sorted(
    set(FORGE.glob("ISSUE_TEMPLATE/*.yml")) - {FORGE / "ISSUE_TEMPLATE/config.yml"}
)


def read(file: Path) -> Any:
    return YAML(typ="safe", pure=True).load(file.read_text())


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in read(file)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_grants_no_default_rights_and_each_step_is_a_command_or_an_action(
    file: Path,
) -> None:
    workflow = read(file)
    assert workflow["permissions"] == {"contents": "read"}
    assert all({"runs-on", "steps"} <= job.keys() for job in workflow["jobs"].values())
    assert all(("run" in step) != ("uses" in step) for step in steps(file))


def test_the_workflows_run_the_gate_and_the_release_check() -> None:
    runs = {file.stem: [step.get("run", "") for step in steps(file)] for file in WORKFLOWS}
    assert ".ci/run" in runs["ci"]
    assert "make release-check" in runs["release"]


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_a_form_has_fields_with_distinct_ids_and_labels(file: Path) -> None:
    form = read(file)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"]
    assert form["description"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_the_form_for_a_fault_requires_the_doctors_report() -> None:
    [field] = [
        each
        for each in read(FORGE / "ISSUE_TEMPLATE" / "bug.yml")["body"]
        if each["attributes"].get("label") == "vsockproxy doctor --json"
    ]
    assert field["validations"]["required"] is True


def test_the_files_that_the_map_of_the_code_names_exist() -> None:
    page = (REPOSITORY / "CONTRIBUTING.md").read_text()
    section = page.partition("## Where is what?")[2].partition("\n## ")[0]
    named = {name for name in re.findall(r"`([\w./]+)`", section) if "/" in name or "." in name}
    package = Path(vsockproxy.__file__).parent
    places = (REPOSITORY, package, package.parent)
    assert len(named) > 20
    assert {name for name in named if not any((place / name).exists() for place in places)} == set()
