"""Build the image and run containers of it, by podman, without a registry.

Owns: the tests' own image storage, the options of every run, and `Container`, a daemon in a
container.  The daemon's configuration is the caller's.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import trio

from tests.daemon_process import PATIENCE, REPOSITORY, Daemon
from tests.kernel.boot import require, skip_or_fail

# Resolved, because podman records the path of its storage.
CACHE: Final = (REPOSITORY / ".cache" / "container").resolve()
PROFILE: Final = REPOSITORY / "config" / "container" / "seccomp-vsock.json"
BASE: Final = "localhost/vsockproxy-base"
IMAGE: Final = "localhost/vsockproxy"
TIMESTAMP: Final = 1_700_000_000
"""Every build's time; of a release it is that of its last commit."""
USER: Final = 65532
"""The image's uid."""

# libpod limits the paths of its sockets to 50 characters.
_STORAGE: Final = (f"--root={CACHE}/storage", "--runroot=/run/vsockproxy-tests")
_PODMAN: Final = ("podman", *_STORAGE, "--runtime=runc", "--cgroup-manager=cgroupfs")
_RUN: Final = (
    *("run", "--pull=never", "--network=none", "--read-only", "--read-only-tmpfs=false"),
    *("--cap-drop=all", "--security-opt=no-new-privileges"),
    *("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"),
)


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman on the tests' own storage; with ``check``, a failure shows its output."""
    return _run([*_PODMAN, *arguments], check=check)


@contextmanager
def storage() -> Iterator[None]:
    """Lock the tests' own storage for one run of the tests.

    Skips the test if a package, or the Debian tree of `make_base.sh`, is missing.
    """
    require(podman="podman", buildah="buildah", runc="runc")
    if os.geteuid() != 0:
        skip_or_fail("the container tests run as root")
    if not (CACHE / "wheels" / "wanted").exists():
        skip_or_fail("run tests/container/make_base.sh (Debian: apt install debootstrap)")
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # podman leaves the folder mounted on itself, so it could not be removed.
            _run(["umount", f"{CACHE}/storage/overlay"], check=False)


def build_image(scratch: Path, name: str = IMAGE) -> str:
    """Build the image of this working copy on the Debian tree; return its name."""
    if podman("image", "exists", BASE, check=False).returncode:
        podman("import", f"{CACHE}/base.tar", BASE)
    # The Dockerfile does not say where pip finds packages: each build does.
    pip = scratch / "pip.conf"
    pip.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    line = ["buildah", *_STORAGE, "bud", "--pull-never", "--isolation=chroot", "--network=host"]
    line += [f"--build-arg={which}_IMAGE={BASE}" for which in ("BUILD", "FINAL")]
    line += [f"--volume={CACHE}/wheels:/wheels:ro", f"--volume={pip}:/etc/pip.conf:ro"]
    line += [f"--timestamp={TIMESTAMP}"]
    _run([*line, "--format=docker", f"--tag={name}", str(REPOSITORY)], check=True)
    podman("image", "prune", "--force")  # the image that had the name before
    return name


def describe(image: str) -> dict[str, Any]:
    """Return the image's metadata, as `podman image inspect` prints it."""
    [description] = json.loads(podman("image", "inspect", image).stdout)
    return dict(description)


def run_python(code: str, profile: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a container of the image, under a seccomp profile."""
    line = (f"--security-opt=seccomp={profile}", "--entrypoint=python3", IMAGE, "-c", code)
    return podman(*_RUN, "--rm", *line, check=False)


class Container(Daemon):
    """A daemon in a container, as `container` starts it."""

    def __init__(self, process: trio.Process, name: str) -> None:
        super().__init__(process)
        self.name = name

    async def podman(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a podman command on this container."""
        words = (*verb.split(), *arguments, self.name)
        return await trio.to_thread.run_sync(lambda: podman(*words, check=False))

    async def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in this container."""
        return await trio.to_thread.run_sync(lambda: podman("exec", self.name, *words, check=False))

    async def proc(self) -> Path:
        """Return the daemon's folder in this machine's /proc."""
        inspected = await self.podman("inspect", "--format={{.State.Pid}}")
        return Path("/proc", inspected.stdout.strip())


@asynccontextmanager
async def container(
    folder: Path, environ: Mapping[str, str], profile: Path = PROFILE
) -> AsyncIterator[Container]:
    """Run the image until the block ends, with ``folder`` as /run/vm and these variables."""
    name = f"vsockproxy-{uuid4().hex[:12]}"
    options = [f"--name={name}", f"--volume={folder}:/run/vm"]
    options += [f"--security-opt=seccomp={profile}"]
    options += [f"--env={key}={value}" for key, value in environ.items()]
    process = await trio.lowlevel.open_process(
        [*_PODMAN, *_RUN, "--rm", *options, IMAGE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    running = Container(process, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.read_log)
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                await running.podman("kill", f"--signal={signal.SIGKILL}")
                await process.wait()
    assert not [line for line in running.lines if "Traceback" in line], "\n".join(running.lines)


def _run(line: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        line,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
        check=False,
    )
    assert not (check and done.returncode), f"{line}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done
