"""Wrong limits, rules and other policies: every problem of the file is reported."""

import pytest

from tests.config.texts import errors

WRONG = {
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
    "to_host without vsock": (
        '[[route]]\nlisten = 80\ntarget = "tcp:x:80"\nto_host = true',
        ["route[0].to_host: needs a vsock target: 'tcp:x:80' is not one"],
    ),
    "handshakes without a VMM": (
        '[[route]]\nlisten = 80\ntarget = "tcp:x:80"\nhandshake = "ok"\n'
        '[[route]]\nlisten = 81\ntarget = "3:80"\nhandshake_timeout = 1\n'
        '[[route]]\nlisten = "vsock-mux:/v:80,handshake=none"\ntarget = "tcp:80"\n',
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
    "keys without an effect on the route": (
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
    "keys of held clients that contradict each other": (
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
}  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), WRONG.values(), ids=WRONG)
def test_every_problem_of_policies_is_reported(text: str, lines: list[str]) -> None:
    assert errors(text) == lines
