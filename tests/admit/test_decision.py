"""Where a client's request leads: the order of the rules, and their clients."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from tests.config.texts import toml
from vsockproxy.address.endpoint import TcpEndpoint
from vsockproxy.admit.decision import Verdict, decide
from vsockproxy.config.access import Peer
from vsockproxy.config.destination import Destinations
from vsockproxy.config.guest import Cid, DynamicLocator, Mux
from vsockproxy.config.reach import Reach
from vsockproxy.config.request import Request
from vsockproxy.config.settings import Config
from vsockproxy.guests.answer import GuestError
from vsockproxy.guests.directory import Guests

GUESTS: Final = """
[guests]
"sbx-*" = { mux = "/run/sbx/{name}/v.sock" }
"vm-*" = { file = "/run/{name}.cid" }
"long-*" = { unix = "/run/LONG/{name}/{port}" }
web = { cid = 3 }
job = { file = "/run/job.cid" }
hung = { file = "/run/hung.cid" }
microvm = { mux = "/run/fc/v.sock" }
""".replace("LONG", "x" * 90)

PEER: Final = Peer(ip=ip_address("192.0.2.7"))

IN: Final = """by = "http-host"
to = [
  { name = "*.vm.example.com", target = "sbx-{1}:443" },
  { name = "*.ssh:22", target = "vm-{1}:{port}" },
  { name = "*.long", target = "long-{1}:1" },
  { name = "db.example.com", target = "web:5432" },
  { name = "host.example.com", target = "tcp:127.0.0.1:{port}" },
  { name = "*.example.com", target = "{1}:80" },
]
"""
OUT: Final = """by = "proxy"
target_allow = ["deb.debian.org:80", "*.pypi.org:443", "10.0.0.0/8:5432", "*.corp:*"]
target_deny = ["bad.pypi.org:*", "10.9.0.0/16:*"]
"""


def config_of(keys: str, listen: str = "80") -> Config:
    return toml(f'[[route]]\nlisten = "{listen}"\n{keys}\n{GUESTS}')


async def verdict_on(
    name: str, port: int | None, keys: str, peer: Peer = PEER, listen: str = "80"
) -> Verdict:
    config = config_of(keys, listen)
    guests = Guests(config.guests, look_up=look_up)
    deadline = trio.current_time() + 5
    return await decide(Request(name, port), config.routes[0], peer, guests, deadline)


async def look_up(locator: DynamicLocator, _threads: trio.CapacityLimiter) -> Cid | Mux:
    """Fake a source that knows one guest, `job` with CID 9, and never answers about `hung`."""
    await trio.lowlevel.checkpoint()
    if str(locator) == 'file = "/run/hung.cid"':
        await trio.sleep_forever()
    if str(locator) == 'file = "/run/job.cid"':
        return Cid(9)
    raise GuestError(f"{locator} is not there")


@pytest.mark.parametrize(
    ("name", "port", "target"),
    [
        ("x7.vm.example.com", None, "vsock-mux:/run/sbx/x7/v.sock:443"),
        ("x7.vm.example.com", 8443, "vsock-mux:/run/sbx/x7/v.sock:443"),
        ("2.vm.example.com", None, "vsock-mux:/run/sbx/2/v.sock:443"),
        ("host.vm.example.com", None, "vsock-mux:/run/sbx/host/v.sock:443"),
        ("a.ssh", 22, "vm-a:22"),
        ("db.example.com", 1, "vsock:3:5432"),
        ("host.example.com", 8080, "tcp:127.0.0.1:8080"),
        ("web.example.com", None, "vsock:3:80"),
        ("job.example.com", None, "job:80"),
    ],
)
async def test_the_first_rule_that_matches_decides(
    name: str, port: int | None, target: str
) -> None:
    verdict = await verdict_on(name, port, IN)
    assert str(verdict.target) == target
    assert verdict.rule.startswith("to ")
    assert not verdict.reason


@pytest.mark.parametrize(
    ("name", "port", "rule", "reason"),
    [
        ("other.org", 443, "", "no rule allows other.org"),
        ("a.ssh", 23, "", "no rule allows a.ssh"),
        ("a.ssh", None, "", "no rule allows a.ssh"),
        ("a.b.vm.example.com", 1, "", "no rule allows a.b.vm.example.com"),
        ("2.example.com", 1, "to *.example.com = {1}:80", "no guest '2' in [guests]"),
        ("local.example.com", 1, "to *.example.com = {1}:80", "no guest 'local' in [guests]"),
        ("nope.example.com", 1, "to *.example.com = {1}:80", "no guest 'nope' in [guests]"),
        ("a/b.vm.example.com", 1, "", "'a/b.vm.example.com' is neither a host name nor an IP"),
        (
            "host.example.com",
            None,
            "to host.example.com = tcp:127.0.0.1:{port}",
            "the client names no port: write the port in place of {port}",
        ),
        (
            "host.example.com",
            65536,
            "to host.example.com = tcp:127.0.0.1:{port}",
            "65536 is not a port of the target",
        ),
        ("a.long", 1, "to *.long = long-{1}:1", "a socket's path has at most"),
    ],
)
async def test_what_no_rule_leads_to_a_target_is_denied_with_the_reason(
    name: str, port: int | None, rule: str, reason: str
) -> None:
    verdict = await verdict_on(name if name != "a.long" else "a" * 30 + ".long", port, IN)
    assert verdict.target is None
    assert verdict.rule == rule
    assert reason in verdict.reason


@pytest.mark.parametrize("name", ["a" * 30 + ".long", "nope.example.com"])
async def test_a_client_is_told_no_path_and_no_name_of_a_guest(name: str) -> None:
    told = (await verdict_on(name, 1, IN)).told
    assert told
    assert "/" not in told
    assert "nope" not in told


@pytest.mark.parametrize(
    ("name", "port", "rule"),
    [
        ("deb.debian.org", 80, "target_allow deb.debian.org:80"),
        ("files.pypi.org", 443, "target_allow *.pypi.org:443"),
        ("10.1.2.3", 5432, "target_allow 10.0.0.0/8:5432"),
        ("::ffff:10.1.2.3", 5432, "target_allow 10.0.0.0/8:5432"),
        ("db.internal", 5432, "target_allow 10.0.0.0/8:5432"),
    ],
)
async def test_an_allowed_name_leads_out_and_its_addresses_are_checked_at_the_dial(
    name: str, port: int, rule: str
) -> None:
    verdict = await verdict_on(name, port, OUT)
    assert verdict.rule == rule
    assert verdict.target is not None
    assert isinstance(verdict.destinations, Reach)


@pytest.mark.parametrize(
    ("name", "port", "rule", "reason"),
    [
        ("deb.debian.org", 443, "", "target_allow has no rule for deb.debian.org:443"),
        ("deb.debian.org", None, "", "no port was asked for with deb.debian.org"),
        ("deb.debian.org", 0, "", "no port was asked for with deb.debian.org"),
        ("deb.debian.org.evil.org", 80, "", "target_allow has no rule for"),
        ("bad.pypi.org", 443, "target_deny bad.pypi.org:*", "bad.pypi.org is denied"),
        ("bad.pypi.org", None, "target_deny bad.pypi.org:*", "bad.pypi.org is denied"),
        ("10.9.0.1", 5432, "target_deny 10.9.0.0/16:*", "10.9.0.1 is denied"),
        ("::ffff:10.9.0.1", 5432, "target_deny 10.9.0.0/16:*", "::ffff:10.9.0.1 is denied"),
        ("0xa000001", 5432, "", "'0xa000001' is not an IP address"),
        ("167772161", 5432, "", "'167772161' is not an IP address"),
        ("b\uff41d.pypi.org", 443, "", "is neither a host name nor an IP address"),
    ],
)
async def test_what_target_allow_does_not_list_is_denied(
    name: str, port: int | None, rule: str, reason: str
) -> None:
    verdict = await verdict_on(name, port, OUT)
    assert (verdict.target, verdict.rule) == (None, rule)
    assert reason in verdict.reason


async def test_an_empty_target_allow_reaches_nothing() -> None:
    verdict = await verdict_on("deb.debian.org", 80, 'by = "socks5"\ntarget_allow = []')
    assert verdict.target is None


async def test_to_comes_before_target_allow_and_target_deny_before_both() -> None:
    keys = OUT + 'to = [{ name = "*.pypi.org", target = "web:{port}" }]'
    assert str((await verdict_on("files.pypi.org", 443, keys)).target) == "vsock:3:443"
    assert (await verdict_on("bad.pypi.org", 443, keys)).target is None
    assert str((await verdict_on("deb.debian.org", 80, keys)).target) == "tcp:deb.debian.org:80"


async def test_target_allow_is_not_for_the_targets_that_the_operator_wrote() -> None:
    keys = OUT + 'to = [{ name = "a", target = "tcp:127.0.0.1:9" }]'
    verdict = await verdict_on("a", 1, keys)
    assert not isinstance(verdict.destinations, Reach)
    assert verdict.destinations.allow is None


@pytest.mark.parametrize(
    ("source", "peer", "listen", "target"),
    [
        ('"192.0.2.0/24"', PEER, "80", "vsock:3:1"),
        ('"192.0.3.0/24"', PEER, "80", "None"),
        ("5", Peer(cid=5), "vsock::80", "vsock:3:1"),
        ("5", Peer(cid=6), "vsock::80", "None"),
        ('["web", "7-9"]', Peer(cid=3), "vsock::80", "vsock:3:1"),
        ('"job"', Peer(cid=9), "vsock::80", "vsock:3:1"),
        ('"job"', Peer(cid=8), "vsock::80", "None"),
        ('"job"', Peer(), "vsock::80", "None"),
        ('"vm-x"', Peer(cid=9), "vsock::80", "None"),
        ('"microvm"', Peer(uid=0), "vsock-mux:/run/fc/v.sock:80", "vsock:3:1"),
        ('"microvm"', Peer(uid=0), "vsock-mux:/run/other/v.sock:80", "None"),
        ('"sbx-7"', Peer(uid=0), "vsock-mux:/run/sbx/7/v.sock:80", "vsock:3:1"),
        ('"uid:0"', Peer(uid=0), "unix:/run/a", "vsock:3:1"),
    ],
)
async def test_a_rule_is_for_the_clients_of_its_from(
    source: str, peer: Peer, listen: str, target: str
) -> None:
    keys = f'by = "socks5"\nto = [{{ name = "a", target = "web:1", from = {source} }}]'
    assert str((await verdict_on("a", 1, keys, peer, listen)).target) == target
    pattern = f'{{ pattern = "b:1", from = {source} }}'
    allowed = await verdict_on("b", 1, f'by = "socks5"\ntarget_allow = [{pattern}]', peer, listen)
    assert (allowed.target is None) == (target == "None")
    denied = f'by = "socks5"\ntarget_allow = ["b:1"]\ntarget_deny = [{pattern}]'
    assert ((await verdict_on("b", 1, denied, peer, listen)).target is None) != (target == "None")


@pytest.mark.parametrize(("name", "target"), [("b", "tcp:b:1"), ("c", "None")])
async def test_a_guest_that_hangs_takes_no_time_from_the_look_up_of_another(
    name: str, target: str, autojump_clock: MockClock
) -> None:
    del autojump_clock
    keys = """by = "socks5"
