"""The sources of this machine: answers, files, patterns and commands."""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.fake_services import as_ordinary_user, dead_unix_socket, open_folder
from tests.guests.look_ups import UNREACHABLE, find, look_up_error
from tests.sockets import no_descriptor_left_over
from vsockproxy.config.guest import (
    Cid,
    CidFile,
    Command,
    Mux,
    MuxGlob,
)
from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.file_system import read_cid

# ---- what is a CID ----


@pytest.mark.parametrize("answer", [3, "3", " 3\n", 4294967294, "4294967294"])
def test_a_cid_is_a_number_or_decimal_digits(answer: object) -> None:
    assert checked_cid(answer, "it") == int(str(answer))


@pytest.mark.parametrize(
    "answer",
    ["", "web", "-3", "3.0", "0x3", "\u0663", "3 4", True, None, 3.0, [], "1" * 5000, -3],
)
def test_an_answer_that_is_not_a_number_is_an_error(answer: object) -> None:
    with pytest.raises(GuestError, match=r"^it answers .* which is not a CID$"):
        checked_cid(answer, "it")


@pytest.mark.parametrize("answer", [0, 1, 2, 4294967295, 4294967296, 10**19])
def test_the_cids_of_the_host_and_any_are_errors(answer: int) -> None:
    with pytest.raises(GuestError, match=r"not a guest's CID: expected 3 to 4294967294$"):
        checked_cid(answer, "it")


# ---- files ----


async def test_a_cid_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "cid").write_text("17\n")
    assert await find(CidFile(f"{tmp_path}/cid")) == Cid(17)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: is the VM running?"),
        (b"\n", "is empty: is the VM running?"),
        (b"CID=3", "/cid has no CID, which is a decimal number"),
        (b"\xff\xfe", "has no CID"),
        (b"2", "answers 2, which is not a guest's CID: expected 3 to 4294967294"),
        (b"3" * 4096, "has no CID"),
    ],
)
async def test_a_file_without_a_cid_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "cid").write_bytes(content)
    assert words in await look_up_error(CidFile(f"{tmp_path}/cid"))


async def test_the_error_of_a_file_quotes_nothing_of_it(tmp_path: Path) -> None:
    # Whoever may add a guest by the control socket names the file, and need not be able to read it.
    (tmp_path / "cid").write_text("secret")
    assert "secret" not in await look_up_error(CidFile(f"{tmp_path}/cid"))


async def test_a_missing_a_wrong_and_an_unreadable_file_have_different_errors(
    tmp_path: Path,
) -> None:
    assert "does not exist: is the VM running?" in await look_up_error(CidFile(f"{tmp_path}/cid"))
    assert "Is a directory" in await look_up_error(CidFile(f"{tmp_path}"))
    with open_folder() as folder:
        (folder / "cid").write_text("3")
        (folder / "cid").chmod(0)
        with as_ordinary_user():
            assert "Permission denied" in await look_up_error(CidFile(f"{folder}/cid"))


def test_a_folder_in_place_of_a_cid_file_is_an_error_and_leaves_no_descriptor(
    tmp_path: Path,
) -> None:
    with no_descriptor_left_over(), pytest.raises(GuestError, match="cannot be read"):
        read_cid(str(tmp_path))


async def test_a_fifo_without_a_writer_is_empty_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cid")
    assert "is empty" in await look_up_error(CidFile(f"{tmp_path}/cid"))


async def test_a_pattern_must_match_one_socket(tmp_path: Path) -> None:
    pattern = MuxGlob(f"{tmp_path}/vm-*", "none")
    (tmp_path / "vm-log").write_text("not a socket")
    assert "no socket matches" in await look_up_error(pattern)
    dead_unix_socket(tmp_path / "vm-1")
    assert await find(pattern) == Mux(f"{tmp_path}/vm-1", "none")
    for name in ("vm-2", "vm-3", "vm-4"):
        dead_unix_socket(tmp_path / name)
    words = await look_up_error(pattern)
    assert words.startswith(f"4 sockets match {tmp_path}/vm-*, expected one: {tmp_path}/vm-1, ")
    assert words.endswith(", ...")


async def test_a_match_that_cannot_be_examined_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vm-1").symlink_to(UNREACHABLE)
    words = await look_up_error(MuxGlob(f"{tmp_path}/vm-*", "none"))
    assert words == f"{tmp_path}/vm-1 cannot be examined: File name too long"


# ---- commands ----


def python(code: str) -> Command:
    return Command((sys.executable, "-S", "-c", code))


async def test_a_command_runs_without_a_shell_and_prints_the_cid() -> None:
    assert await find(Command(("/bin/echo", "21"))) == Cid(21)
    assert "answers '$((1+2))'" in await look_up_error(Command(("/bin/echo", "$((1+2))")))


async def test_the_environment_of_a_command_has_only_path_and_lang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "s")
    code = "import os, sys; print(len(set(os.environ) - {'PATH', 'LANG', 'LC_CTYPE'}) + 3)"
    assert await find(python(f"{code}; assert not sys.stdin.read()")) == Cid(3)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "answers '', which is not a CID"),
        ("print('web')", "answers 'web', which is not a CID"),
        ("import sys; sys.exit('first\\nno such VM')", "exited with status 1: no such VM"),
        ("import os; os._exit(3)", "exited with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "exited with status -9"),
        ("print('1' * 10_000_000)", "prints more than 4096 bytes"),
        ("import sys; sys.exit('x' * 1_000_000 + '\\nno such VM')", "status 1: no such VM"),
    ],
)
async def test_a_command_that_does_not_print_a_cid_is_an_error(code: str, words: str) -> None:
    assert words in await look_up_error(python(code))


async def test_a_command_has_answered_when_it_ends_despite_a_background_process() -> None:
    assert await find(Command(("/bin/sh", "-c", "sleep 1000 & echo 21"))) == Cid(21)
    words = await look_up_error(Command(("/bin/sh", "-c", "sleep 1000 & echo no VM >&2; exit 3")))
    assert words == "/bin/sh exited with status 3: no VM"


async def test_a_command_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    assert "cannot be run: No such file" in await look_up_error(Command((f"{tmp_path}/x",)))
    (tmp_path / "x").write_text("echo 3")
    assert "cannot be run: Permission denied" in await look_up_error(Command((f"{tmp_path}/x",)))


async def test_a_command_that_hangs_is_killed_with_its_descendants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.guests.command.TIMEOUT", 0.5)
    os.mkfifo(tmp_path / "alive")
    script = f"sleep 1000 <>{tmp_path}/alive >&0 & wait"
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        words = await look_up_error(Command(("/bin/sh", "-c", script)))
        assert words == "/bin/sh did not answer within 0.5 s"
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(
                reader
            )  # readable: the last writer has closed the FIFO
    finally:
        os.close(reader)


async def test_programs_whose_start_hangs_leave_threads_to_the_rest_of_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = threading.Event()

    def hangs(*_: object, **__: object) -> None:
        """A fake of an exec from a network file system whose server is gone."""
        assert goes_on.wait(10)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("subprocess.Popen", hangs)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(60):  # more than trio has threads
                nursery.start_soon(look_up_error, Command(("/dead/program",)))
            await trio.testing.wait_all_tasks_blocked()
            limiter = trio.to_thread.current_default_thread_limiter()
            assert 0 < limiter.borrowed_tokens < limiter.total_tokens
            await trio.to_thread.run_sync(goes_on.set)
    finally:
        goes_on.set()
