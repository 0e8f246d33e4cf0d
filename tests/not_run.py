"""The table at the end of a run: how many tests ran, and how to run each of the others."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

import pytest

KERNEL_TESTS: Final = "tests/kernel/test_uml.py"
"""It runs the tests marked `vsock`, in a kernel that it boots."""

_LONG: Final = "takes hours"
_VSOCK: Final = "AF_VSOCK is opened only in a kernel that the tests boot"
_ASKED: Final = "deselected on the command line"

Group = tuple[str, str]
"""Why the tests did not run, and the command that runs them."""


def table(
    ran: Iterable[str], skipped: Iterable[tuple[str, str]], deselected: Iterable[pytest.Item]
) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
      ran: the ids of the tests that passed or failed.
      skipped: the id of each skipped test, and its reason.
      deselected: the tests that were collected only.
    """
    ran, groups = list(ran), _groups(skipped, deselected)
    yield f"{len(ran):5} ran"
    if any(KERNEL_TESTS in test for test in ran) and (inside := groups.pop(_in_kernel(), 0)):
        yield f"{inside:5} ran in a User-Mode Linux kernel, by {KERNEL_TESTS}"
    for (reason, command), count in sorted(groups.items()):
        yield f"{count:5} did not run: {reason}"
        yield f"      {command}"


def _groups(
    skipped: Iterable[tuple[str, str]], deselected: Iterable[pytest.Item]
) -> dict[Group, int]:
    """Return the number of tests that did not run, by the reason."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for test, reason in skipped:
        files[reason].append(test.partition("::")[0])
    groups = {(why, _pytest(*sorted({*tests}))): len(tests) for why, tests in files.items()}
    for item in deselected:
        group = _group(item)
        groups[group] = groups.get(group, 0) + 1
    return groups


def _group(item: pytest.Item) -> Group:
    if item.get_closest_marker("soak"):
        return _LONG, "make soak"
    if item.get_closest_marker("vsock"):
        return _in_kernel()
    return _ASKED, "make test"


def _in_kernel() -> Group:
    return _VSOCK, _pytest(KERNEL_TESTS)


def _pytest(*files: str) -> str:
    return shlex.join([".venv/bin/pytest", *files])
