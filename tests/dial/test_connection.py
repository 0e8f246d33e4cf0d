"""Vsock connections for programs: ports, descriptor, duplicate and close."""

from __future__ import annotations

import errno
import socket

import pytest

from tests.sockets import PAIRS, no_descriptor_left_over
from vsockproxy import VsockConnection, open_vsock_connection
from vsockproxy.address.endpoint import CID_ANY, VsockEndpoint
from vsockproxy.errors import AddressError


def test_a_connection_has_its_ports_and_descriptor_until_it_is_closed() -> None:
    with no_descriptor_left_over():
        near, far = PAIRS["tcp"]()  # a TCP socket's name has a port in the same place
        with far, VsockConnection(near, VsockEndpoint(7, 80)) as connection:
            assert connection.source_port == near.getsockname()[1]
            assert connection.destination_port == 80
            assert connection.file_descriptor == near.fileno()
            assert str(connection) == f"port {connection.source_port} -> vsock:7:80"
            with connection.duplicate() as copy:
                far.send(b"x")
                copy.setblocking(True)
                assert copy.recv(1) == b"x"
        assert connection.file_descriptor == -1
        assert repr(connection).endswith("file_descriptor=-1>")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is checked
            connection.duplicate()
        assert caught.value.errno == errno.EBADF


async def test_a_connection_to_any_cid_is_an_address_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "socket", None)  # no socket is opened
    with pytest.raises(AddressError):
        await open_vsock_connection(CID_ANY, 80)
