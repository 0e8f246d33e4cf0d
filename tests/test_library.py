"""The package as a library: its exports, and addresses as other programs write them."""

import subprocess
import sys
from uuid import UUID

import pytest

import vsockproxy
from vsockproxy import AddressError, VsockEndpoint, parse_listen, parse_target


def test_addresses_need_neither_trio_nor_pydantic() -> None:
    code = (
        "import sys, vsockproxy; vsockproxy.parse_target('vsock[2:12345]');"
        " sys.exit('trio' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_numbers_are_those_of_the_manual_pages() -> None:
    """vsock(7) and Darwin's vsock(4); they are there where the socket module has none."""
    assert (vsockproxy.CID_ANY, vsockproxy.PORT_ANY) == (0xFFFFFFFF, 0xFFFFFFFF)
    cids = (vsockproxy.CID_HYPERVISOR, vsockproxy.CID_LOCAL, vsockproxy.CID_HOST)
    assert (*cids, vsockproxy.AF_VSOCK) == (0, 1, 2, 40)


@pytest.mark.parametrize(
    ("endpoint", "ookii", "systemd"),
    [
        (VsockEndpoint(2, 12345), "vsock[2:12345]", "vsock:2:12345"),
        (VsockEndpoint(), "vsock[-1:-1]", "vsock:any:any"),
        (VsockEndpoint(0xFFFFFFFE, 0), "vsock[4294967294:0]", "vsock:4294967294:0"),
    ],
)
def test_an_address_is_printed_and_read_in_both_notations(
    endpoint: VsockEndpoint, ookii: str, systemd: str
) -> None:
    assert (endpoint.bracketed(), str(endpoint)) == (ookii, systemd)
    assert parse_listen(ookii) == parse_listen(systemd) == endpoint


def test_any_is_an_error_for_a_target() -> None:
    assert parse_listen("vsock[-1:80]") == VsockEndpoint(port=80)
    for text in ("vsock[-1:80]", "vsock[3:-1]", "vsock::80"):
        with pytest.raises(AddressError, match="cannot be a target"):
            parse_target(text)


def test_a_sample_of_ookii_is_a_hyper_v_service() -> None:
    """The port of its client and server, as the registry of a Windows host has it."""
    guid = UUID("0007a120-facb-11e6-bd58-64006a7986d3")
    assert vsockproxy.port_to_service_guid(500000) == guid
    assert vsockproxy.service_guid_to_port(guid) == 500000
