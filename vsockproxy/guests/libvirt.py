"""libvirt, whose live description of a domain has the CID of its vsock device.

Owns: the use of libvirt's Python binding, which only this module imports, at the first
look-up.  Blocks: call it in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from xml.etree import ElementTree as Xml

from vsockproxy.guests.answer import GuestError, checked_cid

_NOT_INSTALLED: Final = (
    "libvirt's Python binding is not installed: pip install 'vsockproxy[libvirt]'"
    " (it needs libvirt-dev, pkg-config and a compiler)"
)


def find_cid(domain: str, uri: str) -> int:
    """Return the CID of a running domain; raise `GuestError`."""
    with _connected(uri) as connection:
        found = _domain(connection, domain, uri)
        if not found.isActive():
            raise GuestError(f"the domain {domain!r} is not running: virsh -c {uri} start {domain}")
        cid = _cid_in(found.XMLDesc())
    if cid is None:
        raise GuestError(
            f"the domain {domain!r} has no vsock device: add"
            " <vsock model='virtio'><cid auto='yes'/></vsock> to its devices"
        )
    return checked_cid(cid, f"libvirt for the domain {domain!r}")


def list_cids(uri: str) -> dict[str, int]:
    """Return the CIDs of the running domains that have one; raise `GuestError`."""
    with _connected(uri) as connection:
        domains = [connection.lookupByID(number) for number in connection.listDomainsID()]
        described = {domain.name(): _cid_in(domain.XMLDesc()) for domain in domains}
    return {name: checked_cid(cid, "libvirt") for name, cid in described.items() if cid}


def _domain(connection: Any, name: str, uri: str) -> Any:
    import libvirt  # noqa: PLC0415 - an extra

    try:
        return connection.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        raise GuestError(
            f"no domain is named {name!r}: `virsh -c {uri} list --all` shows them"
        ) from error


def _cid_in(description: str) -> str | None:
    # libvirt is trusted: it decides which VM has which CID.
    cid = Xml.fromstring(description).find("./devices/vsock/cid")  # noqa: S314 - see above
    return None if cid is None else cid.get("address")


@contextmanager
def _connected(uri: str) -> Iterator[Any]:
    """Open a read-only connection; raise `GuestError` for libvirt's errors in the block."""
    try:
        import libvirt  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise GuestError(_NOT_INSTALLED) from error
    # By default libvirt prints every error.
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        connection = libvirt.openReadOnly(uri)
        try:
            yield connection
        finally:
            connection.close()
    except (libvirt.libvirtError, Xml.ParseError) as error:
        raise GuestError(f"libvirt at {uri}: {error}") from error
