"""Keeps every Python process of the tests off the vsock of the machine's own kernel.

That vsock may lead to the hypervisor of this machine, so AF_VSOCK sockets are made
only in the kernels that the tests boot themselves; those set VSOCKPROXY_TEST_KERNEL.
Processes that the tests start get this module by PYTHONPATH, the test process itself by
conftest.py.

With TEST_WITHOUT_VSOCK set, Python is one that was built without AF_VSOCK, as
on macOS: the socket module lacks its constants.
"""

import os
import re
import sys

_AF_VSOCK = 40


def _refuse_vsock(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.__new__" and arguments[1] == _AF_VSOCK:
        raise RuntimeError("a test may not open AF_VSOCK on the machine's own kernel")


if "VSOCKPROXY_TEST_KERNEL" not in os.environ:
    sys.addaudithook(_refuse_vsock)

if "TEST_WITHOUT_VSOCK" in os.environ:
    import socket

    for _name in [name for name in vars(socket) if re.search("VSOCK|VMADDR|VM_SOCKETS", name)]:
        delattr(socket, _name)
        socket.__all__.remove(_name)
