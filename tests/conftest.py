"""Shared by all tests: the guard around the machine's own vsock, and fixtures."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hypothesis
import pytest

from tests.guard import sitecustomize
from tests.not_run import table
from tests.sockets import no_descriptor_left_over
from vsockproxy.admin import client, socket_path
from vsockproxy.admin.socket_path import default_places
from vsockproxy.config.settings import PumpChoice

os.environ["RUNTIME_DIRECTORY"] = "/nonexistent"  # daemons in this process make no control socket

# Importing it guards this process; by PYTHONPATH it guards those that tests start.
_GUARD = str(Path(sitecustomize.__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_GUARD, os.environ.get("PYTHONPATH")]))


# A busy machine is not a fault of what is tested.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

# Ignored signals are inherited: nohup ignores SIGHUP, and a shell's `&` the other two.
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        _default = signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL
        signal.signal(_number, _default)


@pytest.fixture(params=["native", "portable"])
def choice(request: pytest.FixtureRequest) -> PumpChoice:
    """Return each pump."""
    value: PumpChoice = request.param
    return value


@pytest.fixture
def no_other_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the control sockets in this machine's own folders from the commands in this process."""
    none = tmp_path / "no-other-daemon"
    monkeypatch.setattr(client, "default_places", partial(default_places, services=none))
    monkeypatch.setattr(socket_path, "_SHARED", (str(none),))


@pytest.fixture
def nothing_stays_open() -> Iterator[None]:
    """Assert that the test closes every descriptor that it opens."""
    with no_descriptor_left_over():
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that need AF_VSOCK to tests/kernel, which runs them in a kernel that it boots.

    Those that take long are left to `make soak`.  A test of the native pump gets the marker
    `native`, which deselects it where that pump was not built.
    """
    for item in items:
        if isinstance(item, pytest.Function) and {"native", "direct"} & set(
            map(str, _parameters(item))
        ):
            item.add_marker("native")
    if "VSOCKPROXY_SOAK" not in os.environ:
        _deselect(config, items, "soak")
    if "VSOCKPROXY_TEST_KERNEL" not in os.environ:
        _deselect(config, items, "vsock")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what ran, what did not, and why."""
    stats = terminalreporter.stats
    ran = [report.nodeid for kind in ("passed", "failed") for report in stats.get(kind, [])]
    # A skip's longrepr is its file, its line and "Skipped: REASON".
    skipped = [
        (report.nodeid, report.longrepr[2].removeprefix("Skipped: "))
        for report in stats.get("skipped", [])
    ]
    terminalreporter.section("what ran")
    for line in table(ran, skipped, stats.get("deselected", [])):
        terminalreporter.write_line(line)


def _deselect(config: pytest.Config, items: list[pytest.Item], marker: str) -> None:
    marked = [item for item in items if item.get_closest_marker(marker)]
    items[:] = [item for item in items if not item.get_closest_marker(marker)]
    config.hook.pytest_deselected(items=marked)


def _parameters(item: pytest.Function) -> list[object]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []
