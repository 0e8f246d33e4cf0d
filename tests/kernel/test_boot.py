"""The check for missing packages."""

import sys

import pytest

from tests.kernel.boot import require

pytestmark = pytest.mark.kernel


def test_a_missing_program_skips_the_test_and_names_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VSOCKPROXY_REQUIRE_KERNELS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"apt install some-package \(Debian\)"):
        require(**{sys.executable: "python3", "no-such-program": "some-package"})


def test_a_missing_program_fails_the_test_where_kernels_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VSOCKPROXY_REQUIRE_KERNELS", "1")
    with pytest.raises(pytest.fail.Exception, match=r"apt install some-package \(Debian\)"):
        require(**{"no-such-program": "some-package"})
