"""The tables and keys of a configuration, as models that read the values of each key.

Owns: the declaration of the keys that are not in `settings`.  `tables` reads a tree by these
models.  Must not know what keys mean together: that is for `load`, `policy` and `serving`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Final, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, create_model

from vsockproxy.address.endpoint import Handshake
from vsockproxy.config.by_name import ToItem, parse_to
from vsockproxy.config.guest import LIBVIRT_URI
from vsockproxy.config.key import Key, declared_keys
from vsockproxy.config.kinds import GROUP, MODE, PERMISSIONS
from vsockproxy.config.permission import Grant
from vsockproxy.config.process import AdminSettings, Limits, LogSettings, PageChoice, ReloadSettings
from vsockproxy.config.request import By
from vsockproxy.config.settings import Policy, PumpSettings
from vsockproxy.config.value import AUTO, parse_command, parse_include, parse_list, shown

_ADMIN: Final = AdminSettings()
_TARGETS_EXAMPLE: Final = '["3:80", "4:80"]'
_LISTEN_EXAMPLE: Final = '["0.0.0.0:9490", "[::]:9490"]'
_CID_MAX: Final = 0xFFFFFFFE  # the next number is VMADDR_CID_ANY, which cannot be dialled

_Model = TypeVar("_Model", bound=BaseModel)


def _parse_address(value: object) -> str:
    """Return the text of an address; a bare port may be written as a number.

    Raises:
      ValueError: the value is neither.  `address.grammar` checks the text.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return shown(value)
    if not isinstance(value, str):
        several = "; several are targets of a [[route]]" if isinstance(value, list) else ""
        raise ValueError(
            f"{shown(value)} is not an address: expected a text such as"
            f' "tcp:127.0.0.1:8080"{several}'
        )
    return value


def _parse_targets(value: object) -> tuple[str, ...]:
    targets = parse_list(value, _parse_address, _TARGETS_EXAMPLE)
    if not targets:
        raise ValueError(f"an empty list has no target: expected one, as in {_TARGETS_EXAMPLE}")
    return targets


def _parse_addresses(value: object) -> tuple[str, ...]:
    """Return one address, or those of a list."""
    if not isinstance(value, list):
        return (_parse_address(value),)
    addresses = parse_list(value, _parse_address, _LISTEN_EXAMPLE)
    if not addresses:
        raise ValueError(f"an empty list has no address: expected one, as in {_LISTEN_EXAMPLE}")
    return addresses


Address = Annotated[str, BeforeValidator(_parse_address)]


def _with_keys_of(settings: type) -> Callable[[type[_Model]], type[_Model]]:
    """Return a class decorator that adds a field for each `key` of a dataclass."""
    hints = get_type_hints(settings)
    keys = declared_keys(settings)
    defaults = {one.name: one.default for one in fields(settings)}
    definitions: Any = {
        name: (_annotation(hints[name], key), defaults[name]) for name, key in keys.items()
    }

    def extend(table: type[_Model]) -> type[_Model]:
        return create_model(
            table.__name__,
            __base__=table,
            __module__=table.__module__,
            __doc__=table.__doc__,
            **definitions,
        )

    return extend