target_allow = [
  { pattern = "10.0.0.0/8:1", from = "hung" }, { pattern = "b:1", from = "job" }, "c:1",
]
target_deny = [{ pattern = "b:1", from = "hung" }, { pattern = "c:1", from = "job" }]
"""
    assert str((await verdict_on(name, 1, keys, Peer(cid=9), "vsock::80")).target) == target


@pytest.mark.parametrize("first", ['"job"', '["hung", "job"]', '["hung", 9]', "9"])
async def test_a_guest_that_hangs_delays_no_client_that_an_earlier_rule_admits(
    first: str, autojump_clock: MockClock
) -> None:
    del autojump_clock
    keys = f"""by = "socks5"
to = [
  {{ name = "a", target = "web:80", from = {first} }},
  {{ name = "*", target = "web:81", from = "hung" }},
]
"""
    began = trio.current_time()
    assert str((await verdict_on("a", 80, keys, Peer(cid=9), "vsock::80")).target) == "vsock:3:80"
    is_behind = first.startswith('["hung", "job"]')
    assert (trio.current_time() > began) == is_behind


async def test_a_guest_that_hangs_is_not_waited_for_where_no_rule_about_the_name_is_its_own(
    autojump_clock: MockClock,
) -> None:
    del autojump_clock
    keys = """by = "socks5"
