"""The tables and keys of a configuration file, and plain words for what does not fit them.

Owns: which keys there are, their types and defaults; every key that does not fit becomes
a finding, and the rest is still read.  Must not know what keys mean together: addresses,
guests and routes are put together in `config`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
)

from vsockproxy.address.endpoint import Handshake
from vsockproxy.config.access import Rule, parse_rule
from vsockproxy.config.amount import (
    parse_bandwidth,
    parse_count,
    parse_rate,
    parse_size,
)
from vsockproxy.config.destination import Pattern, parse_pattern
from vsockproxy.config.document import Finding, KeyPath, Plain
from vsockproxy.config.duration import (
    AUTO,
    OFF,
    parse_bound,
    parse_duration,
    parse_keepalive,
    parse_timeout,
    parse_user_timeout,
    shown,
)
from vsockproxy.config.guest import LIBVIRT_URI
from vsockproxy.config.settings import (
    AdminSettings,
    Balance,
    HalfClose,
    KeepAlive,
    LogFormat,
    LogLevel,
    LogSettings,
    MissingFolder,
    OverLimit,
    Policy,
    ProxyVersion,
    PumpChoice,
    PumpSettings,
)
from vsockproxy.config.users import parse_group, parse_mode, parse_owner
from vsockproxy.errors import AddressError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_POLICY: Final = Policy()
_LOG: Final = LogSettings()
_PUMP: Final = PumpSettings()
_ADMIN: Final = AdminSettings()
_INT32_MAX: Final = 0x7FFFFFFF
_RULES: Final = '["10.0.0.0/8", "uid:1000"]'
_TARGETS: Final = '["3:80", "4:80"]'
_PATTERNS: Final = '["10.0.0.0/8:443", "db.internal:5432"]'
_CID_MAX: Final = 0xFFFFFFFE  # the one above is any CID, which cannot be dialled

_Item = TypeVar("_Item")


def _read_address(value: object) -> str:
    """A bare port may be written as a number; the grammar of the rest is `address`'s."""
    if isinstance(value, int) and not isinstance(value, bool):
        return shown(value)
    if not isinstance(value, str):
        raise ValueError(f'{shown(value)} is no address: write a text, as in "tcp:127.0.0.1:8080"')
    return value


def _read_list(value: object, parse: Callable[[object], _Item], example: str) -> tuple[_Item, ...]:
    """The items of a list, or everything that is wrong with them."""
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is no list: write one, as in {example}")
    items: list[_Item] = []
    wrong: list[str] = []
    for item in value:
        try:
            items.append(parse(item))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))
    return tuple(items)


def _read_rules(value: object) -> tuple[Rule, ...]:
    return _read_list(value, lambda item: parse_rule(_rule_text(item)), _RULES)


def _rule_text(item: object) -> str:
    """A CID may be written as a number."""
    if isinstance(item, int) and not isinstance(item, bool):
        return shown(item)
    if not isinstance(item, str):
        raise AddressError(f"{shown(item)} is no rule: write a text, or a CID")
    return item


def _read_allow(value: object) -> tuple[Rule, ...] | None:
    if value == OFF:
        return None
    rules = _read_rules(value)
    if not rules:
        raise ValueError('an empty list would let nobody in: write "off" for no list')
    return rules


def _read_targets(value: object) -> tuple[str, ...]:
    targets = _read_list(value, _read_address, _TARGETS)
    if not targets:
        raise ValueError(f"an empty list leads nowhere: write addresses, as in {_TARGETS}")
    return targets


def _read_patterns(value: object) -> tuple[Pattern, ...]:
    return _read_list(value, _read_pattern, _PATTERNS)


def _read_pattern(item: object) -> Pattern:
    if not isinstance(item, str):
        raise AddressError(f"{shown(item)} is no pattern: write a text, as in {_PATTERNS}")
    return parse_pattern(item)


def _read_target_allow(value: object) -> tuple[Pattern, ...] | None:
    if value == OFF:
        return None
    patterns = _read_patterns(value)
    if not patterns:
        raise ValueError('an empty list would let nothing be dialled: write "off" for no list')
    return patterns


def _read_command(value: object) -> tuple[str, ...]:
    """A program and its arguments; no shell will look at them."""
    if not (isinstance(value, list) and value and all(isinstance(item, str) for item in value)):
        raise ValueError(
            f'{shown(value)} is no command: write a list of texts, as in ["/usr/bin/cid-of", "web"]'
        )
    if not value[0].startswith("/"):
        raise ValueError(f"{value[0]!r} is no path in full: no shell looks for the program")
    if any("\0" in item for item in value):
        raise ValueError("a NUL cannot be said to a program")
    return tuple(value)


