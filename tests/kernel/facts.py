"""The facts that a scenario recorded inside a kernel, for the tests outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

Facts = Mapping[str, Any]


class RecordedFacts:
    """The facts of each step of a scenario, by the step's name.

    Args:
      path: the scenario's file, a JSON object with the key ``step`` on each line; it may be
        absent, where the kernel ended early.
      evidence: what a failed test shows besides the step's error.
    """

    def __init__(self, path: Path, evidence: str) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self._steps: dict[str, Facts] = {
            facts.pop("step"): facts for facts in map(json.loads, lines)
        }
        self._evidence = evidence

    def __getitem__(self, step: str) -> Facts:
        """Return a step's facts; fail the test if the step failed or did not run."""
        facts = self._steps.get(step, {"error": "the step did not run"})
        if "error" in facts:
            pytest.fail(f"{step}: {facts['error']}\n{self._evidence}", pytrace=False)
        return facts
