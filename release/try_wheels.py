"""Install each wheel of dist/ offline where it is meant for, and serve a route there.

Where no Python can be had, with musl, the pump's own driver runs on that C library instead.  A
place that cannot be had is a failure.  Needs root, debootstrap and qemu-user-static.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from release.pythons import (
    HOUSE,
    REPOSITORY,
    download,
    find_python,
    find_wheel,
    install_into,
    options_for,
    run,
)
from release.trial import try_out

BUILD: Final = REPOSITORY / "build" / "trials"
ROOTS: Final = REPOSITORY / ".cache" / "python"

ON_THIS_MACHINE: Final = ("3.11", "3.12")

DEBIAN: Final = {"x86_64": "amd64", "aarch64": "arm64"}
QEMU: Final = "qemu-aarch64-static"


@dataclass(frozen=True)
class Release:
    """A Debian release's Python for a processor.

    It runs in its own root; for another processor it is unpacked only, and emulated.
    """

    suite: str
    python: str
    processor: str

    @property
    def root(self) -> Path:
        """Return the folder that it is unpacked in."""
        return ROOTS / f"{self.suite}-{self.processor}"

    def install(self, wheel: Path) -> list[str]:
        """Install a wheel without an index; return the command that runs vsockproxy."""
        return (self._emulated if self.processor == "aarch64" else self._chroot)(wheel)

    def _chroot(self, wheel: Path) -> list[str]:
        python, inside = f"python{self.python}", ("chroot", str(self.root))
        if not self.root.exists():
            part = self.root.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
            include = f"--include={python}-venv"
            run("debootstrap", "--variant=minbase", include, self.suite, str(part))
            part.rename(self.root)
        home, house = "/opt/vsockproxy", self.root / "opt" / "wheels"
        for left in (self.root / home[1:], house):
            shutil.rmtree(left, ignore_errors=True)
        pip = (sys.executable, "-m", "pip")
        download(*pip, options=options_for(self.python, self.processor))
        shutil.copytree(HOUSE, house)
        shutil.copy(wheel, house)
        run(*inside, python, "-m", "venv", home)
        offline = ("install", "--quiet", "--no-index", "--find-links", "/opt/wheels")
        run(*inside, f"{home}/bin/pip", *offline, f"/opt/wheels/{wheel.name}")
        return [*inside, f"{home}/bin/vsockproxy"]

    def _emulated(self, wheel: Path) -> list[str]:
        script = REPOSITORY / "release" / "debian_python.sh"
        python, architecture = f"python{self.python}", DEBIAN[self.processor]
        run(str(script), self.suite, architecture, python, str(self.root))
        packages = self.root / "opt" / "vsockproxy"
        shutil.rmtree(packages, ignore_errors=True)
        install_into(packages, wheel, self.python, self.processor)
        # -P: not the package of the current folder.
        program = [f"{self.root}/usr/bin/{python}", "-P", "-m", "vsockproxy"]
        return [QEMU, "-E", f"PYTHONPATH={packages}", "-L", str(self.root), *program]


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
        command = release.install(find_wheel(wheel))
        yield f"{wheel}, Debian {release.suite}: {try_out('native', command)}"
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


def drive(processor: str) -> str:
    """Run the pump's driver, linked with musl by zig; return what it says."""
    pump = REPOSITORY / "vsockproxy" / "pump" / "_native"
    sources = [str(file) for file in sorted(pump.glob("*.c")) if file.name != "_pump.c"]
    program = BUILD / f"driver-{processor}"
    zig = (sys.executable, "-m", "ziglang", "cc", "-target", f"{processor}-linux-musl", "-static")
    driver = REPOSITORY / "tests" / "pump" / "driver.c"
    wrapped = sorted(set(re.findall(r"__wrap_(\w+)\(", driver.read_text())))
    options = ("-std=gnu11", "-O2", f"-I{pump}", *(f"-Wl,--wrap={name}" for name in wrapped))
    run(*zig, *options, "-o", str(program), str(driver), *sources)
    emulator = [QEMU] if processor == "aarch64" else []
    run(*emulator, str(program))
    return "the pump's driver passed, linked with musl; no Python for it could be had"


if __name__ == "__main__":
    main()
