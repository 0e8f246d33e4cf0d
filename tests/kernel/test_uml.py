"""The suite's AF_VSOCK tests in a User-Mode Linux kernel, and the tests of `uml` itself."""

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kernel.boot import REPOSITORY, Completed, KernelError, require
from tests.kernel.uml import run_in_uml
from tests.relay.test_psql import BIN as POSTGRES

pytestmark = pytest.mark.kernel


@dataclass(frozen=True, slots=True)
class Suite:
    """A run of pytest inside the kernel: its result, and its tests by outcome."""

    completed: Completed
    passed: list[str]
    failed: dict[str, str]
    skipped: dict[str, str]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Every test marked ``vsock``, run in one boot."""
    require(**{"socat": "socat", "systemd-socket-activate": "systemd"})  # test_guest_side.py
    require(**{"sshd": "openssh-server", "scp": "openssh-client"})  # cli/test_ssh.py
    require(git="git", **{"/usr/lib/apt/apt-helper": "apt"})  # relay/test_real_clients.py
    require(psql="postgresql-client", **{f"{POSTGRES}/postgres": "postgresql"})  # test_psql.py
    scratch = tmp_path_factory.mktemp("uml")
    report = scratch / "junit.xml"
    pytest_line = [sys.executable, "-m", "pytest", "-m", "vsock", "tests", "-q", "--color=no"]
    completed = run_in_uml(
        [
            *("env", "HYPOTHESIS_STORAGE_DIRECTORY=/run/hypothesis"),
            *pytest_line,
            *("--ignore=tests/kernel", "-p", "no:cacheprovider", f"--junitxml={report}"),
        ],
        scratch,
        timeout=900,
    )
    assert report.exists(), completed.output
    return _read_report(completed, report)


def test_every_vsock_test_passes_in_a_kernel_with_vsock(suite: Suite) -> None:
    if suite.failed:
        texts = [f"===== {name}\n{text}" for name, text in suite.failed.items()]
        pytest.fail("\n\n".join(texts), pytrace=False)
    assert suite.completed.status == 0, suite.completed.output


def test_no_vsock_test_is_skipped_in_a_kernel_with_vsock(suite: Suite) -> None:
    assert not suite.skipped
    assert suite.passed


def test_a_command_in_the_kernel_returns_its_status_and_output(tmp_path: Path) -> None:
    completed = run_in_uml(["sh", "-c", "echo out; echo err >&2; exit 7"], tmp_path)
    assert completed == Completed(7, "out\nerr\n")


def test_a_write_outside_the_scratch_folder_fails(tmp_path: Path) -> None:
    line = f"echo kept >{tmp_path}/kept; touch {REPOSITORY}/lost"
    completed = run_in_uml(["sh", "-c", line], tmp_path)
    assert completed.status != 0
    assert "Read-only file system" in completed.output
    assert (tmp_path / "kept").read_text() == "kept\n"


def test_a_kernel_that_hangs_is_killed_and_its_output_shown(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"(?s)did not end within 5 s.*last line"):
        run_in_uml(
            ["sh", "-c", "echo last line; mkfifo /run/hang && cat /run/hang"], tmp_path, timeout=5
        )


def test_a_kernel_without_a_module_names_it(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"(?s)ended without a result.*no_such_module"):
        run_in_uml(["true"], tmp_path, modules=["no_such_module"])


def _read_report(completed: Completed, report: Path) -> Suite:
    suite = Suite(completed, [], {}, {})
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        wrong = [entry for entry in case if entry.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if wrong:
            suite.failed[name] = "\n".join(entry.text or "" for entry in wrong)
        elif skipped is not None:
            suite.skipped[name] = skipped.get("message", "")
        else:
            suite.passed.append(name)
    return suite