Address = Annotated[str, BeforeValidator(_read_address)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Timeout = Annotated[float, BeforeValidator(parse_timeout)]
Bound = Annotated[float | None, BeforeValidator(parse_bound)]
Count = Annotated[int | None, BeforeValidator(parse_count)]
Size = Annotated[int | None, BeforeValidator(parse_size)]
Bandwidth = Annotated[int | None, BeforeValidator(parse_bandwidth)]
Rules = Annotated[tuple[Rule, ...], PlainValidator(_read_rules)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PolicyKeys(_Table):
    """The keys of `route.Policy`, under ``[defaults]`` and in every ``[[route]]``."""

    connect_timeout: Timeout = _POLICY.connect_timeout
    handshake_timeout: Bound = _POLICY.handshake_timeout
    wait_for_guest: Bound = _POLICY.wait_for_guest
    fail_fast: bool = _POLICY.fail_fast
    probe_interval: Bound = _POLICY.probe_interval
    ready_when_up: bool = _POLICY.ready_when_up
    balance: Balance = _POLICY.balance
    idle_timeout: Bound = _POLICY.idle_timeout
    half_close_timeout: Bound = _POLICY.half_close_timeout
    half_close: HalfClose = _POLICY.half_close
    max_lifetime: Bound = _POLICY.max_lifetime
    drain_timeout: Duration = _POLICY.drain_timeout
    backlog: Annotated[int, Field(ge=1, le=_INT32_MAX)] = _POLICY.backlog
    access_log: bool = _POLICY.access_log
    keepalive: Annotated[KeepAlive, PlainValidator(parse_keepalive)] = _POLICY.keepalive
    user_timeout: Annotated[float | None, PlainValidator(parse_user_timeout)] = _POLICY.user_timeout
    nodelay: bool = _POLICY.nodelay
    buffer_size: Size = _POLICY.buffer_size
    buffer_max: Size = _POLICY.buffer_max
    max_connections: Count = _POLICY.max_connections
    max_connections_per_source: Count = _POLICY.max_connections_per_source
    connection_rate: Annotated[float | None, BeforeValidator(parse_rate)] = _POLICY.connection_rate
    bandwidth: Bandwidth = _POLICY.bandwidth
    connection_bandwidth: Bandwidth = _POLICY.connection_bandwidth
    over_limit: OverLimit = _POLICY.over_limit
    allow: Annotated[tuple[Rule, ...] | None, PlainValidator(_read_allow)] = _POLICY.allow
    deny: Rules = _POLICY.deny
    mode: Annotated[int | None, BeforeValidator(parse_mode)] = _POLICY.mode
    owner: Annotated[int | None, BeforeValidator(parse_owner)] = _POLICY.owner
    group: Annotated[int | None, BeforeValidator(parse_group)] = _POLICY.group
    missing_folder: MissingFolder = _POLICY.missing_folder
    send_proxy: ProxyVersion = _POLICY.send_proxy
    accept_proxy: bool = _POLICY.accept_proxy
    proxy_trusted: Rules = _POLICY.proxy_trusted
    target_allow: Annotated[tuple[Pattern, ...] | None, PlainValidator(_read_target_allow)] = (
        _POLICY.target_allow
    )
    target_deny: Annotated[tuple[Pattern, ...], PlainValidator(_read_patterns)] = (
        _POLICY.target_deny
    )

    def policy(self, defaults: PolicyKeys) -> Policy:
        """The policy in which the keys written here win over those written in ``defaults``."""
        return Policy(**(defaults._written() | self._written()))

    def _written(self) -> dict[str, Any]:
        return {
            key: getattr(self, key)
            for key in PolicyKeys.model_fields.keys() & self.model_fields_set
        }


class RouteTable(PolicyKeys):
    """One ``[[route]]``."""

    name: str | None = None
    listen: Address | None = None
    target: Address | None = None
    targets: Annotated[tuple[str, ...] | None, PlainValidator(_read_targets)] = None
    to_host: bool = False
    handshake: Handshake | None = None


class GuestTable(_Table):
    """One guest of ``[guests]``; its one way is written, and what goes with that."""

    cid: Annotated[int, Field(ge=0, le=_CID_MAX)] | None = None
    mux: str | None = None
    unix: str | None = None
    libvirt: str | None = None
    uri: str = LIBVIRT_URI
    qmp: str | None = None
    machine: str | None = None
    incus: str | None = None
    file: str | None = None
    command: Annotated[tuple[str, ...] | None, PlainValidator(_read_command)] = None
    to_host: bool = False
    handshake: Handshake = "ok"


class MetricsTable(_Table):
    """``[metrics]``."""

    listen: Address | None = None
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None


class AdminTable(_Table):
    """``[admin]``."""

    socket: str = AUTO
    mode: Annotated[int | None, BeforeValidator(parse_mode)] = _ADMIN.mode
    group: Annotated[int | None, BeforeValidator(parse_group)] = _ADMIN.group


class LogTable(_Table):
    """``[log]``."""

    level: LogLevel = _LOG.level
    format: LogFormat = _LOG.format


class PumpTable(_Table):
    """``[pump]``."""

    choice: PumpChoice = _PUMP.choice
    threads: Annotated[int, Field(ge=1, le=64)] | None = _PUMP.threads


class LimitsTable(_Table):
    """``[limits]``."""

    max_connections: Count = None


class FileTables(_Table):
    """A whole file."""

    forward: dict[str, Address] = {}
    route: list[RouteTable] = []
    guests: dict[str, GuestTable] = {}
    defaults: PolicyKeys = PolicyKeys()
    limits: LimitsTable = LimitsTable()
    metrics: MetricsTable = MetricsTable()
    admin: AdminTable = AdminTable()
    log: LogTable = LogTable()
    pump: PumpTable = PumpTable()


TABLES: Final[dict[str, type[BaseModel]]] = {
    "route": RouteTable,
    "guests": GuestTable,
    "defaults": PolicyKeys,
    "limits": LimitsTable,
    "metrics": MetricsTable,
    "admin": AdminTable,
    "log": LogTable,
    "pump": PumpTable,
}
"""The model under each key of a file; ``forward`` has keys of the operator's own."""


def read_tables(tree: dict[str, Plain], findings: list[Finding]) -> FileTables:
    """What fits of a tree; each key that does not is left out, and added to ``findings``."""
    try:
        return FileTables.model_validate(tree)
    except ValidationError as error:
        fitting = copy.deepcopy(tree)
        for detail in error.errors(include_url=False):
            findings.append(Finding(detail["loc"], _sentence(detail)))
            _take_out(fitting, detail["loc"])
        return FileTables.model_validate(fitting)


def nearest(word: str, known: Iterable[str]) -> str:
    """``did you mean ...?`` for the known word that looks most like ``word``, or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""


_SENTENCES: Final = {
    "string_type": "{read} is no text: put it in quotes",
    "string_unicode": "{read} has bytes that are no UTF-8",
    "int_type": "{read} is no whole number",
    "bool_type": "{read} is neither true nor false",
    "model_type": "{read} is no table: write keys and values below it",
    "dict_type": "{read} is no table: write keys and values below it",
    "list_type": "{read} is no list: write [[route]] above each route (in YAML, a - before it)",
    "literal_error": "{read} is none of {expected}",
    "greater_than_equal": "{read} is too small: {ge} is the least",
    "less_than_equal": "{read} is too large: {le} is the most",
    "value_error": "{error}",
}
"""A sentence for each type of pydantic's errors that the models above can raise."""


def _sentence(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown_key(detail["loc"])
    if detail["type"] == "dict_type" and detail["loc"] == ("forward",):
        return f"{shown(detail['input'])} is no table: {_SHORT_FORM}"
    sentence = _SENTENCES.get(detail["type"], "{read} cannot stand here")
    return sentence.format(read=shown(detail["input"]), **detail.get("ctx", {}))


_SHORT_FORM: Final = (
    'write each route on a line of its own, as in 8080 = "3:80" (TOML) or 8080: 3:80'
    " (YAML: indented, a space after the colon, and no - in front)"
)


def _unknown_key(path: KeyPath) -> str:
    if len(path) == 1 and re.match(r"[0-9]|.*:", str(path[0])):
        return "unknown key: a route stands under forward"
    model = FileTables if len(path) == 1 else TABLES[str(path[0])]
    known = list(model.model_fields)
    return "unknown key: " + (nearest(str(path[-1]), known) or f"there are {', '.join(known)}")


def _take_out(tree: Any, path: KeyPath) -> None:
    """Remove a key; an item of a list becomes an empty table, so that the others stay."""
    *above, last = path
    for key in above:
        tree = tree[key]
    if isinstance(last, int):
        tree[last] = {}
    else:
        tree.pop(last, None)
