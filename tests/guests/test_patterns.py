"""Guests by pattern: found through the directory, and reached behind their VMMs' sockets."""

from __future__ import annotations

import gc
import tracemalloc
from collections import deque
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.config.texts import toml
from tests.dial.fake_vmm import Vmm
from tests.fake_services import says
from tests.sockets import read_to_end, stream
from vsockproxy.address.endpoint import GuestEndpoint, MuxEndpoint
from vsockproxy.admit.decision import Verdict, decide
from vsockproxy.config.access import Peer
from vsockproxy.config.guest import Cid, CidFile, DynamicLocator, Guest, Mux
from vsockproxy.config.request import Request
from vsockproxy.config.settings import Config, Policy
from vsockproxy.dial.target import Dialer
from vsockproxy.errors import DialError
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.directory import Guests
from vsockproxy.stats import TargetState

FILES: Final = Guest("sbx-*", CidFile("/run/sbx/{name}.cid"), to_host=True)
NAMES: Final = 10_000


class Source:
    """A fake source that knows the guests whose names go on with 1, and its last look-ups."""

    def __init__(self) -> None:
        self.asked: deque[str] = deque(maxlen=10)

    async def __call__(self, locator: DynamicLocator, threads: trio.CapacityLimiter) -> Cid | Mux:
        await trio.lowlevel.checkpoint()
        assert isinstance(locator, CidFile)
        self.asked.append(locator.path)
        if locator.path.startswith(("/run/sbx/1", "/other/1")):
            return Cid(7)
        raise GuestError("no such VM")


async def resolve(guests: Guests, name: str) -> str:
    try:
        return str(await guests.resolve(GuestEndpoint(name, 80), trio.current_time() + 5))
    except DialError as error:
        return error.explanation


async def test_a_guest_of_a_pattern_is_looked_up_under_its_own_name() -> None:
    source = Source()
    guests = Guests([FILES], look_up=source)
    assert await resolve(guests, "sbx-1a") == "vsock:7:80,to_host"
    assert await resolve(guests, "sbx-1a") == "vsock:7:80,to_host"
    assert await resolve(guests, "sbx-2a") == "no such VM"
    assert list(source.asked) == ["/run/sbx/1a.cid", "/run/sbx/2a.cid"]
    guests.forget("sbx-1a")
    await resolve(guests, "sbx-1a")
    assert source.asked.count("/run/sbx/1a.cid") == 2


async def test_a_pattern_is_no_guest_that_metrics_or_doctor_name() -> None:
    guests = Guests([FILES], look_up=Source())
    await resolve(guests, "sbx-1")
    assert guests.records() == []


async def test_a_reload_drops_the_guests_of_a_pattern_that_has_changed() -> None:
    guests = Guests([FILES], look_up=Source())
    await resolve(guests, "sbx-1")
    guests.reconfigure([Guest("sbx-*", CidFile("/other/{name}"))])
    assert await resolve(guests, "sbx-1") == "vsock:7:80"
    guests.reconfigure([])
    assert "was removed from the configuration" in await resolve(guests, "sbx-1")


@pytest.mark.parametrize("prefix", ["1", "x"], ids=["found", "not found"])
async def test_ten_thousand_names_leave_the_memory_as_it_was(prefix: str) -> None:
    guests = Guests([FILES, Guest("vm-*", Mux("/run/{name}/v.sock"))], look_up=Source())

    async def used_after(first: int, end: int) -> int:
        for number in range(first, end):
            await resolve(guests, f"sbx-{prefix}{number}")
            assert guests.find(f"vm-{number}") is not None
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        half = await used_after(0, NAMES // 2)
        whole = await used_after(NAMES // 2, NAMES)
    finally:
        tracemalloc.stop()
    assert whole < half * 1.1


def fleet(folder: Path) -> Config:
    return toml(
        '[[route]]\nlisten = 80\nby = "sni"\n'
        'to = [{ name = "*.vm.example.com", target = "sbx-{1}:443" },'
        ' { name = "*.pod.example.com", target = "pod-{1}:443" }]\n'
        f'[guests]\n"sbx-*" = {{ mux = "{folder}/{{name}}/v.sock" }}\n'
        f'"pod-*" = {{ mux = "{folder}/{{name}}/*/v.sock" }}\n'
    )


async def ask(guests: Guests, config: Config, name: str, domain: str = "vm") -> Verdict:
    request = Request(f"{name}.{domain}.example.com")
    return await decide(request, config.routes[0], Peer(), guests, trio.current_time() + 5)


async def test_a_guest_born_after_the_start_is_reached_by_its_name(tmp_path: Path) -> None:
    config = fleet(tmp_path)
    guests = Guests(config.guests)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        vmm = Vmm(tmp_path / name / "v.sock", {443: says(name.encode())})
        verdict = await ask(guests, config, name)
        assert verdict.target == MuxEndpoint(str(vmm.path), 443)
        async with vmm.running():
            assert await answer(guests, verdict) == name.encode()


async def test_the_one_socket_of_a_guest_of_a_pattern_is_found_at_the_dial(tmp_path: Path) -> None:
    config = fleet(tmp_path)
    guests = Guests(config.guests)
    verdict = await ask(guests, config, "p1", domain="pod")
    assert verdict.target == GuestEndpoint("pod-p1", 443, "vsock-mux")
    (tmp_path / "p1" / "x81f").mkdir(parents=True)
    async with Vmm(tmp_path / "p1" / "x81f" / "v.sock", {443: says(b"p1")}).running():
        assert await answer(guests, verdict) == b"p1"


async def answer(guests: Guests, verdict: Verdict) -> bytes:
    """Return what the target of a verdict sends."""
    assert verdict.target is not None
    dialer = Dialer(TargetState(verdict.target), Policy(), guests, names={}, log=None)
    async with stream(await dialer.dial(lambda _: None)) as sock:
        return await read_to_end(sock)


async def test_a_client_does_not_leave_the_folder_of_the_guests(tmp_path: Path) -> None:
    config = fleet(tmp_path)
    guests = Guests(config.guests)
    for name in ("..", "../x", "a/b", "a\0b", "", ".", "*", "?", "[a]", "-rf", "a b", "{name}"):
        assert (await ask(guests, config, name)).target is None
