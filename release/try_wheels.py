"""Install each wheel of dist/ offline where it is meant for, and serve a route there.

Where no Python can be had, with musl, the pump's own driver runs on that C library instead.  A
place that cannot be had is a failure.  Needs root, debootstrap and qemu-user-static.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.pythons import HOUSE, REPOSITORY, download, find_python, find_wheel, install_into, run
from release.trial import try_out

BUILD: Final = REPOSITORY / "build" / "trials"
ROOTS: Final = REPOSITORY / ".cache" / "python"

ON_THIS_MACHINE: Final = ("3.11", "3.12")

DEBIAN: Final = {"x86_64": "amd64", "aarch64": "arm64"}
QEMU: Final = "qemu-aarch64-static"


@dataclass(frozen=True)
class Release:
    """A Debian release's Python for a processor, unpacked from its packages."""

    suite: str
    python: str
    processor: str

    @property
    def root(self) -> Path:
        """Return the folder that it is unpacked in."""
        return ROOTS / f"{self.suite}-{self.processor}"

    def command(self, packages: Path) -> list[str]:
        """Return a command that runs vsockproxy in the root, from a folder below it."""
        inside = f"/{packages.relative_to(self.root)}"
        # -P: not the package of the current folder.
        program = [f"/usr/bin/python{self.python}", "-P", "-m", "vsockproxy"]
        if self.processor == "aarch64":
            environ = ["-E", f"PYTHONPATH={packages}", "-L", str(self.root)]
            return [QEMU, *environ, f"{self.root}{program[0]}", *program[1:]]
        return ["chroot", str(self.root), "env", f"PYTHONPATH={inside}", *program]


RELEASES: Final = (
    Release("trixie", "3.13", "x86_64"),
    Release("sid", "3.14", "x86_64"),
    Release("bookworm", "3.11", "aarch64"),
)


def main() -> None:
    """Try every wheel, and print a line for each place."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    for line in trials():
        print(line, flush=True)


def trials() -> Iterator[str]:
    """Yield what was tried, a line for each place."""
    for version in ON_THIS_MACHINE:
        for pump, wheel in (("native", "manylinux*x86_64"), ("portable", "none-any")):
            program = install(find_python(version), find_wheel(wheel))
            yield f"{wheel}: {try_out(pump, [program])}"
    for release in RELEASES:
        wheel = f"manylinux*{release.processor}"
        packages = unpack(release, find_wheel(wheel))
        yield f"{wheel}, Debian {release.suite}: {try_out('native', release.command(packages))}"
    for processor in DEBIAN:
        yield f"musllinux {processor}: {drive(processor)}"


def install(python: str, wheel: Path) -> str:
    """Install a wheel in a new environment, without an index; return its program."""
    place = BUILD / f"venv-{len(list(BUILD.iterdir()))}"
    run(python, "-m", "venv", str(place))
    pip = str(place / "bin" / "pip")
    download(pip)
    run(pip, "install", "--quiet", "--no-index", "--find-links", str(HOUSE), str(wheel))
    return str(place / "bin" / "vsockproxy")


def unpack(release: Release, wheel: Path) -> Path:
    """Install a wheel in the root of a Debian release, without an index; return its folder."""
    architecture = DEBIAN[release.processor]
    script = REPOSITORY / "release" / "debian_python.sh"
    run(str(script), release.suite, architecture, f"python{release.python}", str(release.root))
    packages = release.root / "opt" / "vsockproxy"
    shutil.rmtree(packages, ignore_errors=True)
    install_into(packages, wheel, release.python, release.processor)
    return packages


def drive(processor: str) -> str:
    """Run the pump's driver, linked with musl by zig; return what it says."""
    pump = REPOSITORY / "vsockproxy" / "pump" / "_native"
    sources = [str(file) for file in sorted(pump.glob("*.c")) if file.name != "_pump.c"]
    program = BUILD / f"driver-{processor}"
    zig = (sys.executable, "-m", "ziglang", "cc", "-target", f"{processor}-linux-musl", "-static")
    options = ("-std=gnu11", "-O2", f"-I{pump}", "-Wl,--wrap=splice", "-Wl,--wrap=epoll_ctl")
    driver = str(REPOSITORY / "tests" / "pump" / "driver.c")
    run(*zig, *options, "-o", str(program), driver, *sources)
    emulator = [QEMU] if processor == "aarch64" else []
    run(*emulator, str(program))
    return "the pump's driver passed, linked with musl; no Python for it could be had"


if __name__ == "__main__":
    main()