def _annotation(hint: Any, key: Key) -> Any:
    if key.kind is None:
        return Annotated[hint, key]
    return Annotated[hint, key, PlainValidator(key.kind.parse)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def written(self, model: type[BaseModel]) -> dict[str, Any]:
        """Return the values of those keys of ``model`` that the operator wrote."""
        return {
            key: getattr(self, key) for key in model.model_fields.keys() & self.model_fields_set
        }


@_with_keys_of(Policy)
class PolicyKeys(_Table):
    """The keys of ``[defaults]``, which every ``[[route]]`` can have too."""

    def policy(self, defaults: PolicyKeys) -> Policy:
        """Return a policy: the keys written here win over those written in ``defaults``."""
        return Policy(**(defaults.written(PolicyKeys) | self.written(PolicyKeys)))


class RouteTable(PolicyKeys):
    """One ``[[route]]``."""

    name: Annotated[
        str | None,
        Key(
            "The route's name in metrics and log lines: unique, printable, at most 128 characters."
            " A port range appends the port, as in `db-5432`",
            words="text",
            default="the text of `listen`",
        ),
    ] = None
    listen: Annotated[
        Address | None,
        Key("The address that clients connect to", words="address", default="required"),
    ] = None
    target: Annotated[
        Address | None,
        Key(
            "The address that connections are relayed to",
            words="address",
            default="required without `by`",
        ),
    ] = None
    targets: Annotated[
        tuple[str, ...] | None,
        Key(
            "Several targets in place of `target`, each with as many ports as `listen`; `balance`"
            " [chooses one](#guests-that-are-not-up)",
            words="list of addresses",
        ),
        PlainValidator(_parse_targets),
    ] = None
    to_host: Annotated[
        bool,
        Key(
            "For a vsock target: sends the connection through the hypervisor although the CID looks"
            " like one of this machine's guests"
        ),
    ] = False
    handshake: Annotated[
        Handshake | None,
        Key(
            "For a `vsock-mux` target: whether the VMM answers CONNECT with OK, or with nothing",
            default="the target's own",
        ),
    ] = None
    by: Annotated[
        By | None,
        Key(
            "In place of `target`: each client [names its target](#targets-that-clients-name) in"
            " its first bytes, in this protocol"
        ),
    ] = None
    to: Annotated[
        tuple[ToItem, ...] | None,
        Key(
            "With `by`: where names lead. The first item whose `name` matches decides; a name that"
            " none matches is denied",
            words="list of tables",
        ),
        PlainValidator(parse_to),
    ] = None
    guest: Annotated[
        str | None,
        Key(
            'With `by = "mux"`, in place of `to`: the guest whose ports clients name, as they would'
            " at the socket of its VMM",
            words="guest",
        ),
    ] = None
    credentials: Annotated[
        str | None,
        Key(
            "With `by`: only these users may ask. A file of `NAME:HASH` lines with bcrypt hashes,"
            " as `htpasswd -B` writes it; needs the extra `vsockproxy[credentials]`",
            words="path",
        ),
    ] = None


class GuestTable(_Table):
    """One guest of ``[guests]``: one way to reach it, and the options of that way."""

    cid: Annotated[
        Annotated[int, Field(ge=0, le=_CID_MAX)] | None,
        Key("The guest's vsock context ID, 0 to 4294967294", words="whole number"),
    ] = None
    mux: Annotated[
        str | None,
        Key(
            "The VMM's Unix socket that carries vsock and expects a CONNECT line. With `*`, `?` or"
            " `[` in it, the one socket that matches",
            words="path",
        ),
    ] = None
    unix: Annotated[
        str | None,
        Key(
            "One Unix socket per port (vfkit, krunkit, libkrun); `{port}` stands for the port",
            words="path with `{port}`",
        ),
    ] = None
    libvirt: Annotated[
        str | None,
        Key("The CID of this libvirt domain; needs the extra `vsockproxy[libvirt]`", words="text"),
    ] = None
    uri: Annotated[str, Key("With `libvirt`: the connection URI", words="text")] = LIBVIRT_URI
    qmp: Annotated[
        str | None, Key("The CID of the VM behind this QEMU monitor (QMP socket)", words="path")
    ] = None
    machine: Annotated[
        str | None,
        Key("The CID registered with systemd-machined (systemd 257) for this name", words="text"),
    ] = None
    incus: Annotated[
        str | None,
        Key(
            "The CID of this Incus or LXD virtual machine; `PROJECT/NAME` for one in a project",
            words="text",
        ),
    ] = None
    file: Annotated[
        str | None,
        Key("The CID in this file, in decimal digits; read at each dial", words="path"),
    ] = None
    command: Annotated[
        tuple[str, ...] | None,
        Key(
            "The CID that this program prints; run at each dial, without a shell",
            words="list of texts",
        ),
        PlainValidator(parse_command),
    ] = None
    to_host: Annotated[
        bool,
        Key(
            "With a CID: sends connections through the hypervisor although the CID looks like one"
            " of this machine's guests"
        ),
    ] = False
    handshake: Annotated[
        Handshake,
        Key(
            "With `mux`: whether the VMM answers CONNECT with OK, or with nothing and starts the"
            " stream at once. With `none`, a port without a listener is a connection that ends"
            " without a byte"
        ),
    ] = "ok"


class MetricsTable(_Table):
    """``[metrics]``."""

    listen: Annotated[
        tuple[str, ...],
        Key(
            "Serves Prometheus metrics at `/metrics` on this address, or on each of a list, as in"
            ' `["0.0.0.0:9490", "[::]:9490"]`; without it, there are none',
            words="address (`tcp`, `unix`, `fd`) or list",
            default="none",
        ),
        PlainValidator(_parse_addresses),
    ] = ()
    certificate: Annotated[
        str | None,
        Key(
            "PEM file; with it the listener accepts TLS only. Read again at each reload",
            words="path",
            default="none",
        ),
    ] = None
    key: Annotated[
        str | None,
        Key(
            "PEM file of the private key, without a password",
            words="path",
            default="the file of `certificate`",
        ),
    ] = None
    client_ca: Annotated[
        str | None,
        Key(
            "PEM file; only clients with a certificate of these authorities are served",
            words="path",
            default="none",
        ),
    ] = None
    page: Annotated[
        PageChoice,
        Key(
            "The [status page](metrics.md#the-status-page) at `/`, which shows clients and targets:"
            " `auto` serves it on Unix sockets and loopback addresses, `on` on every listener"
        ),
    ] = "auto"


class AdminTable(_Table):
    """``[admin]``."""

    socket: Annotated[
        str,
        Key(
            "The [control socket](operations.md#the-control-socket). `auto` is"
            " `$RUNTIME_DIRECTORY/admin.sock` under systemd, and elsewhere `admin-NAME.sock` in"
            " `/run/vsockproxy` (root) or `$XDG_RUNTIME_DIR/vsockproxy`",
            words='path, "auto" or "off"',
        ),
    ] = AUTO
    mode: Annotated[
        int | None,
        Key("Mode of the socket's file", MODE, words="text"),
        BeforeValidator(MODE.parse),
    ] = _ADMIN.mode
    group: Annotated[
        int | None,
        Key(
            'Group of the socket\'s file; with `mode = "0660"`, its members may use it',
            GROUP,
        ),
        BeforeValidator(GROUP.parse),
    ] = _ADMIN.group
    may: Annotated[
        tuple[Grant, ...] | None,
        Key(
            "What users and groups may do beside root and the daemon's user: `read`, `steer` or"
            ' `change`, and `uid:` or `gid:`, as in `["change uid:orchestrator"]`',
            PERMISSIONS,
            default="all who can connect read and steer",
        ),
        PlainValidator(PERMISSIONS.parse),
    ] = None


@_with_keys_of(LogSettings)
class LogTable(_Table):
    """``[log]``."""


@_with_keys_of(PumpSettings)
class PumpTable(_Table):
    """``[pump]``."""


@_with_keys_of(Limits)
class LimitsTable(_Table):
    """``[limits]``."""


@_with_keys_of(ReloadSettings)
class ReloadTable(_Table):
    """``[reload]``."""


class FileTables(_Table):
    """A whole configuration."""

    include: Annotated[tuple[str, ...] | None, PlainValidator(parse_include)] = None
    forward: dict[str, Address] = {}
    route: list[RouteTable] = []
    guests: dict[str, GuestTable] = {}
    defaults: PolicyKeys = PolicyKeys()
    limits: LimitsTable = LimitsTable()
    reload: ReloadTable = ReloadTable()
    metrics: MetricsTable = MetricsTable()
    admin: AdminTable = AdminTable()
    log: LogTable = LogTable()
    pump: PumpTable = PumpTable()


TABLES: Final[dict[str, type[BaseModel]]] = {
    "route": RouteTable,
    "guests": GuestTable,
    "defaults": PolicyKeys,
    "limits": LimitsTable,
    "reload": ReloadTable,
    "metrics": MetricsTable,
    "admin": AdminTable,
    "log": LogTable,
    "pump": PumpTable,
}
"""The model of each table; ``forward`` has no fixed keys."""
