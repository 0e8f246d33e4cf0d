"""From texts to routes: what a file means, and what is said about one that is wrong."""

import re
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

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
from vsockproxy.config.file import parse_document
from vsockproxy.config.guest import (
    Cid,
    CidFile,
    Command,
    DynamicWay,
    Guest,
    Incus,
    Libvirt,
    Machine,
    MuxGlob,
    Qmp,
)
from vsockproxy.config.load import build_config, forward_config, load_config
from vsockproxy.config.schema import FileTables, RouteTable
from vsockproxy.config.settings import Config, Limits, LogSettings, Policy, PumpSettings, Route
from vsockproxy.errors import ConfigError

WAYS = "cid, mux, unix, libvirt, qmp, machine, incus, file, command, as in cid = 3"


def toml(text: str) -> Config:
    return build_config(parse_document(text.encode(), "x.toml", ".toml"))


def yaml(text: str) -> Config:
    return build_config(parse_document(text.encode(), "x.yaml", ".yaml"))


def errors(text: str, suffix: str = ".toml") -> list[str]:
    """What is said of a wrong file, line by line, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        build_config(parse_document(text.encode(), "x" + suffix, suffix))
    return [line.removeprefix(f"x{suffix}:").lstrip() for line in str(caught.value).split("\n")]


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
        ("vsock::80", "80", (VsockEndpoint(CID_ANY, 80), TcpEndpoint(None, 80))),
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
        ("{unix: '/run/{port}/p{port}'}", UnixEndpoint("/run/80/p80")),
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
    ("table", "way", "over"),
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
    table: str, way: DynamicWay, over: Literal["vsock", "vsock-mux"]
) -> None:
    config = yaml(f"{{forward: {{80: 'g:80'}}, guests: {{g: {table}}}}}")
    assert config.routes[0].target == GuestEndpoint("g", 80, over)
    assert config.routes[0].holds_half_close == (over == "vsock-mux")
    assert config.guests == (Guest("g", way),)
    again = toml(f'forward.80 = "g:80"\nguests.g = {{ {way} }}')
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
        'guests.web = {cid = 7}\n[forward]\n80 = "3:80"\n"vsock::80" = "80"\n"unix:/a" = "3:80"\n'
        '"fd:x" = "3:80"\n[defaults]\nallow = ["10.0.0.0/8", 3, "web"]\ndeny = ["uid:5"]'
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
        'balance = "round_robin"\n[[route]]\nlisten = 90\ntargets = ["3:80", 9090]'
    )
    assert [tuple(map(str, route.targets)) for route in config.routes] == [
        ("vsock:3:80", "vsock:4:90"),
        ("vsock:3:81", "vsock:4:91"),
        ("vsock:3:80", "tcp:9090"),
    ]
    assert [route.policy.balance for route in config.routes] == ["round_robin"] * 2 + ["first"]


def test_what_happens_while_a_guest_is_not_up_is_read() -> None:
    config = toml(
        'forward.80 = "3:80"\n[defaults]\nwait_for_guest = "30s"\n'
        'probe_interval = "1m"\nready_when_up = true\nbalance = "round_robin"\n'
        '[[route]]\nlisten = 81\ntarget = "3:81"\nwait_for_guest = "off"\nfail_fast = true'
    )
    waits, fails = (route.policy for route in config.routes)
    assert waits == Policy(
        wait_for_guest=30.0,
        probe_interval=60.0,
        ready_when_up=True,
        balance="round_robin",
    )
    assert (fails.wait_for_guest, fails.fail_fast, fails.probe_interval) == (None, True, 60.0)


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
    assert config.metrics == TcpEndpoint(None, 9490)
    assert config.log == LogSettings("debug", "json")
    assert config.pump == PumpSettings("portable", 2)


def test_a_command_line_makes_the_same_routes() -> None:
    config = forward_config(
        [("8080", "3:80"), ("81", "g:81")],
        {"guests": {"g": {"cid": 4}}, "metrics": {"listen": "unix:/m"}},
    )
    assert [str(route.target) for route in config.routes] == ["vsock:3:80", "vsock:4:81"]
    assert config.metrics == UnixEndpoint("/m")
    assert config.source == "command line"


def test_a_wrong_command_line_has_no_key_paths() -> None:
    with pytest.raises(ConfigError) as caught:
        forward_config([("8080", "web:80"), ("8080", "3:80")])
    assert str(caught.value).split("\n") == [
        "command line: 'web:80': no guest 'web' in [guests]; for a TCP target write tcp:web:80",
        "command line: '8080' is already in use by the route '8080': choose another address",
    ]


NO_ROUTE = 'has no route: write one under forward, as in 8080 = "3:80" (TOML) or 8080: 3:80 (YAML)'
RELATIVE = "is relative, and a daemon's working directory is /: write the whole path"
DURATION = 'is no duration: write seconds, or a text such as "250ms", "30s", "5m"'

WRONG_TOML = {
    "unknown keys": (
        'forwad = 1\n[forward]\n80 = "3:80"\n[metrics]\nport = 1',
        [
            "forwad: unknown key: did you mean forward?",
            "metrics.port: unknown key: known keys are listen, certificate, key, client_ca",
        ],
    ),
    "unknown key of a route": (
        '[[route]]\nlisten = 80\ntarget = "3:80"\nidle_timout = "1s"',
        ["route[0].idle_timout: unknown key: did you mean idle_timeout?"],
    ),
    "wrong types": (
        "guests = 3\nroute = {}\n[forward]\n80 = true\n81 = 1.5\n[log]\n"
        'level = "loud"\n[defaults]\naccess_log = "yes"',
        [
            "guests: 3 is not a table: expected keys with values below it",
            "route: a table is not a list: write [[route]] above each route (in YAML, a - before"
            " it)",
            'forward."80": true is not an address: expected a text such as "tcp:127.0.0.1:8080"',
            'forward."81": 1.5 is not an address: expected a text such as "tcp:127.0.0.1:8080"',
            "log.level: 'loud' is not valid: expected 'debug', 'info', 'warning' or 'error'",
            "defaults.access_log: 'yes' is not a boolean: expected true or false",
        ],
    ),
    "wrong numbers": (
        'forward.80 = "3:80"\n[defaults]\nbacklog = 0\n[pump]\nthreads = "2"\n[guests]\n'
        "a.cid = -1\nb.cid = 4294967295\nc.cid = true",
        [
            "defaults.backlog: 0 is out of range: expected 1 to 2147483647",
            "pump.threads: '2' is not a whole number",
            "guests.a.cid: -1 is too small: the minimum is 0",
            "guests.b.cid: 4294967295 is too large: the maximum is 4294967294",
            "guests.c.cid: true is not a whole number",
        ],
    ),
    "wrong durations": (
        'forward.80 = "3:80"\n[defaults]\nconnect_timeout = "off"\nidle_timeout = "5"\n'
        'half_close_timeout = true\ndrain_timeout = "999d"\n',
        [
            "defaults.connect_timeout: 'off' is not allowed here: this timeout cannot be off",
            "defaults.idle_timeout: '5' is not a duration: use a number of seconds or a unit, as"
            ' in "250ms", "30s" or "5m"',
            "defaults.half_close_timeout: true is not a duration: use a number of seconds or a"
            ' unit, as in "250ms", "30s" or "5m"',
            "defaults.drain_timeout: '999d' is out of range: expected 1 ms to 366 days",
        ],
    ),
    "doubled listener": (
        'forward."tcp:127.0.0.1:80" = "3:80"\n[[route]]\nname = "b"\nlisten = 80\ntarget = "4:80"',
        ["route[0].listen: '80' is already in use by the route 'tcp:127.0.0.1:80': choose another"
         " address"],
    ),
    "every address against one": (
        'forward."127.0.0.1:80" = "3:80"\nforward."0.0.0.0:80" = "3:80"\n'
        'forward."[::]:80" = "3:80"',
        ["forward.\"0.0.0.0:80\": '0.0.0.0:80' is already in use by the route '127.0.0.1:80':"
         " choose another address"],
    ),
    "any CID against one": (
        'forward."vsock::80" = "80"\nforward."vsock:2:80" = "81"',
        ["forward.\"vsock:2:80\": 'vsock:2:80' is already in use by the route 'vsock::80': choose"
         " another address"],
    ),
    "a mux's socket as a unix one": (
        'forward."vsock-mux:/v:5" = "80"\nforward."unix:/v_5" = "81"',
        ["forward.\"unix:/v_5\": 'unix:/v_5' is already in use by the route 'vsock-mux:/v:5':"
         " choose another address"],
    ),
    "the metrics' listener": (
        'forward."localhost:9490" = "3:80"\nmetrics.listen = 9490',
        ["forward.\"localhost:9490\": 'localhost:9490' is already in use by metrics.listen:"
         " choose another address"],
    ),
    "overlapping ranges": (
        'forward.80-90 = "3:80-90"\nforward.85 = "3:85"\nforward.88-92 = "3:88-92"',
        [
            "forward.\"85\": '85' is already in use by the route '85': choose another address",
            "forward.\"88-92\": '88' is already in use by the route '88': choose another address",
        ],
    ),
    "unequal ranges": (
        'forward.80-90 = "3:80-89"\nforward.70 = "3:70-71"\nforward.9-8 = "3:80-81"',
        [
            "forward.\"80-90\": '3:80-89' has 10 ports and '80-90' has 11 ports: use ranges of"
            " equal length",
            "forward.\"70\": '3:70-71' has 2 ports and '70' has 1 port: use ranges of equal length",
            "forward.\"9-8\": the port range of '9-8' is reversed: write the lower port first",
        ],
    ),
    "relative paths": (
        'metrics.listen = "unix:m"\nguests.g.mux = "v.sock"\n'
        '[forward]\n80 = "unix:run/a"\n"vsock-mux:v:81" = "3:81"\n82 = "g:82"\n',
        [
            f"metrics.listen: 'm' {RELATIVE}",
            f"guests.g.mux: 'v.sock' {RELATIVE}",
            f"forward.\"80\": 'run/a' {RELATIVE}",
            f"forward.\"vsock-mux:v:81\": 'v' {RELATIVE}",
        ],
    ),
    "doubled names": (
        '[[route]]\nname = "a"\nlisten = 80\ntarget = "3:80"\n'
        '[[route]]\nname = "a"\nlisten = 81\ntarget = "3:81"\n'
        '[[route]]\nname = " "\nlisten = 82\ntarget = "3:82"',
        [
            "route[1].name: 'a' is the name of another route: choose another name",
            "route[2].name: ' ' is not a name: expected 1 to 128 printable characters",
        ],
    ),
    "unknown guests": (
        'guests.web = {cid = 3}\n[forward]\n80 = "wep:80"\n81 = "localhost:81"',
        [
            "forward.\"80\": 'wep:80': no guest 'wep' in [guests]; did you mean web? for a TCP"
            " target write tcp:wep:80",
            "forward.\"81\": 'localhost:81': no guest 'localhost' in [guests]; for a TCP target"
            " write tcp:localhost:81",
        ],
    ),
    "guests that cannot be reached": (
        'forward.80 = "a:80"\n[guests]\na = {cid = 3, mux = "/v"}\nb = {}\nc.unix = "/v"\n'
        'd = {mux = "/v", to_host = true}\nany.cid = 3\ne = {cid = 3, handshake = "none"}\n',
        [
            f"guests.a: has cid and mux: write one of {WAYS}",
            "guests.b: has no address: write one of cid, mux, unix, libvirt, qmp, machine, incus,"
            " file, command, as in cid = 3",
            "guests.c.unix: '/v' has no {port}: add it, each port has its own socket",
            "guests.d.to_host: needs a guest with a CID: this one has a socket",
            "guests.any: 'any' is a word of the address grammar: give the guest another name",
            "guests.e.handshake: needs mux",
        ],
    ),
    "guests that say nothing": (
        'forward.80 = "a:80"\n[guests]\na.file = ""\nb.command = "cid"\nc.command = ["cid"]\n'
        'd.command = ["/c", 3]\ne = {file = "/f", handshake = "none"}\nf.command = ["/c\\u0000"]\n'
        'g.mux = " "\nh = {cid = 3, uri = "qemu:///session"}\ni.qmp = "web.qmp"',
        [
            "guests.a.file: '' is empty or contains a NUL character",
            "guests.b.command: 'cid' is not a command: expected a list of texts, as in"
            ' ["/usr/bin/cid-of", "web"]',
            "guests.c.command: 'cid' is not an absolute path: no shell searches the PATH",
            "guests.d.command: a list is not a command: expected a list of texts, as in"
            ' ["/usr/bin/cid-of", "web"]',
            "guests.e.handshake: needs mux",
            "guests.f.command: a command cannot contain a NUL character",
            "guests.g.mux: ' ' is empty or contains a NUL character",
            "guests.h.uri: needs libvirt",
            "guests.i.qmp: 'web.qmp' is relative, and a daemon's working directory is /:"
            " write the whole path",
        ],
    ),
    "routes to guests that are found at each dial": (
        'guests.web.file = "/f"\nguests.vm.mux = "/run/*/v.sock"\n'
        '[[route]]\nlisten = 80\ntarget = "web:80"\nto_host = true\nhandshake_timeout = "1s"\n'
        '[[route]]\nlisten = 81\ntarget = "vm:80"\nhandshake = "none"\nbuffer_size = 4096\n'
        '[[route]]\nlisten = "vsock::82"\ntarget = "vm:80"\nallow = ["web"]',
        [
            "route[0].to_host: cannot be set for a guest looked up at each dial: set it in"
            " guests.web",
            "route[0].handshake_timeout: needs a vsock-mux target: web:80 is not one",
            "route[1].handshake: cannot be set for a guest looked up at each dial: set it in"
            " guests.vm",
            "route[1].buffer_size: needs vsock: neither the listener nor the target is vsock",
            "route[2].allow: the CID of the guest 'web' is looked up at each dial, but a rule"
            " needs a fixed one: give the VM a fixed CID, and write its number here",
        ],
    ),
    "targets that are any": (
        'forward.80 = "vsock::80"\nforward.81 = "3:-1"\nforward.82 = "tcp:x:0"\n'
        'forward.83 = "tcp:x:65536"\nforward.84 = "fd:x"',
        [
            "forward.\"80\": 'vsock::80' cannot be a target: name one CID, not any",
            "forward.\"81\": '3:-1' cannot be a target: name one port, not any",
            "forward.\"82\": 'tcp:x:0' cannot be a target: TCP ports start at 1",
            'forward."83": 65536 is not a TCP port: 0 to 65535',
            "forward.\"84\": 'fd:x' cannot be a target: an inherited socket only listens",
        ],
    ),
    "listeners that are any": (
        'forward.0 = "3:80"\nforward."vsock::any" = "80"\nforward.65536 = "3:80"\n'
        "metrics.listen = 0",
        [
            "forward.\"0\": '0' would listen on any free port: write a fixed port",
            "forward.\"vsock::any\": 'vsock::any' would listen on any free port: write a fixed"
            " port",
            'forward."65536": 65536 is not a TCP port: 0 to 65535',
            "metrics.listen: '0' would listen on any free port: write a fixed port",
        ],
    ),
    "metrics over vsock": (
        'forward.80 = "3:80"\nmetrics.listen = "vsock::9490"',
        ["metrics.listen: 'vsock::9490' cannot serve metrics: expected tcp:, unix: or fd:"],
    ),
    "loops": (
        'forward.80 = "tcp:80"\nforward."0.0.0.0:81" = "127.0.0.2:81"\n'
        'forward."unix:/a" = "unix:/a"\nforward."vsock::5" = "local:5"',
        [
            "forward.\"80\": 'tcp:80' is the route's own listener: choose another target",
            "forward.\"0.0.0.0:81\": '127.0.0.2:81' is the route's own listener: choose another"
            " target",
            "forward.\"unix:/a\": 'unix:/a' is the route's own listener: choose another target",
            "forward.\"vsock::5\": 'local:5' is the route's own listener: choose another target",
        ],
    ),
    "to_host without vsock": (
        '[[route]]\nlisten = 80\ntarget = "tcp:x:80"\nto_host = true',
        ["route[0].to_host: needs a vsock target: 'tcp:x:80' is not one"],
    ),
    "handshakes without a VMM": (
        '[[route]]\nlisten = 80\ntarget = "tcp:x:80"\nhandshake = "ok"\n'
        '[[route]]\nlisten = 81\ntarget = "3:80"\nhandshake_timeout = 1\n'
        '[[route]]\nlisten = "vsock-mux:/v:80,handshake=none"\ntarget = 80\n',
        [
            "route[0].handshake: needs a vsock-mux target: 'tcp:x:80' is not one",
            "route[1].handshake_timeout: needs a vsock-mux target: vsock:3:80 is not one",
            "route[2].listen: 'vsock-mux:/v:80,handshake=none' cannot listen:"
            " a guest's connection has no handshake anyway",
        ],
    ),
    "wrong limits": (
        'forward.80 = "3:80"\nlimits.max_connections = 0\n[defaults]\nmax_connections = "many"\n'
        'connection_rate = -1\nbuffer_size = "1KB"\nover_limit = "drop"',
        [
            "limits.max_connections: 0 is out of range: expected 1 to 2147483647",
            "defaults.max_connections: 'many' is not a number: expected a whole number or \"off\"",
            "defaults.connection_rate: -1 is out of range: expected 0.001 to 2147483647 per"
            " second",
            "defaults.buffer_size: '1KB' is not a size: expected a number of bytes or a text such"
            ' as "256KiB"',
            "defaults.over_limit: 'drop' is not valid: expected 'queue' or 'reject'",
        ],
    ),
    "wrong rules": (
        'forward.80 = "3:80"\n[defaults]\nallow = []\ndeny = ["10.0.0.1/8", true, "3", "a b"]\n'
        'proxy_trusted = "10.0.0.0/8"\nmode = 660\nowner = "no-such-user"',
        [
            'defaults.allow: an empty list would deny every client: write "off" to allow all',
            "defaults.deny: '10.0.0.1/8' has host bits set: write the network as 10.0.0.0/8; true"
            " is not a rule: expected a text or a CID; 'a b' is not a valid rule: expected an IP"
            " network, a CID, a guest, uid:NAME or gid:NAME",
            "defaults.proxy_trusted: '10.0.0.0/8' is not a list: expected one, as in"
            ' ["10.0.0.0/8", "uid:1000"]',
            'defaults.mode: 660 is not a file mode: expected a text in quotes, as in "0660"',
            "defaults.owner: 'no-such-user' is not a user of this machine",
        ],
    ),
    "rules of another kind": (
        'guests.fc.mux = "/v"\nguests.web.cid = 3\n'
        '[[route]]\nlisten = 80\ntarget = "3:80"\nallow = ["10.0.0.0/8", 3, "uid:0"]\n'
        '[[route]]\nlisten = "vsock::80"\ntarget = "tcp:x:80"\ndeny = ["fc"]\n'
        '[[route]]\nlisten = "vsock::81"\ntarget = "tcp:x:80"\ndeny = ["wep"]\nmode = "0600"',
        [
            "route[0].allow: has CIDs and users and groups, which tcp:80 does not know",
            "route[1].deny: the guest 'fc' has no CID: its VMM connects for it; use a uid: or"
            " gid: rule",
            "route[2].deny: no guest 'wep' in [guests]; did you mean web?",
            "route[2].mode: needs a Unix listener with a file: vsock:any:81 has none",
        ],
    ),
    "keys that mean nothing there": (
        '[[route]]\nlisten = "unix:/a"\ntarget = "unix:/b"\nkeepalive = "1m"\nbuffer_size = 4096\n'
        '[[route]]\nlisten = "fd:x"\ntarget = "3:80"\nowner = 0\n'
        '[[route]]\nlisten = 80\ntarget = "3:80"\naccept_proxy = true\n'
        "buffer_size = 10\nbuffer_max = 5",
        [
            "route[0].keepalive: needs TCP: neither the listener nor the target is TCP",
            "route[0].buffer_size: needs vsock: neither the listener nor the target is vsock",
            "route[1].owner: is set in the systemd socket unit: use SocketMode= or SocketUser=",
            'route[2].accept_proxy: needs proxy_trusted, as in ["10.0.0.0/8"]',
            "route[2].buffer_max: buffer_size exceeds buffer_max",
        ],
    ),
    "targets that cannot be": (
        "[[route]]\nlisten = 80\ntargets = []\n[[route]]\nlisten = 81\ntargets = [3, true, {}]\n"
        '[[route]]\nlisten = 82\ntarget = "3:80"\ntargets = ["3:80"]\n'
        '[[route]]\nlisten = 83\ntargets = ["3:80", "4:80-81"]\n'
        '[[route]]\nlisten = 84\ntargets = ["3:80", "vsock:3:80"]\n'
        '[[route]]\nlisten = 85\ntargets = ["3:80", "tcp:85"]',
        [
            'route[0].targets: an empty list has no target: expected one, as in ["3:80", "4:80"]',
            "route[1].targets: true is not an address: expected a text such as"
            ' "tcp:127.0.0.1:8080"; a table is not an address: expected a text such as'
            ' "tcp:127.0.0.1:8080"',
            "route[2].targets: cannot be combined with target: remove one of them",
            "route[3].targets: '4:80-81' has 2 ports and '83' has 1 port: use ranges of equal"
            " length",
            "route[4].targets: 'vsock:3:80' is listed twice: remove one",
            "route[5].targets: 'tcp:85' is the route's own listener: choose another target",
        ],
    ),
    "waiting that cannot be meant": (
        '[defaults]\nwait_for_guest = "1m"\n'
        '[[route]]\nlisten = 80\ntarget = "3:80"\nfail_fast = true\n'
        '[[route]]\nlisten = 81\ntarget = "3:80"\nbalance = "first"\n'
        '[[route]]\nlisten = 82\ntarget = "3:80"\nwait_for_guest = "off"',
        [
            "route[0].fail_fast: wait_for_guest and fail_fast contradict each other: set one to"
            ' "off" or false',
            "route[1].balance: needs several targets",
        ],
    ),
    "defaults that are wrong for every route": (
        'forward.80 = "3:80"\nforward.81 = "3:81"\n'
        'defaults.allow = ["wep"]\ndefaults.accept_proxy = true',
        [
            "defaults.allow: no guest 'wep' in [guests]",
            'defaults.accept_proxy: needs proxy_trusted, as in ["10.0.0.0/8"]',
        ],
    ),
    "half a route": (
        '[[route]]\nname = "a"\n[[route]]\nlisten = 80\ntarget = {}',
        [
            "route[0].listen: is missing: a route needs listen and target",
            "route[0].target: is missing: a route needs listen and target",
            "route[1].target: a table is not an address: expected a text such as"
            ' "tcp:127.0.0.1:8080"',
        ],
    ),
    "no route": ("[forward]\n[log]\nlevel = 3", [
        NO_ROUTE, "log.level: 3 is not valid: expected 'debug', 'info', 'warning' or 'error'",
    ]),
    "nothing": ("# nothing\n", [NO_ROUTE]),
    "a guest that is wrong already": (
        'forward.80 = "a:80"\nguests.a.cid = "3"',
        ["guests.a.cid: '3' is not a whole number"],
    ),
    "both sides": (
        '[forward]\nx = "y"',
        [
            "forward.x: 'x' has no port: write HOST:PORT",
            "forward.x: 'y' is not a target: expected CID:PORT, GUEST:PORT or tcp:HOST:PORT",
        ],
    ),
}  # fmt: skip

FORM = (
    'write each route on a line of its own, as in 8080 = "3:80" (TOML) or 8080: 3:80'
    " (YAML: indented, a space after the colon, and no - in front)"
)

WRONG_YAML = {
    "a list of routes": (
        "forward:\n  - 8080: 3:80\n  - 8081: 3:81\n",
        [
            "1:1: forward: a list is not a table: write each route on its own line, as in 8080 ="
            ' "3:80" (TOML) or 8080: 3:80 (YAML: indented, a space after the colon, and no - in'
            " front)"
        ],
    ),
    "no space after the colon": (
        "forward:\n  8080:3:80\n",
        [
            "1:1: forward: '8080:3:80' is not a table: write each route on its own line, as in 8080"
            ' = "3:80" (TOML) or 8080: 3:80 (YAML: indented, a space after the colon, and no - in'
            " front)"
        ],
    ),
    "a route outside forward": (
        "8080: 3:80",
        [NO_ROUTE, '1:1: "8080": unknown key: write routes under forward'],
    ),
    "places": (
        "forward:\n  8080: 3:80\n  8080: 3:81\n  on: yes\n  9090:\nroute:\n  - listen: 81\n"
        "    target: 3:80\n    backlog: 1.5\n  - 5\n  - lisen: 82\n    target: 3:80\n",
        [
            '3:3: forward."8080": is defined twice: first on line 2',
            "4:3: forward.on: 'on' has no port: write HOST:PORT",
            "4:3: forward.on: 'yes' is not a target: expected CID:PORT, GUEST:PORT or"
            " tcp:HOST:PORT",
            '5:3: forward."9090": has no value: add one or remove the key',
            "9:5: route[0].backlog: 1.5 is not a whole number",
            "10:5: route[1]: 5 is not a table: expected keys with values below it",
            "11:5: route[2].listen: is missing: a route needs listen and target",
            "11:5: route[2].lisen: unknown key: did you mean listen?",
        ],
    ),
    "nothing but a list": (
        "- 8080: 3:80",
        ["1:1: is not a table: write `forward:`, and below it, indented, `8080: 3:80`"],
    ),
    "an alias": (
        "forward: &f {80: 3:80}\nroute: *f",
        [
            "1:1: forward: anchors (&) and aliases (*) are not supported: write the value out",
            "2:1: route: anchors (&) and aliases (*) are not supported: write the value out",
        ],
    ),
    "a guest without a value": (
        "guests:\n  web:\nforward: {80: web:80}",
        ["2:3: guests.web: has no value: add one or remove the key"],
    ),
    "a value that is missing": (
        "route:\n- listen: 80\n  target:\n",
        ["3:3: route[0].target: has no value: add one or remove the key"],
    ),
}


@pytest.mark.parametrize(("text", "lines"), WRONG_TOML.values(), ids=WRONG_TOML)
def test_every_problem_of_a_toml_file_is_reported(text: str, lines: list[str]) -> None:
    assert errors(text) == lines


@pytest.mark.parametrize(("text", "lines"), WRONG_YAML.values(), ids=WRONG_YAML)
def test_every_problem_of_a_yaml_file_has_its_place(text: str, lines: list[str]) -> None:
    assert errors(text, ".yaml") == lines


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("forward: {80: x}")
    with pytest.raises(ConfigError, match=rf'^{re.escape(str(path))}:1:11: forward."80": '):
        load_config(path)


VALUES = st.recursive(
    st.one_of(
        st.sampled_from(["8080", "3:80", "web:80", "off", "1-3", "tcp:x:80", "unix:/a", "\ud800"]),
        st.sampled_from([True, 0, -1, 80, 10**400, 1.5, float("nan"), float("inf")]),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(sorted({*RouteTable.model_fields, "cid", "mux", "unix", "web", "80"})),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(sorted(FileTables.model_fields)), VALUES))
@example({"defaults": {"half_close": "\ud800"}})
def test_every_tree_is_read_or_an_error_without_pydantics_words(tree: dict[str, object]) -> None:
    try:
        forward_config([("1", "3:1")], tree)  # type: ignore[arg-type]  # wrong on purpose
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - raising is allowed, not demanded
        assert not re.search(r"pydantic|[Ii]nput|is not valid here$", str(error))  # noqa: PT017


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_a_number_too_large_to_print_is_an_error(suffix: str) -> None:
    huge = "0x" + "f" * 5000
    text = {".toml": f"forward.80 = {huge}\n[defaults]\nbacklog = {huge}\nidle_timeout = {huge}"}
    text[".yaml"] = f"forward: {{80: {huge}}}\ndefaults: {{backlog: {huge}, idle_timeout: {huge}}}"
    lines = errors(text[suffix], suffix)
    assert len(lines) == 3
    assert all("a huge number" in line for line in lines)


def test_a_thousand_errors_are_reported_at_once() -> None:
    lines = errors("[forward]\n" + "\n".join(f'{port} = "x"' for port in range(1, 1001)))
    assert len(lines) == 1000
