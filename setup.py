"""Adds the native pump to the build where it can run; pyproject.toml says the rest."""

import sys

from setuptools import setup

# epoll and eventfd are Linux's; everywhere else the portable pump serves.
on_linux = sys.platform == "linux"

setup(cffi_modules=["vsockproxy/pump/_native/build.py:ffibuilder"] if on_linux else [])
