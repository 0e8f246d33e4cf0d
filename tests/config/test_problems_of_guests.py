"""Wrong tables of guests, and wrong uses of a guest: every problem of the file is reported."""

import pytest

from tests.config.texts import errors

WAYS = "cid, mux, unix, libvirt, qmp, machine, incus, file, command, as in cid = 3"

WRONG = {
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
    "malformed ways to a guest": (
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
    "abstract sockets where a file is needed": (
        'forward.80 = "a:80"\n[guests]\na.qmp = "@q"\nb.unix = "@u{port}"\nc.file = "@f"\n'
        'd.mux = "@m*"\n"e-*".mux = "@{name}"',
        [
            f"guests.{place}: {path!r} is an abstract socket, and a file is needed: write its path"
            for place, path in (("c.file", "@f"), ("d.mux", "@m*"), ('"e-*".mux', "@{name}"))
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
    "a target whose guest has an error": (
        'forward.80 = "a:80"\nguests.a.cid = "3"',
        ["guests.a.cid: '3' is not a whole number"],
    ),
    "several problems of routes and guests": (
        'guests.bad = {}\nforward.79 = "3:79"\n'
        '[[route]]\nname = " "\nlisten = 80\ntarget = "x"\n'
        '[[route]]\nname = "b"\nlisten = "80"\ntarget = "bad:80"\n'
        '[[route]]\nname = "b"\nlisten = 79\ntarget = "3:9-8"',
        [
            f"guests.bad: has no address: write one of {WAYS}",
            "route[0].name: ' ' is not a name: expected 1 to 128 printable characters",
            "route[0].target: 'x' is not a target: expected CID:PORT, GUEST:PORT or tcp:HOST:PORT",
            "route[1].listen: '80' is already in use by the route ' ': choose another address",
            "route[2].target: the port range of '3:9-8' is reversed: write the lower port first",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "lines"), WRONG.values(), ids=WRONG)
def test_every_problem_of_guests_is_reported(text: str, lines: list[str]) -> None:
    assert errors(text) == lines
