"""The routes and settings that the text of a configuration gives."""

from typing import Literal

import pytest

from tests.config.texts import toml, yaml
from vsockproxy.address.endpoint import (
    CID_ANY,
    FdEndpoint,
    GuestEndpoint,
    MuxEndpoint,
    TcpEndpoint,
    UnixEndpoint,
    VsockEndpoint,
)
from vsockproxy.config.access import CidRule, UserRule, parse_rule
from vsockproxy.config.guest import (
    Cid,
    CidFile,
    Command,
    DynamicLocator,
    Guest,
    Incus,
    Libvirt,
    Machine,
    MuxGlob,
    Qmp,
)
from vsockproxy.config.load import forward_config
from vsockproxy.config.process import Limits, LogSettings
from vsockproxy.config.settings import Config, Policy, PumpSettings, Route
from vsockproxy.errors import ConfigError


def test_each_line_of_the_short_form_is_a_route() -> None:
    config = toml('[forward]\n8080 = "3:80"\n"0.0.0.0:8443" = "web:443"\n[guests]\nweb = {cid = 4}')
    assert config == Config(
        routes=(
            Route("8080", TcpEndpoint(None, 8080), VsockEndpoint(3, 80)),
            Route("0.0.0.0:8443", TcpEndpoint("0.0.0.0", 8443), VsockEndpoint(4, 443)),
        ),
        guests=(Guest("web", Cid(4)),),
        source="x.toml",
    )


def test_toml_and_yaml_mean_the_same() -> None:
    one = toml('[forward]\n8080 = "3:22"\n[defaults]\nidle_timeout = "off"\naccess_log = false')
    two = yaml("forward:\n  8080: 3:22\ndefaults: {idle_timeout: off, access_log: false}")
    assert (one.routes, one.log) == (two.routes, two.log)
    assert one.routes[0].target == VsockEndpoint(3, 22)


def test_a_long_route_overrides_the_defaults() -> None:
    config = yaml(
        "defaults: {connect_timeout: 2, idle_timeout: 1h, backlog: 7}\n"
        "route:\n"
        "- {name: db, listen: 5432, target: 3:5432, idle_timeout: 0, access_log: false}\n"
    )
    policy = Policy(connect_timeout=2.0, idle_timeout=None, backlog=7, access_log=False)
    assert config.routes == (Route("db", TcpEndpoint(None, 5432), VsockEndpoint(3, 5432), policy),)


def test_a_short_route_has_the_policy_of_the_defaults() -> None:
    config = yaml("{forward: {80: 3:80}, defaults: {half_close: hold, drain_timeout: 0}}")
    assert config.routes[0].policy == Policy(half_close="hold", drain_timeout=0.0)


@pytest.mark.parametrize(
    ("listen", "target", "route"),
    [
        ("vsock::80", "tcp:80", (VsockEndpoint(CID_ANY, 80), TcpEndpoint(None, 80))),
        ("unix:/a", "3:80", (UnixEndpoint("/a"), VsockEndpoint(3, 80))),
        ("80", "unix:/a", (TcpEndpoint(None, 80), UnixEndpoint("/a"))),
        ("vsock-mux:/v:5", "tcp:db:5", (MuxEndpoint("/v", 5), TcpEndpoint("db", 5))),
        ("fd:x", "vsock-mux:/v:5", (FdEndpoint("x"), MuxEndpoint("/v", 5))),
        ("vsock-mux:/v:5", "vsock-mux:/v:5", (MuxEndpoint("/v", 5), MuxEndpoint("/v", 5))),
        ("0.0.0.0:80", "10.0.0.1:80", (TcpEndpoint("0.0.0.0", 80), TcpEndpoint("10.0.0.1", 80))),
        ("vsock::80", "2:80", (VsockEndpoint(CID_ANY, 80), VsockEndpoint(2, 80))),
    ],
)
def test_every_kind_of_address_is_read_on_either_side(
    listen: str, target: str, route: object
) -> None:
    (made,) = forward_config([(listen, target)]).routes
    assert (made.listen, made.target) == route
    assert made.name == listen


@pytest.mark.parametrize(
    ("guest", "target"),
    [
        ("{cid: 3}", VsockEndpoint(3, 80)),
        ("{cid: 4294967294}", VsockEndpoint(4294967294, 80)),
        ("{cid: 9, to_host: true}", VsockEndpoint(9, 80, to_host=True)),
        ("{mux: /run/v.sock}", MuxEndpoint("/run/v.sock", 80)),
        ("{unix: '/run/{port}/p{port}'}", UnixEndpoint("/run/80/p80", vmm=True)),
    ],
)
def test_each_kind_of_guest_has_its_address(guest: str, target: object) -> None:
    (route,) = yaml(f"{{forward: {{80: 'g:80'}}, guests: {{g: {guest}}}}}").routes
    assert route.target == target


