"""The listener of the tests' servers."""

from tests.admin.conftest import tcp

__all__ = ["tcp"]
