"""Every problem of a configuration is reported, with its key and its place."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.config.texts import errors
from vsockproxy.config.load import forward_config, load_config
from vsockproxy.config.schema import FileTables, RouteTable
from vsockproxy.errors import ConfigError

WAYS = "cid, mux, unix, libvirt, qmp, machine, incus, file, command, as in cid = 3"


NO_ROUTE = 'has no route: write one under forward, as in 8080 = "3:80" (TOML) or 8080: 3:80 (YAML)'
RELATIVE = "is relative, and a daemon's working directory is /: write the whole path"

WRONG_TOML = {
    "unknown keys": (
        'forwad = 1\n[forward]\n80 = "3:80"\n[metrics]\nport = 1',
        [
            "forwad: unknown key: did you mean forward?",
            "metrics.port: unknown key: known keys are listen, certificate, key, client_ca",
        ],
    ),
    "keys of TLS without a certificate": (
        '[forward]\n80 = "3:80"\n[metrics]\nkey = "/k"\nclient_ca = "/c"',
        [
            "metrics.key: needs certificate: add it, or remove this key",
            "metrics.client_ca: needs certificate: add it, or remove this key",
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
