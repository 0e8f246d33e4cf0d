"""Adds the native pump to the build where it can run; pyproject.toml says the rest."""

import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel

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


setup(
    cffi_modules=["vsockproxy/pump/_native/build.py:ffibuilder"] if on_linux else [],
    cmdclass={"bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
