"""Dialling a target that a client has named: every address that is dialled was checked."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest
import trio

from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.config.destination import parse_pattern
from vsockproxy.config.reach import Reach
from vsockproxy.dial import own_address, tcp
from vsockproxy.dial.dial import dial
from vsockproxy.dial.own_address import is_own
from vsockproxy.errors import DialError

pytestmark = pytest.mark.usefixtures("nothing_stays_open")


def reach(*allow: str) -> Reach:
    return Reach(tuple(map(parse_pattern, allow)))


@contextmanager
def listening(*hosts: str) -> Iterator[int]:
    """Listen at one port of several addresses of the loopback; yield the port."""
    with socket.create_server((hosts[0], 0)) as first:
        port = first.getsockname()[1]
        others = [socket.create_server((host, port)) for host in hosts[1:]]
        try:
            yield port
        finally:
            for other in others:
                other.close()


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake the name server: it answers every question with the addresses of the list."""
    answers: list[str] = []

    async def resolve(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        found = [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, (one, port)) for one in answers
        ]
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in found]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    return answers


async def dialled(host: str, port: int, *allow: str) -> str:
    """Return the address that was dialled, or the error."""
    try:
        with await dial(TcpEndpoint(host, port), 5, destinations=reach(*allow)) as sock:
            return str(sock.getpeername()[0])
    except DialError as error:
        return f"{error.reason}: {error.explanation}"


async def test_a_name_that_resolves_to_the_loopback_is_not_dialled(resolving: list[str]) -> None:
    with listening("127.0.0.1") as port:
        for address in ("127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"):
            resolving[:] = [address]
            text = await dialled("rebind.example", port, "rebind.example:*", "0.0.0.0/0:*")
            assert "a loopback address, which target_allow must name" in text


async def test_only_the_addresses_within_reach_of_a_name_are_raced(resolving: list[str]) -> None:
    with listening("127.0.0.2", "127.0.0.3") as port:
        resolving[:] = ["127.0.0.2", "10.0.0.1", "127.0.0.3"]
        assert await dialled("a.example", port, "a.example:*", "127.0.0.3:*") == "127.0.0.3"


async def test_a_name_is_resolved_once_and_the_checked_address_is_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter(["127.0.0.2", "127.0.0.3"])  # a name server that changes its mind

    async def resolve(_host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(trio.socket, "getaddrinfo", resolve)
    with listening("127.0.0.2", "127.0.0.3") as port:
        assert await dialled("a.example", port, "127.0.0.2:*") == "127.0.0.2"
    assert next(answers) == "127.0.0.3"


@pytest.mark.parametrize("host", ["0x7f.1", "0x7f000001", "localhost"])
async def test_the_systems_resolver_leads_no_other_spelling_to_the_loopback(host: str) -> None:
    with listening("127.0.0.1") as port:
        text = await dialled(host, port, f"{host}:*", "0.0.0.0/0:*", "[::]/0:*")
        assert "a loopback address, which target_allow must name" in text


async def test_an_address_of_this_machine_is_dialled_only_if_a_rule_is_for_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The loopback stands for a public address of this machine, for the test has no other.
    monkeypatch.setattr(tcp, "is_own", lambda _: True)
    monkeypatch.setattr("vsockproxy.config.reach._special", lambda _: (None, None))
    monkeypatch.setattr("ipaddress.IPv4Address.is_loopback", False)
    with listening("127.0.0.1") as port:
        text = await dialled("127.0.0.1", port, "127.0.0.0/24:*")
        assert "127.0.0.1 is an address of this machine" in text
        assert await dialled("127.0.0.1", port, "127.0.0.1:*") == "127.0.0.1"


# ---- the addresses of this machine ----


def own_addresses() -> set[str]:
    """Return the IPv4 addresses of this machine, as its routing table has them."""
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    pairs = pairwise(lines)
    return {one.split()[-1] for one, kind in pairs if "/32 host LOCAL" in kind}


@pytest.mark.skipif(not Path("/proc/net/fib_trie").exists(), reason="needs Linux's /proc/net")
def test_every_address_of_the_routing_table_is_this_machines() -> None:
    found = own_addresses()
    assert "127.0.0.1" in found
    assert [one for one in found if not is_own(ip_address(one))] == []


@pytest.mark.parametrize("text", ["8.8.8.8", "192.0.2.1", "2001:db8::1", "2a00::8"])
def test_an_address_of_another_machine_is_not(text: str) -> None:
    assert not is_own(ip_address(text))


def test_a_kernel_that_binds_to_every_address_is_asked_for_the_source_of_a_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_address, "_binds", lambda _version, _text: True)
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("8.8.8.8"))
