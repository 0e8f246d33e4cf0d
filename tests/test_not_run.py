"""The table at the end of a run of the tests."""

from __future__ import annotations

import pytest

from tests.not_run import KERNEL_TESTS, table

SKIPPED = [
    ("tests/test_units.py::test_a", "apt install socat"),
    ("tests/test_units.py::test_b", "apt install socat"),
    ("tests/cli/test_c.py::test_c", "apt install socat"),
]


def marked(request: pytest.FixtureRequest, marker: str) -> pytest.Item:
    """Return a fake test with this marker."""
    item = pytest.Function.from_parent(request.node.parent, name="fake", callobj=lambda: None)
    item.add_marker(marker)
    return item


def test_a_skipped_test_is_counted_with_its_reason_and_its_command() -> None:
    assert list(table(["tests/test_a.py::test_a"], SKIPPED, [])) == [
        "    1 ran",
        "    3 did not run: apt install socat",
        "      .venv/bin/pytest tests/cli/test_c.py tests/test_units.py",
    ]


def test_a_deselected_test_has_a_reason_and_a_command(request: pytest.FixtureRequest) -> None:
    deselected = [marked(request, marker) for marker in ("soak", "vsock", "native")]
    lines = list(table([], [], deselected))
    assert [line.strip() for line in lines if "did not run" not in line] == [
        "0 ran",
        f".venv/bin/pytest {KERNEL_TESTS}",
        "make test",
        "make soak",
    ]


def test_a_test_that_ran_in_a_kernel_is_counted_as_run(request: pytest.FixtureRequest) -> None:
    lines = list(table([f"{KERNEL_TESTS}::test_vsock"], [], [marked(request, "vsock")]))
    assert lines == ["    1 ran", f"    1 ran in a User-Mode Linux kernel, by {KERNEL_TESTS}"]
