"""Add the native pump where it can run, and the revision; pyproject.toml has everything else."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

# epoll and eventfd are Linux's; everywhere else the portable pump serves.
on_linux = sys.platform == "linux"

# cffi compiles for the stable ABI, which a free-threaded Python does not have.
stable_abi = on_linux and not sysconfig.get_config_var("Py_GIL_DISABLED")


class Wheel(bdist_wheel):
    """A wheel that is tagged by its content: without the pump in C it runs everywhere."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag; ``py3-none-any`` if the pump was not compiled."""
        if not list(Path(self.bdist_dir).rglob("_pump.*.so")):
            self.root_is_pure, self.plat_name_supplied = True, False
        return super().get_tag()


class Package(build_py):
    """The package with its revision; an editable install runs the repository's own files."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            write_revision(Path(self.build_lib))


class Source(sdist):
    """An sdist that says which revision it is: it has no .git to ask."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files to the folder that is packed."""
        super().make_release_tree(base_dir, files)
        write_revision(Path(base_dir))


def write_revision(folder: Path) -> None:
    """Write the revision to the copy of the package in ``folder``, if this build knows it."""
    if found := revision():
        file = folder / "vsockproxy" / "revision.py"
        before = file.stat()
        first = file.read_text().partition("REVISION")[0]
        file.unlink()  # it may be a link to this tree's own
        file.write_text(f"{first}REVISION = {found!r}\n")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # for builds without an epoch


def revision() -> str:
    """Return the commit of this tree, with ``-dirty`` if it has changed since; else an empty text.

    ``VSOCKPROXY_REVISION`` of the environment has precedence, for a tree without its .git.  An
    sdist keeps what it says: a .git beside its PKG-INFO, or around it, is another repository's.
    """
    tree = Path(__file__).resolve().parent
    if "VSOCKPROXY_REVISION" in os.environ or (tree / "PKG-INFO").exists():
        return os.environ.get("VSOCKPROXY_REVISION", "")
    # With --git-dir, git looks neither in the folders above nor at who owns the files.
    git = ("git", f"--git-dir={tree}/.git", f"--work-tree={tree}")
    describe = ("describe", "--always", "--exclude=*", "--abbrev=40", "--dirty")
    try:
        done = subprocess.run(  # noqa: S603 - constant words, no shell
            (*git, *describe), capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


setup(
    cffi_modules=["vsockproxy/pump/_native/build.py:ffibuilder"] if on_linux else [],
    cmdclass={"bdist_wheel": Wheel, "build_py": Package, "sdist": Source},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
