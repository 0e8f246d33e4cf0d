"""Completion in real shells, with the script that the program prints."""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.admin.running_daemon import controlled_daemon
from tests.daemon_process import PATIENCE, command, environment
from tests.kernel.boot import require

# What bash does when the Tab key is pressed: complete(1) names the function.
BASH: Final = """\
eval "$(vsockproxy --show-completion bash)"
COMP_WORDS=(vsockproxy {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_vsockproxy_completion vsockproxy
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
FISH: Final = """\
vsockproxy --show-completion fish | source
complete -C 'vsockproxy {words}' | string split -f 1 \\t
"""


def completed(
    shell: str, script: str, tmp_path: Path, environ: Mapping[str, str] | None = None
) -> list[str]:
    require(**{shell: shell})
    program = tmp_path / "vsockproxy"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vsockproxy "$@"\n')
    program.chmod(0o755)
    options = ["--norc"] if shell == "bash" else ["--no-config"]
    done = subprocess.run(
        [shell, *options, "-c", script],
        env={
            **environment(),
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(tmp_path),
            **(environ or {}),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return [line.strip() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("fish", FISH)])
def test_a_command_and_its_options_are_completed(shell: str, script: str, tmp_path: Path) -> None:
    assert completed(shell, script.format(words="doc"), tmp_path) == ["doctor"]
    assert "--root" in completed(shell, script.format(words="doctor --"), tmp_path)


async def test_a_routes_name_is_completed_from_the_running_daemon(tmp_path: Path) -> None:
    async with controlled_daemon(tmp_path, "web", "web-2", "db") as running:
        environ = {"VSOCKPROXY_ADMIN": str(running.socket)}
        complete = partial(completed, "bash", tmp_path=tmp_path, environ=environ)
        names = await trio.to_thread.run_sync(complete, BASH.format(words="drain w"))
        client, connection = await running.live("web")
        ids = await trio.to_thread.run_sync(complete, BASH.format(words="kill ''"))
        await client.aclose()
        option = await trio.to_thread.run_sync(complete, BASH.format(words="kill --route d"))
    assert ids == [str(connection.number)]
    assert names == ["web", "web-2"]
    assert option == ["db"]


def test_without_a_daemon_no_route_is_completed(tmp_path: Path) -> None:
    environ = {"VSOCKPROXY_ADMIN": str(tmp_path / "none")}
    assert completed("bash", BASH.format(words="drain w"), tmp_path, environ) == [""]


def test_the_script_without_a_name_is_for_the_shell_of_the_environment() -> None:
    done = command("--show-completion", environ={"SHELL": "/usr/bin/zsh"})
    assert done.stdout == command("--show-completion", "zsh").stdout
    assert done.stdout.startswith("#compdef vsockproxy\n")
    done = command("--show-completion", environ={"SHELL": "/bin/dash"})
    assert (done.returncode, done.stdout) == (2, "")
    assert "'dash' is not one of 'bash', 'zsh', 'fish'" in done.stderr


def test_bash_completes_a_path_where_no_word_is_offered() -> None:
    assert "complete -o default " in command("--show-completion", "bash").stdout
