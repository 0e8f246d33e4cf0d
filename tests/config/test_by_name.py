"""Routes whose clients name their targets: their keys in a file, and where a name leads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.texts import errors, toml, yaml
from vsockproxy.address.endpoint import GUEST_NAME, check_guest_name
from vsockproxy.config import credentials
from vsockproxy.config.by_name import ByName, GuestPort, ToRule, parse_leads
from vsockproxy.config.destination import parse_name
from vsockproxy.config.guest import CidFile, Command, Guest, KnownGuests, Libvirt, Mux
from vsockproxy.config.request import Request

SBX: Final = Guest("sbx-*", Mux("/run/sbx/{name}/v.sock"))
HASH: Final = f"$2y$05${'a' * 53}"
LABELS: Final = ToRule(parse_name("*.vm.example.com"), GuestPort("sbx-{1}", 443), "sbx-{1}:443")


def route(keys: str, guests: str = '"sbx-*" = { mux = "/run/{name}" }\nweb = { cid = 3 }') -> str:
    return f"[[route]]\nlisten = 80\n{keys}\n[guests]\n{guests}\n"


# ---- in a file ----


def test_a_route_by_name_is_read_from_toml_yaml_and_texts() -> None:
    by_toml = toml(
        route('by = "sni"\nto = [{ name = "*.vm", target = "sbx-{1}:443" }, "db.vm = web:5432"]')
    )
    by_yaml = yaml(
        "route:\n  - listen: 80\n    by: sni\n    to:\n"
        '      - {name: "*.vm", target: "sbx-{1}:443"}\n      - db.vm=web:5432\n'
        'guests: {"sbx-*": {mux: "/run/{name}"}, web: {cid: 3}}\n'
    )
    assert by_toml.routes == by_yaml.routes
    [one] = by_toml.routes
    assert (one.by, one.targets, one.leads_to) == ("sni", (), "by sni")
    assert isinstance(one.target, ByName)
    assert [str(rule) for rule in one.target.to] == ["*.vm = sbx-{1}:443", "db.vm = web:5432"]


def test_a_rule_is_shown_with_the_clients_that_it_is_for() -> None:
    keys = 'by = "socks5"\nto = [{ name = "db.vm:1-9", target = "web:5432", from = ["web", 7] }]'
    assert toml(route(keys).replace("80", '"vsock::80"', 1)).routes[0].to == [
        "db.vm:1-9 = web:5432 from web 7"
    ]


def test_a_guest_of_a_mux_route_is_the_rule_for_every_name() -> None:
    target = toml(route('by = "mux"\nguest = "web"')).routes[0].target
    assert isinstance(target, ByName)
    assert target.guest == "web"
    assert [str(rule) for rule in target.to] == ["* = web:{port}"]


WRONG = {
    "names that no client can ask for": (
        'by = "proxy"\ntarget_allow = ["bücher.example:443", "a.example:80"]\n'
        'target_deny = [".evil.example:*"]\n'
        'to = [{ name = "*.straße.example", target = "web:80" },'
        ' { name = "a..b", target = "web:80" }]',
        [
            "target_allow: 'bücher.example' matches no name that a client can ask for:"
            " a client asks in ASCII: write the form that begins with xn--",
            "target_deny: '.evil.example' matches no name that a client can ask for:"
            " write *.evil.example for the names below it",
            "to[1].name: 'a..b' matches no name that a client can ask for: expected letters,"
            " digits, - and _, with single dots between",
            "to[0].name: '*.straße.example' matches no name that a client can ask for:"
            " a client asks in ASCII: write the form that begins with xn--",
        ],
    ),
    "a port in a name for TLS": (
        'by = "sni"\nto = [{ name = "a.vm:443", target = "web:80" },'
        ' { name = "b.vm:*", target = "web:80" }]',
        ["to[0].name: 'a.vm:443': by = \"sni\" knows no port: write 'a.vm'"],
    ),
    "by inwards without to": (
        'by = "http-host"',
        [
            'to: is missing: by = "http-host" needs it, as in to = [{ name = "*.vm.example.com",'
            ' target = "sbx-{1}:443" }]'
        ],
    ),
    "by mux without to or guest": (
        'by = "mux"',
        [
            'to: is missing: by = "mux" needs it, as in to = [{ name = "*.vm.example.com",'
            ' target = "sbx-{1}:443" }], or guest = "web"'
        ],
    ),
    "by outwards without target_allow": (
        'by = "proxy"',
        [
            'by: "proxy" needs target_allow, the names and networks that clients may reach: add'
            ' it, as in ["deb.debian.org:80", "*.pypi.org:443"]; [] is none'
        ],
    ),
    "by with a fixed target": (
        'by = "sni"\nto = ["a = web:1"]\ntarget = "3:80"\nto_host = true',
        [
            "target: cannot be combined with by, for clients name their targets: remove target",
            "to_host: cannot be combined with by, for clients name their targets: remove to_host",
        ],
    ),
    "by with keys of a known target": (
        'by = "sni"\nto = ["a = web:1"]\nfail_fast = true\nbalance = "first"',
        [
            f"{key}: cannot be combined with by: no target is known before a client names it"
            for key in ("fail_fast", "balance")
        ],
    ),
    "to without by": (
        'target = "3:80"\nto = ["a = web:1"]',
        ['to: needs by, which says how clients name their targets, as in by = "sni"'],
    ),
    "an unknown protocol": (
        'by = "ssh"',
        [
            "by: 'ssh' is not valid: expected 'socks5', 'http-connect', 'proxy', 'sni',"
            " 'http-host' or 'mux'"
        ],
    ),
    "a label without a star": (
        'by = "sni"\nto = ["a.vm = sbx-{1}:1"]',
        [
            "to[0].target: 'sbx-{1}:1': {1} stands for the * of name, which has none:"
            ' write a name such as "*.a.vm"'
        ],
    ),
    "a label that is not part of a guest's name": (
        'by = "http-host"\nto = ["*.vm = tcp:{1}:80", "*.vm = vsock:{1}:80", "*.b = sbx-a:{1}"]',
        [
            f"to[{number}].target: '{text}': {{1}} can only be a part of a guest's name,"
            " as in sbx-{1}:443"
            for number, text in enumerate(("tcp:{1}:80", "vsock:{1}:80", "sbx-a:{1}"))
        ],
    ),
    "a guest that no pattern is for": (
        'by = "sni"\nto = ["*.vm = job-{1}:1", "b = wev:1"]',
        [
            "to[0].target: 'job-{1}:1': no guest of [guests] has such a name: add one, as in"
            " 'job-*'",
            "to[1].target: 'wev:1': no guest 'wev' in [guests]; did you mean web? for a TCP target"
            " write tcp:wev:1",
        ],
    ),
    "a port that no client names": (
        'by = "sni"\nto = ["*.vm = sbx-{1}:{port}"]',
        [
            "to[0].target: 'sbx-{1}:{port}': by = \"sni\" knows no port: write one in place of"
            " {port}"
        ],
    ),
    "names that are none": (
        'by = "sni"\nto = ["a*.vm = web:1", "10.0.0.1 = web:1", "a:x = web:1"]',
        [
            f"to[{number}].name: '{text}' is not a name: expected db.example.com, *.example.com"
            " or *, and :PORTS to match only some ports"
            for number, text in enumerate(("a*.vm", "10.0.0.1"))
        ]
        + ["to[2].name: 'a:x': 'x' is not a port: expected 443, 5000-5010 or *"],
    ),
    "rules of another shape": (
        'by = "sni"\nto = [{ name = "a" }]',
        [
            'to: item 0 is not a rule: expected { name = "*.vm.example.com",'
            ' target = "sbx-{1}:443" }'
        ],
    ),
    "a rule with an unknown key": (
        'by = "sni"\nto = [{ name = "a", target = "web:1", port = 5 }]',
        [
            "to: item 0 has the unknown key port: expected"
            ' { name = "*.vm.example.com", target = "sbx-{1}:443" }'
        ],
    ),
    "an empty to": (
        'by = "sni"\nto = []',
        [
            'to: an empty list leads nowhere: expected one, as in [{ name = "*.vm.example.com",'
            ' target = "sbx-{1}:443" }]'
        ],
    ),
    "guest in the wrong place": (
        'by = "sni"\nto = ["a = web:1"]\nguest = "web"',
        [
            'guest: needs by = "mux": remove it, or lead a name to the guest in to',
            "guest: cannot be combined with to: remove one of them",
        ],
    ),
    "credentials that no client sends": (
        'by = "sni"\nto = ["a = web:1"]\ncredentials = "/etc/users"',
        [
            'credentials: clients of by = "sni" send none: remove it, or use one of "http-connect",'
            ' "proxy", "socks5"'
        ],
    ),
    "sources that are none": (
        'by = "socks5"\nto = [{ name = "a", target = "web:1", from = "nobody" },'
        ' { name = "a", target = "web:1", from = [] }]\n'
        'target_allow = [{ pattern = "a:1", from = "none" }]',
        [
            "to[0].from: no guest 'nobody' in [guests]",
            "to[1].from: an empty list matches no client: remove from to match all",
            "target_allow: no guest 'none' in [guests]",
        ],
    ),
    "sources that clients of the listener never are": (
        'by = "socks5"\nto = [{ name = "a", target = "web:1", from = ["10.0.0.0/8", "web"] }]\n'
        'target_allow = [{ pattern = "b:1", from = "sbx-1" }]\n'
        'target_deny = [{ pattern = "b:1", from = "uid:0" }]',
        [
            f"{key}: '{item}': {source} matches no client of tcp:80, which knows IP addresses:"
            " change from"
            for key, item, source in (
                ("to", "a = web:1 from 10.0.0.0/8 web", "web"),
                ("target_allow", "b:1 from sbx-1", "sbx-1"),
                ("target_deny", "b:1 from uid:0", "uid:0"),
            )
        ],
    ),
    "sources of a fixed target": (
        'target = "tcp:a:1"\ntarget_allow = [{ pattern = "a:1", from = 3 }]',
        ["target_allow: from needs by: the target of this route is the same for all clients"],
    ),
    "target_allow without a TCP target": (
        'by = "sni"\nto = ["a = web:1"]\ntarget_allow = ["a:1"]',
        ["target_allow: needs a TCP target in to, or by with one of http-connect, proxy, socks5"],
    ),
    "its own listener": (
        'by = "sni"\nto = ["a = tcp:127.0.0.1:80"]',
        ["to: 'tcp:127.0.0.1:80' is the route's own listener: choose another target"],
    ),
}


@pytest.mark.parametrize(("keys", "lines"), WRONG.values(), ids=WRONG)
def test_keys_that_contradict_each_other_are_errors_with_a_remedy(
    keys: str, lines: list[str]
) -> None:
    assert sorted(errors(route(keys))) == sorted(f"route[0].{line}" for line in lines)


@pytest.mark.parametrize(
    ("listen", "source", "is_client"),
    [
        ("vsock::80", "3", True),
        ("vsock::80", "job", True),
        ("vsock::80", "sbx-1", False),  # its VMM connects for it
        ("vsock::80", "sock", False),
        ("vsock-mux:/run/v:80", "sbx-1", True),
        ("vsock-mux:/run/v:80", "one", True),
        ("vsock-mux:/run/v:80", "job", False),
        ("vsock-mux:/run/v:80", "uid:0", True),
        ("unix:/run/a", "sock", False),
        ("unix:/run/a", "sbx-1", False),
        ("fd:a", "job", True),
        ("fd:a", "uid:0", True),
        ("fd:a", "sbx-1", False),
    ],
)
def test_a_rule_from_a_guest_needs_a_listener_that_tells_it(
    listen: str, source: str, *, is_client: bool
) -> None:
    """Otherwise a denial would silently be for no client."""
    rule = f'{{ pattern = "b:1", from = "{source}" }}'
    keys = f'by = "socks5"\ntarget_allow = []\ntarget_deny = [{rule}]'
    guests = (
        '"sbx-*" = { mux = "/run/{name}" }\njob = { file = "/run/cid" }\n'
        'one = { mux = "/run/*/v" }\nsock = { unix = "/run/{port}" }'
    )
    text = route(keys, guests).replace("80", f'"{listen}"', 1)
    if is_client:
        assert toml(text).routes
    else:
        [line] = errors(text)
        assert line.startswith(f"route[0].target_deny: 'b:1 from {source}': {source} matches no")


def test_a_rule_from_a_client_in_the_defaults_suits_every_listener() -> None:
    keys = 'by = "socks5"\ntarget_allow = []'
    assert toml(route(keys) + '[defaults]\ntarget_deny = [{ pattern = "b:1", from = 3 }]')


def test_the_errors_of_yaml_have_lines_down_to_the_item() -> None:
    text = 'route:\n- listen: 80\n  by: sni\n  to:\n  - {name: a, target: "b:1"}\n'
    assert errors(text, ".yaml") == [
        "5:15: route[0].to[0].target: 'b:1': no guest 'b' in [guests]; for a TCP target write"
        " tcp:b:1"
    ]


def test_an_empty_target_allow_suits_a_route_by_name_and_no_other() -> None:
    assert toml(route('by = "socks5"\ntarget_allow = []')).routes[0].policy.target_allow == ()


# ---- names ----


@pytest.mark.parametrize(
    ("name", "guest"),
    [
        ("x7.vm.example.com", "sbx-x7"),
        ("2.vm.example.com", "sbx-2"),
        ("host.vm.example.com", "sbx-host"),
        ("a.b.vm.example.com", None),
        (".vm.example.com", None),
        ("vm.example.com", None),
        ("-x.vm.example.com", None),
        ("x/../y.vm.example.com", None),
        ("x\0.vm.example.com", None),
        ("{name}.vm.example.com", None),
        ("*.vm.example.com", None),
        ("x\n.vm.example.com", None),
        ("\u0661.vm.example.com", None),  # a digit of another script
        ("x" * 64 + ".vm.example.com", None),
        ("x.vm.example.com.evil.org", None),
    ],
)
def test_a_label_becomes_a_part_of_a_guests_name_or_the_rule_does_not_match(
    name: str, guest: str | None
) -> None:
    request = Request(name, 443)
    assert (LABELS.guest(request) if LABELS.matches(request) else None) == guest


@pytest.mark.parametrize("name", ["2", "host", "local", "any", "hypervisor", "-1", "", "tcp"])
def test_a_word_of_the_address_grammar_is_never_a_guest(name: str) -> None:
    every = KnownGuests([Guest("*", Mux("/run/{name}"))])
    assert every.find(name) is None


@given(st.text(max_size=80))
def test_whatever_a_pattern_matches_is_a_guests_name_without_a_way_out_of_its_folder(
    name: str,
) -> None:
    found = KnownGuests([SBX]).find(name)
    if found is not None:
        check_guest_name(name)
        assert isinstance(found.locator, Mux)
        folder = found.locator.path.removeprefix("/run/sbx/").removesuffix("/v.sock")
        assert f"sbx-{folder}" == name
        assert not set(folder) & set("/.\0*?[{")


@given(st.from_regex(GUEST_NAME, fullmatch=True))
def test_a_pattern_finds_every_guest_that_its_star_fits(name: str) -> None:
    found = KnownGuests([SBX]).find(f"sbx-{name}")
    assert (found is not None) == (len(name) <= 63)


def test_a_name_of_its_own_wins_over_a_pattern_and_the_first_pattern_wins() -> None:
    web = Guest("sbx-web", Mux("/run/web"))
    known = KnownGuests([SBX, Guest("sbx-a*", CidFile("/{name}")), web])
    assert known.find("sbx-web") == web
    assert known.find("sbx-abc") == Guest("sbx-abc", Mux("/run/sbx/abc/v.sock"))


def test_the_name_is_one_argument_of_a_command_and_part_of_every_locator() -> None:
    locators = (Command(("/cid-of", "--vm", "{name}")), Libvirt("vm-{name}"))
    found = [KnownGuests([Guest("sbx-*", locator)]).find("sbx-7") for locator in locators]
    assert [one and one.locator for one in found] == [
        Command(("/cid-of", "--vm", "7")),
        Libvirt("vm-7"),
    ]


def test_a_target_of_an_ordinary_route_can_be_a_guest_of_a_pattern() -> None:
    assert str(toml(route('target = "sbx-7:22"')).routes[0].target) == "vsock-mux:/run/7:22"


@pytest.mark.parametrize(
    ("guests", "line"),
    [
        ('"a*b*" = { mux = "/{name}" }', "not a pattern of guests' names: letters, digits, -, _"),
        ('"2*" = { mux = "/{name}" }', "not a pattern of guests' names: letters, digits, -, _"),
        ('"a*" = { cid = 3 }', "is the CID of one guest: a pattern needs another way"),
        ('"a*" = { mux = "/run/x" }', "has no {name}: add it, it stands for what * matches"),
        ('a = { file = "/{name}" }', '{name} needs a pattern as the guest\'s name, as in "a-*"'),
        ('"a*" = { command = ["/bin/{name}"] }', "a client could choose the program"),
    ],
)
def test_a_wrong_pattern_of_guests_is_an_error(guests: str, line: str) -> None:
    assert line in "\n".join(errors(f'forward.80 = "3:80"\n[guests]\n{guests}'))


def test_leads_are_never_read_again_with_a_clients_text() -> None:
    assert parse_leads("sbx-{1}:{port}") == GuestPort("sbx-{1}", None)


# ---- the file of users ----


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "{file} cannot be read: No such file or directory; create it"),
        ("", "{file} has no users: add one with htpasswd -B"),
        ("# nobody\n", "{file} has no users: add one with htpasswd -B"),
        (f"# people\nann:{HASH}\nbob\n", "{file}:3: expected NAME:HASH with a bcrypt hash"),
        (f":{HASH}\n", "{file}:1: expected NAME:HASH with a bcrypt hash: htpasswd -B writes it"),
        ("bob:secret\n", "{file}:1: the user's password is not a bcrypt hash: htpasswd -B"),
        ("bob:$apr1$x$y\n", "{file}:1: the user's password is not a bcrypt hash: htpasswd -B"),
        (f"ann:{HASH}\n\nann:{HASH}\n", "{file}:3: 'ann' has a line above: remove one"),
        (f"ann:{HASH.replace('$05$', '$31$')}", "{file}:1: the hash has the cost 31"),
    ],
)
def test_a_file_of_users_that_cannot_be_used_is_an_error_of_its_key(
    text: str | None, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "users"
    if text is not None:
        file.write_text(text)
    [found] = errors(route(f'by = "socks5"\ntarget_allow = []\ncredentials = "{file}"'))
    assert "credentials: " in found
    assert problem.format(file=file) in found


def test_a_missing_module_for_hashes_is_an_error_of_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users").write_text(f"ann:{HASH}\n")
    keys = f'by = "socks5"\ntarget_allow = []\ncredentials = "{tmp_path}/users"'
    assert toml(route(keys)).routes
    monkeypatch.setattr(credentials, "find_spec", lambda _: None)
    [found] = errors(route(keys))
    assert 'the module bcrypt is missing: pip install "vsockproxy[credentials]"' in found