target_allow = [{ pattern = "b:1", from = "hung" }, "c:2"]
target_deny = [{ pattern = "a:*", from = "hung" }]
"""
    began = trio.current_time()
    assert (await verdict_on("c", 2, keys, Peer(cid=9), "vsock::80")).target is not None
    assert trio.current_time() == began


@pytest.mark.parametrize("cid", [5, 6])
@pytest.mark.parametrize(
    "keys",
    [
        'by = "http-host"\ntarget_allow = [{ pattern = "127.0.0.1:9", from = 6 }]',
        'by = "socks5"\ntarget_deny = [{ pattern = "127.0.0.1:9", from = 5 }]',
    ],
)
async def test_a_rule_of_some_clients_is_not_for_the_targets_of_others(cid: int, keys: str) -> None:
    """``to`` leads both clients to one address, which is checked at the dial."""
    keys = f'{keys}\nto = [{{ name = "a", target = "tcp:127.0.0.1:9" }}]'
    verdict = await verdict_on("a", 9, keys, Peer(cid=cid), "vsock::80")
    assert isinstance(verdict.target, TcpEndpoint)
    assert isinstance(verdict.destinations, Destinations)
    assert verdict.destinations.admits(verdict.target, "127.0.0.1") == (cid == 6)


async def test_a_mux_route_of_one_guest_leads_to_the_port_asked_for() -> None:
    keys = 'by = "mux"\nguest = "web"'
    assert str((await verdict_on("web", 4294967294, keys)).target) == "vsock:3:4294967294"
    assert (await verdict_on("web", 4294967295, keys)).target is None
