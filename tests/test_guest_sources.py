"""What each source says of a guest, and the words for what it cannot say."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from tests.fakes import as_ordinary_user, dead_unix_socket, open_folder
from vsockproxy.guest import Cid, CidFile, Command, DynamicWay, Mux, MuxGlob
from vsockproxy.guests.answer import GuestError, checked_cid
from vsockproxy.guests.sources import look_up


async def find(way: DynamicWay) -> Cid | Mux:
    with trio.fail_after(30):
        return await look_up(way, trio.CapacityLimiter(1))


async def complaint(way: DynamicWay) -> str:
    with pytest.raises(GuestError) as caught:
        await find(way)
    return str(caught.value)


# ---- what is a CID ----


@pytest.mark.parametrize("answer", [3, "3", " 3\n", 4294967294, "4294967294"])
def test_a_guests_cid_is_a_number_or_its_digits(answer: object) -> None:
    assert checked_cid(answer, "it") == int(str(answer))


@pytest.mark.parametrize(
    "answer",
    ["", "web", "-3", "3.0", "0x3", "\u0663", "3 4", True, None, 3.0, [], "1" * 5000, -3],
)
def test_what_is_no_number_is_no_cid(answer: object) -> None:
    with pytest.raises(GuestError, match=r"^it says .* which is no CID$"):
        checked_cid(answer, "it")


@pytest.mark.parametrize("answer", [0, 1, 2, 4294967295, 4294967296, 10**19])
def test_the_hosts_own_numbers_and_any_are_no_guests(answer: int) -> None:
    with pytest.raises(GuestError, match=r"no guest's CID: 3 to 4294967294$"):
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
        (b"CID=3", "says 'CID=3', which is no CID"),
        (b"\xff\xfe", "which is no CID"),
        (b"2", "says 2, which is no guest's CID: 3 to 4294967294"),
        (b"3" * 4096, "which is no CID"),
    ],
)
async def test_a_file_that_has_no_cid_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "cid").write_bytes(content)
    assert words in await complaint(CidFile(f"{tmp_path}/cid"))


async def test_a_file_that_is_not_there_or_not_ours_is_told_apart(tmp_path: Path) -> None:
    assert "does not exist: is the VM running?" in await complaint(CidFile(f"{tmp_path}/cid"))
    assert "Is a directory" in await complaint(CidFile(f"{tmp_path}"))
    with open_folder() as folder:
        (folder / "cid").write_text("3")
        (folder / "cid").chmod(0)
        with as_ordinary_user():
            assert "Permission denied" in await complaint(CidFile(f"{folder}/cid"))


async def test_a_fifo_that_nobody_writes_to_is_empty_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cid")
    assert "is empty" in await complaint(CidFile(f"{tmp_path}/cid"))


async def test_a_pattern_wants_one_socket(tmp_path: Path) -> None:
    pattern = MuxGlob(f"{tmp_path}/vm-*", "none")
    (tmp_path / "vm-log").write_text("not a socket")
    assert "no socket matches" in await complaint(pattern)
    dead_unix_socket(tmp_path / "vm-1")
    assert await find(pattern) == Mux(f"{tmp_path}/vm-1", "none")
    for name in ("vm-2", "vm-3", "vm-4"):
        dead_unix_socket(tmp_path / name)
    words = await complaint(pattern)
    assert words.startswith(f"4 sockets match {tmp_path}/vm-*, one is wanted: {tmp_path}/vm-1, ")
    assert words.endswith(", ...")


# ---- commands ----


def python(code: str) -> Command:
    return Command((sys.executable, "-S", "-c", code))


async def test_a_cid_is_what_a_command_prints_and_no_shell_reads_it() -> None:
    assert await find(Command(("/bin/echo", "21"))) == Cid(21)
    assert "says '$((1+2))'" in await complaint(Command(("/bin/echo", "$((1+2))")))


async def test_a_command_gets_nothing_but_a_path_and_a_language(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "s")
    code = "import os, sys; print(len(set(os.environ) - {'PATH', 'LANG', 'LC_CTYPE'}) + 3)"
    assert await find(python(f"{code}; assert not sys.stdin.read()")) == Cid(3)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "says '', which is no CID"),
        ("print('web')", "says 'web', which is no CID"),
        ("import sys; sys.exit('first\\nno such VM')", "ended with status 1: no such VM"),
        ("import os; os._exit(3)", "ended with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9"),
        ("print('1' * 10_000_000)", "prints more than 4096 bytes"),
        ("import sys; sys.exit('x' * 1_000_000 + '\\nno such VM')", "status 1: no such VM"),
    ],
)
async def test_a_command_that_says_no_cid_is_refused(code: str, words: str) -> None:
    assert words in await complaint(python(code))


async def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "cannot be run: No such file" in await complaint(Command((f"{tmp_path}/x",)))
    (tmp_path / "x").write_text("echo 3")
    assert "cannot be run: Permission denied" in await complaint(Command((f"{tmp_path}/x",)))


async def test_a_command_that_hangs_is_killed_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsockproxy.guests.command.TIMEOUT", 0.5)
    os.mkfifo(tmp_path / "alive")
    script = f"sleep 1000 <>{tmp_path}/alive >&0 & wait"
    reader = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        words = await complaint(Command(("/bin/sh", "-c", script)))
        assert words == "/bin/sh has not answered within 0.5 s"
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(reader)  # the last writer is gone
    finally:
        os.close(reader)