def test_the_handshake_is_set_by_the_guest_the_route_or_the_address() -> None:
    guests = "guests: {a: {mux: /v, handshake: none}, b: {mux: /v}}\n"
    [guest] = yaml(guests + "forward: {80: 'a:80'}").routes
    [route] = yaml(guests + "route: [{listen: 80, target: 'b:80', handshake: none}]").routes
    [address] = yaml("forward: {80: 'vsock-mux:/v:80,handshake=none'}").routes
    [back] = yaml(guests + "route: [{listen: 80, target: 'a:80', handshake: ok}]").routes
    assert guest.target == route.target == address.target == MuxEndpoint("/v", 80, "none")
    assert back.target == MuxEndpoint("/v", 80)


@pytest.mark.parametrize(
    ("table", "locator", "over"),
    [
        ('{mux: "/run/*/v.sock"}', MuxGlob("/run/*/v.sock"), "vsock-mux"),
        ('{mux: "/run/v?", handshake: none}', MuxGlob("/run/v?", "none"), "vsock-mux"),
        ("{libvirt: web01}", Libvirt("web01", "qemu:///system"), "vsock"),
        ('{libvirt: w, uri: "qemu:///session"}', Libvirt("w", "qemu:///session"), "vsock"),
        ("{qmp: /run/web.qmp}", Qmp("/run/web.qmp"), "vsock"),
        ("{machine: web01}", Machine("web01"), "vsock"),
        ("{incus: web01}", Incus("web01"), "vsock"),
        ("{file: /run/web.cid}", CidFile("/run/web.cid"), "vsock"),
        ("{command: [/bin/cid-of, web]}", Command(("/bin/cid-of", "web")), "vsock"),
    ],
)
def test_a_guest_looked_up_at_each_dial_stays_a_name_in_the_target(
    table: str, locator: DynamicLocator, over: Literal["vsock", "vsock-mux"]
) -> None:
    config = yaml(f"{{forward: {{80: 'g:80'}}, guests: {{g: {table}}}}}")
    assert config.routes[0].target == GuestEndpoint("g", 80, over)
    assert (config.routes[0].half_close_hold is not None) == (over == "vsock-mux")
    assert config.guests == (Guest("g", locator),)
    again = toml(f'forward.80 = "g:80"\nguests.g = {{ {locator} }}')
    assert again.guests == config.guests


def test_a_looked_up_cid_can_be_dialled_through_the_hypervisor() -> None:
    config = toml('forward.80 = "g:80"\nguests.g = {file = "/f", to_host = true}')
    assert config.guests == (Guest("g", CidFile("/f"), to_host=True),)


def test_to_host_is_set_by_the_route_or_the_address() -> None:
    long = yaml("route: [{listen: 80, target: '9:80', to_host: true}]")
    short = yaml("forward: {80: 'vsock:9:80,to_host'}")
    assert long.routes[0].target == short.routes[0].target == VsockEndpoint(9, 80, to_host=True)


def test_ranges_of_equal_length_give_one_route_per_port() -> None:
    config = yaml(
        "guests: {g: {unix: '/s{port}'}}\n"
        "forward: {8000-8001: 3:9000-9001}\n"
        "route: [{name: r, listen: 'tcp:0.0.0.0:1-2', target: 'g:5-6'}]"
    )
    assert [(r.name, str(r.listen), str(r.target)) for r in config.routes] == [
        ("8000", "tcp:8000", "vsock:3:9000"),
        ("8001", "tcp:8001", "vsock:3:9001"),
        ("r-1", "tcp:0.0.0.0:1", "unix:/s5"),
        ("r-2", "tcp:0.0.0.0:2", "unix:/s6"),
    ]


def test_a_route_uses_the_default_rules_that_fit_its_listener() -> None:
    config = toml(
        'guests.web = {cid = 7}\n[forward]\n80 = "3:80"\n"vsock::80" = "tcp:80"\n'
        '"unix:/a" = "3:80"\n"fd:x" = "3:80"\n'
        '[defaults]\nallow = ["10.0.0.0/8", 3, "web"]\ndeny = ["uid:5"]'
    )
    network, cids = parse_rule("10.0.0.0/8"), (CidRule(3, 3), CidRule(7, 7))
    assert [(route.policy.allow, route.policy.deny) for route in config.routes] == [
        ((network,), ()),
        (cids, ()),
        (None, (UserRule(5),)),
        ((network, *cids), (UserRule(5),)),
    ]


def test_with_accept_proxy_rules_of_every_kind_are_kept() -> None:
    (route,) = toml(
        '[[route]]\nlisten = 80\ntarget = "3:80"\naccept_proxy = true\n'
        'proxy_trusted = ["10.0.0.0/8"]\nallow = [3, "192.0.2.0/24"]\nsend_proxy = "v2"'
    ).routes
    assert route.policy.allow == (CidRule(3, 3), parse_rule("192.0.2.0/24"))
    assert route.policy.proxy_trusted == (parse_rule("10.0.0.0/8"),)
    assert (route.policy.accept_proxy, route.policy.send_proxy) == (True, "v2")


