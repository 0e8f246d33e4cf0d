"""The status page of a real daemon in a headless Chromium, if there is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trio

from tests.daemon_process import daemon
from tests.fake_services import unused_tcp_port

BROWSER = shutil.which("chromium-headless-shell")
HOSTILE = "<script>alert(1)</script>"


@pytest.mark.skipif(BROWSER is None, reason="no chromium-headless-shell: apt install it")
async def test_a_browser_loads_the_page_under_its_policy_and_runs_nothing(tmp_path: Path) -> None:
    port = unused_tcp_port()
    file = tmp_path / "config.toml"
    file.write_text(
        f'[[route]]\nname = "{HOSTILE}"\nlisten = "unix:{tmp_path}/web.sock"\n'
        f'target = "unix:{tmp_path}/none"\n[metrics]\nlisten = "127.0.0.1:{port}"\n'
    )
    async with daemon("run", "-c", file) as running:
        await running.wait_for("ready")
        done = await shown(f"http://127.0.0.1:{port}/?refresh=off", tmp_path)
        await running.stop()
    page = done.stdout.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert HOSTILE not in page
    assert b"Refused to" not in done.stderr  # the style has the hash that the policy allows
    assert b"violates the following Content Security Policy" not in done.stderr


async def shown(url: str, folder: Path) -> CompletedProcess[bytes]:
    """Return the document that the browser has made of a page, and its complaints."""
    assert BROWSER is not None
    options = ("--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
    profile = f"--user-data-dir={folder}/profile"
    with trio.fail_after(60):
        return await trio.run_process(
            [BROWSER, *options, profile, url], capture_stdout=True, capture_stderr=True
        )
