"""Every problem of a configuration is reported, with its key and its place.

The subjects with many problems have files: test_problems_of_*.
"""

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.config.texts import errors
from vsockproxy.config.load import forward_config, load_config
from vsockproxy.config.schema import FileTables, RouteTable
from vsockproxy.errors import ConfigError

NO_ROUTE = 'has no route: write one under forward, as in 8080 = "3:80" (TOML) or 8080: 3:80 (YAML)'

WRONG_TOML = {
    "unknown keys": (
        'forwad = 1\n[forward]\n80 = "3:80"\n[metrics]\nport = 1',
        [
            "forwad: unknown key: did you mean forward?",
            "metrics.port: unknown key: known keys are listen, certificate, key, client_ca, page",
        ],
    ),
    "routes under another word than forward": (
        '[routes]\n80 = "3:80"',
        [NO_ROUTE, "routes: unknown key: did you mean forward?"],
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
    "two routes with one name": (
        '[[route]]\nname = "a"\nlisten = 80\ntarget = "3:80"\n'
        '[[route]]\nname = "a"\nlisten = 81\ntarget = "3:81"\n'
        '[[route]]\nname = " "\nlisten = 82\ntarget = "3:82"',
        [
            "route[1].name: 'a' is the name of another route: choose another name",
            "route[2].name: ' ' is not a name: expected 1 to 128 printable characters",
        ],
    ),
    "a route without listen or target": (
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
    "a file without a key": ("# nothing\n", [NO_ROUTE]),
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
    "the line and column of each problem": (
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
    "a list at the top": (
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
def test_every_problem_of_a_yaml_file_has_its_line_and_column(text: str, lines: list[str]) -> None:
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