def test_a_route_can_disable_the_lists_of_the_defaults() -> None:
    (route,) = toml(
        'defaults.allow = ["10.0.0.0/8"]\ndefaults.deny = ["10.1.0.0/16"]\n'
        '[[route]]\nlisten = 80\ntarget = "3:80"\nallow = "off"\ndeny = []'
    ).routes
    assert (route.policy.allow, route.policy.deny) == (None, ())


def test_a_route_can_have_several_targets_each_with_its_range() -> None:
    config = toml(
        '[[route]]\nname = "web"\nlisten = "8000-8001"\ntargets = ["3:80-81", "4:90-91"]\n'
        'balance = "round_robin"\n[[route]]\nlisten = 90\ntargets = ["3:80", "tcp:9090"]'
    )
    assert [tuple(map(str, route.targets)) for route in config.routes] == [
        ("vsock:3:80", "vsock:4:90"),
        ("vsock:3:81", "vsock:4:91"),
        ("vsock:3:80", "tcp:9090"),
    ]
    assert [route.policy.balance for route in config.routes] == ["round_robin"] * 2 + ["first"]


def test_the_keys_for_guests_that_are_not_up_are_read() -> None:
    config = toml(
        'forward.80 = "3:80"\n[defaults]\nwait_for_guest = "30s"\n'
        'probe_interval = "1m"\nready_when_up = true\nbalance = "round_robin"\n'
        '[[route]]\nlisten = 81\ntarget = "3:81"\nwait_for_guest = "off"\nfail_fast = true'
    )
    holding, failing = (route.policy for route in config.routes)
    assert holding == Policy(
        wait_for_guest=30.0,
        probe_interval=60.0,
        ready_when_up=True,
        balance="round_robin",
    )
    assert (failing.wait_for_guest, failing.fail_fast, failing.probe_interval) == (None, True, 60.0)


def test_limits_and_options_are_read() -> None:
    config = toml(
        'forward.80 = "3:80"\nlimits.max_connections = 100\n[defaults]\nmax_lifetime = "1d"\n'
        'keepalive = "30s"\nuser_timeout = "10s"\nnodelay = false\nbuffer_size = "1MiB"\n'
        'buffer_max = "2MiB"\nmax_connections = 10\nmax_connections_per_source = 2\n'
        'connection_rate = 0.5\nover_limit = "reject"\nmode = "0660"\n'
        "owner = 0\ngroup = 0"
    )
    assert config.limits == Limits(100)
    assert config.routes[0].policy == Policy(
        max_lifetime=86400.0,
        keepalive=30.0,
        user_timeout=10.0,
        nodelay=False,
        buffer_size=1 << 20,
        buffer_max=2 << 20,
        max_connections=10,
        max_connections_per_source=2,
        connection_rate=0.5,
        over_limit="reject",
        mode=0o660,
        owner=0,
        group=0,
    )


def test_the_settings_of_the_daemon_are_read() -> None:
    config = toml(
        '[forward]\n80 = "3:80"\n[metrics]\nlisten = 9490\n'
        '[log]\nlevel = "debug"\nformat = "json"\n'
        '[pump]\nchoice = "portable"\nthreads = 2'
    )
    assert config.metrics == (TcpEndpoint(None, 9490),)
    assert config.log == LogSettings("debug", "json")
    assert config.pump == PumpSettings("portable", 2)


def test_a_command_line_makes_the_same_routes() -> None:
    config = forward_config(
        [("8080", "3:80"), ("81", "g:81")],
        {"guests": {"g": {"cid": 4}}, "metrics": {"listen": "unix:/m"}},
    )
    assert [str(route.target) for route in config.routes] == ["vsock:3:80", "vsock:4:81"]
    assert config.metrics == (UnixEndpoint("/m"),)
    assert config.source == "command line"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("9490", [TcpEndpoint(None, 9490)]),
        ('"unix:/m"', [UnixEndpoint("/m")]),
        ('["0.0.0.0:1", "[::]:1"]', [TcpEndpoint("0.0.0.0", 1), TcpEndpoint("::", 1)]),
        ('[9490, "unix:/m"]', [TcpEndpoint(None, 9490), UnixEndpoint("/m")]),
    ],
)
def test_metrics_listen_at_one_address_or_several(written: str, expected: list[object]) -> None:
    config = toml(f'forward.80 = "3:80"\nmetrics.listen = {written}\n')
    assert list(config.metrics) == expected


def test_a_wrong_command_line_has_no_key_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        forward_config([("8080", "web:80"), ("8080", "3:80")])
    assert str(caught.value).split("\n") == [
        "command line: 'web:80': no guest 'web' in [guests]; for a TCP target write tcp:web:80",
        "command line: '8080' is already in use by the route '8080': choose another address",
    ]
