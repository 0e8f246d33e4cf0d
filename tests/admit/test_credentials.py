"""The users of a file: right and wrong passwords, off the loop and within limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import bcrypt
import pytest
import trio
from structlog.testing import CapturingLogger

from vsockproxy.admit import token_bucket
from vsockproxy.admit.credentials import Users
from vsockproxy.config.access import Peer

PEER: Final = Peer(ip=ip_address("192.0.2.1"))
OTHER: Final = Peer(cid=3)
ALLOWED_FAILURES: Final = 5


def line(user: str, password: str) -> str:
    return f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"


def write(file: Path, text: str) -> None:
    file.write_text(text)


def remove(file: Path) -> None:
    file.unlink()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    # htpasswd writes $2y$, which is what the module calls $2b$.
    path.write_text("# people\n" + line("ann", "right").replace("$2b$", "$2y$") + "\n")
    with path.open("a") as more:
        more.write(line("b\u00f6b", "p\u00e4ss:word"))
    return path


@pytest.fixture
def log() -> CapturingLogger:
    return CapturingLogger()


@pytest.fixture
def users(file: Path, log: CapturingLogger) -> Users:
    return Users(str(file), log)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the passwords that are hashed."""
    found: list[bytes] = []
    check: Callable[[bytes, bytes], bool] = bcrypt.checkpw

    def checkpw(password: bytes, hashed_password: bytes) -> bool:
        found.append(password)
        return check(password, hashed_password)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    return found


@pytest.mark.parametrize(
    ("user", "password", "right"),
    [
        ("ann", "right", True),
        ("b\u00f6b", "p\u00e4ss:word", True),
        ("ann", "wrong", False),
        ("ann", "", False),
        ("ann", "p\u00e4ss:word", False),
        ("eve", "right", False),
        ("", "right", False),
        ("# people", "right", False),
        ("ann", "right\0", False),
        ("ann", "right" + "x" * 70, False),
        ("ann", "\ud800", False),
    ],
)
async def test_a_password_is_right_for_its_own_user_only(
    users: Users, user: str, password: str, right: bool
) -> None:
    assert await users.check(user, password, PEER) is right


async def test_an_unknown_user_costs_a_hash_as_a_wrong_password_does(
    users: Users, hashed: list[bytes]
) -> None:
    await users.check("eve", "x", PEER)
    await users.check("ann", "y", PEER)
    assert hashed == [b"x", b"y"]


async def test_a_right_password_is_hashed_once(users: Users, hashed: list[bytes]) -> None:
    for peer in (PEER, PEER, OTHER):
        assert await users.check("ann", "right", peer)
    assert hashed == [b"right"]


async def test_clients_at_once_with_a_right_password_are_all_let_in(
    users: Users, hashed: list[bytes]
) -> None:
    results: list[bool] = []

    async def client() -> None:
        results.append(await users.check("ann", "right", PEER))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(client)
    assert results == [True] * 20
    assert hashed == [b"right"]


async def test_a_change_of_the_file_needs_no_reload(users: Users, file: Path) -> None:
    assert await users.check("ann", "right", PEER)
    write(file, line("ann", "new"))
    assert not await users.check("ann", "right", PEER)
    assert await users.check("ann", "new", PEER)


async def test_a_source_with_many_failures_has_to_wait_and_others_do_not(
    users: Users, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(token_bucket, "monotonic", lambda: now)

    async def wrong() -> None:
        assert not await users.check("ann", "wrong", PEER)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(wrong)
    assert len(hashed) == ALLOWED_FAILURES
    assert not await users.check("ann", "right", PEER)
    assert await users.check("ann", "right", OTHER)
    now = 10.0
    assert await users.check("ann", "right", PEER)


async def test_ten_thousand_sources_and_passwords_are_not_all_remembered(
    users: Users, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda _password, _hashed: True)
    for number in range(2000):
        assert await users.check("ann", str(number), Peer(cid=number))
    assert len(users._sources) == len(users._right) == 1024


async def test_the_loop_goes_on_while_a_password_is_hashed(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(bcrypt, "checkpw", lambda _password, _hashed: may_end.wait(30))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(users.check, "ann", "right", PEER)
        await trio.testing.wait_all_tasks_blocked()
        may_end.set()


async def test_a_file_that_cannot_be_read_lets_nobody_in_and_is_logged_once(
    users: Users, file: Path, log: CapturingLogger
) -> None:
    remove(file)
    for _ in range(3):
        assert not await users.check("ann", "right", PEER)
    [call] = log.calls
    assert call.args == ("credentials_failed",)
    assert call.kwargs["error"] == (
        f"the file {file} cannot be read: No such file or directory;"
        f" create it: htpasswd -B -c {file} NAME"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("ann", ":1: expected NAME:HASH with a bcrypt hash: htpasswd -B writes it"),
        ("# x\nann:$apr1$abc$def", ":2: the user's password is not a bcrypt hash: htpasswd"),
        (f"ann:$2b$31${'a' * 53}", ":1: the hash has the cost 31: the maximum is 14"),
        ("x" * ((1 << 20) + 1), "has more than 1048576 bytes"),
    ],
)
async def test_a_file_of_another_kind_is_logged_with_its_line(
    users: Users, file: Path, log: CapturingLogger, text: str, error: str
) -> None:
    write(file, text)
    assert not await users.check("ann", "right", PEER)
    assert error in log.calls[0].kwargs["error"]


async def test_a_fifo_or_an_empty_file_lets_nobody_in(users: Users, file: Path) -> None:
    remove(file)
    os.mkfifo(file)
    with trio.fail_after(30):
        assert not await users.check("ann", "right", PEER)
    remove(file)
    write(file, "")
    assert not await users.check("ann", "right", PEER)
