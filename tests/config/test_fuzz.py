"""Any tree of a configuration is a `Config` or a `ConfigError`, and never another exception."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vsockproxy.config.document import Document, Plain
from vsockproxy.config.file import parse_document
from vsockproxy.config.load import build_config
from vsockproxy.config.schema import FileTables, GuestTable, RouteTable
from vsockproxy.config.settings import Config
from vsockproxy.errors import ConfigError

HOSTS: Final = [
    "0.0.0.0",
    "[::]",
    "[::ffff:0.0.0.0]",
    "[::%lo]",
    "[fe80::1%eth0]",
    "0",
    "127.0.0.1",
    "127.9.9.9",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "localhost",
    "LOCALHOST",
    "db.example",
    "10.0.0.1",
    "web",
    "any",
    "3",
    "host",
    "local",
    "-1",
    "",
    "*",
]
PORTS: Final = ["80", "81", "0", "65536", "80-82", "82-80", "any", "-1", "4294967295", "", "٣"]
KINDS: Final = ["", "tcp:", "vsock:", "unix:", "unix:/", "unix:@", "vsock-mux:/", "fd:", "udp:"]
ENDINGS: Final = ["", ",to_host", ",handshake=none", "\0", " "]

ADDRESSES: Final = st.builds(
    lambda kind, host, port, ending: f"{kind}{host}:{port}{ending}",
    st.sampled_from(KINDS),
    st.sampled_from(HOSTS),
    st.sampled_from(PORTS),
    st.sampled_from(ENDINGS),
)
# Half of them fit, so that what keys mean together is reached.
LISTENS: Final = st.one_of(
    st.sampled_from(["80", "127.0.0.1:81", "0.0.0.0:82-83", "unix:/a", "vsock::80", "fd:a"]),
    ADDRESSES,
)
TARGETS: Final = st.one_of(
    st.sampled_from(["3:80", "web:80", "tcp:80", "tcp:db:80-81", "unix:/a", "vsock-mux:/a:80"]),
    ADDRESSES,
)
LISTS: Final = st.lists(
    st.one_of(ADDRESSES, st.sampled_from(["10.0.0.0/8", "cid:3", "uid:0", "web", "*:443"])),
    max_size=3,
)
VALUES: Final = st.one_of(
    ADDRESSES,
    LISTS,
    st.sampled_from(
        ["off", "auto", "5s", "1MiB", "hold", "queue", "v1", "\ud800", "/a/{port}", "/{name}"]
    ),
    st.sampled_from([True, False, 0, -1, 80, 10**400, 1.5, float("nan"), float("inf")]),
)


def tables(keys: set[str], **known: st.SearchStrategy[Plain]) -> st.SearchStrategy[Plain]:
    """Return tables with some of these keys; those of ``known`` have mostly sensible values."""
    others = st.dictionaries(st.sampled_from(sorted(keys)), VALUES, max_size=2)
    return st.builds(lambda some, more: {**some, **more}, others, st.fixed_dictionaries(known))


BYS: Final = st.sampled_from(["socks5", "http-connect", "proxy", "sni", "http-host", "mux", "ssh"])
NAMES: Final = st.sampled_from(["*", "*.vm", "db.vm:22", "a.b:1-2", "*x", "10.0.0.1", "\ud800", ""])
LEADS: Final = st.one_of(
    st.sampled_from(["web:80", "sbx-{1}:{port}", "{1}:80", "tcp:{1}:80", "3:{port}", "{1}{1}:1"]),
    TARGETS,
)
SOURCES: Final = st.one_of(st.sampled_from(["web", "sbx-1", 3, "10.0.0.0/8", "x y"]), LISTS)
RULES: Final[st.SearchStrategy[Any]] = st.lists(
    st.one_of(
        st.fixed_dictionaries({"name": NAMES, "target": LEADS}, optional={"from": SOURCES}),
        st.builds(lambda name, target: f"{name}={target}", NAMES, LEADS),
        VALUES,
    ),
    max_size=3,
)
BY_NAME: Final = tables(set(RouteTable.model_fields), listen=LISTENS, by=BYS, to=RULES)
FIXED: Final = tables(set(RouteTable.model_fields), listen=LISTENS, target=TARGETS)
ROUTES: Final = st.lists(st.one_of(FIXED, BY_NAME), max_size=3)

TREES: Final = st.fixed_dictionaries(
    {"route": ROUTES, "forward": st.dictionaries(LISTENS, TARGETS, max_size=2)},
    optional={
        "guests": st.dictionaries(
            st.sampled_from(["web", "any", "3", "b d", "sbx-*", "*"]),
            tables(set(GuestTable.model_fields)),
        ),
        **{
            name: tables(set(getattr(field.annotation, "model_fields", {"x"})))
            for name, field in FileTables.model_fields.items()
            if name not in ("route", "forward", "guests")
        },
    },
)


@settings(max_examples=500)
@given(TREES)
@example({"route": [{"listen": 80, "target": "0.0.0.0:80"}]})
@example({"route": [{"listen": 80, "target": "[::]:80"}]})
def test_every_tree_is_a_configuration_or_a_configuration_error(tree: dict[str, Plain]) -> None:
    with suppress(ConfigError):
        assert isinstance(build_config(Document("x.toml", tree)), Config)


@settings(max_examples=300)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.text("[]{}=:\"',-#&*!|>\n\t 0a.\ufeff\0", max_size=30).map(str.encode),
    ),
    st.sampled_from([".toml", ".yaml"]),
)
def test_every_file_is_a_configuration_or_a_configuration_error(data: bytes, suffix: str) -> None:
    with suppress(ConfigError):
        assert isinstance(build_config(parse_document(data, f"x{suffix}", suffix)), Config)
