"""The benchmarks' load program detects lost and altered bytes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.fake_relay import Spoil, spoiler

SOURCES = Path(__file__).parents[2] / "benchmarks" / "load"

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="install gcc")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the program as the Makefile does; return its path."""
    program = tmp_path_factory.mktemp("load") / "load"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2"]
    subprocess.run(["gcc", *flags, "-o", program, *SOURCES.glob("*.c")], check=True)
    return program


@pytest.fixture
def target(load: Path, tmp_path: Path) -> Iterator[Path]:
    """Run its server; yield the path of its socket."""
    path = tmp_path / "target"
    with subprocess.Popen([load, "serve", f"unix:{path}"], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield path
        server.kill()


def run(load: Path, path: Path, group: str) -> subprocess.CompletedProcess[str]:
    line = [str(load), "run", f"unix:{path}", "--seconds", "0", group]
    return subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(
    "group",
    [
        "connections=3,up=100000,down=64",
        "connections=3,up=64,down=3000000",
        "connections=3,requests=1",
        "connections=3,flight=1",
        "connections=1,up=300000,half_close",
    ],
)
def test_a_run_without_a_lost_byte_exits_with_status_0(
    load: Path, target: Path, group: str
) -> None:
    done = run(load, target, group)
    assert done.returncode == 0, done.stderr
    assert '"requests": ' in done.stdout


@pytest.mark.parametrize(("skipped", "status"), [(3, 0), (2, 1), (4, 1)])
def test_a_greeting_comes_before_the_requests(
    load: Path, tmp_path: Path, skipped: int, status: int
) -> None:
    address = f"unix:{tmp_path}/behind"
    with subprocess.Popen(
        [load, "serve", address, str(skipped)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        line = [str(load), "run", address, "--seconds", "0", "--greet", "ffffff:0", "connections=2"]
        done = subprocess.run(line, capture_output=True, timeout=30, check=False)
        assert done.returncode == status, done.stderr
        server.kill()


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def double_last(data: bytes) -> bytes:
    return data + data[-1:]


def close(_data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (flip_last, "other bytes came than were sent"),
        (double_last, "more bytes came than were sent"),
        (close, "lost: the connection ended after 0 of an answer's 64 bytes"),
    ],
)
def test_an_altered_answer_ends_the_run(
    load: Path, target: Path, tmp_path: Path, spoil: Spoil, told: str
) -> None:
    with spoiler(tmp_path / "proxy", target, spoil):
        done = run(load, tmp_path / "proxy", "connections=1,requests=1")
    assert done.returncode == 1
    assert told in done.stderr


def test_an_answer_without_one_byte_is_detected(load: Path, target: Path, tmp_path: Path) -> None:
    """In the middle: the bytes behind it no longer fit the pattern."""

    def drop_one(data: bytes) -> bytes:
        return data[:20] + data[21:]

    with spoiler(tmp_path / "proxy", target, drop_one):
        done = run(load, tmp_path / "proxy", "connections=1,requests=1")
    assert done.returncode == 1
    assert "other bytes came than were sent" in done.stderr


def test_a_vsock_address_outside_a_test_kernel_is_an_error(load: Path) -> None:
    line = [str(load), "serve", "vsock:1:5000"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "only for kernels that are booted for it" in done.stderr
