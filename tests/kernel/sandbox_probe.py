"""Try what the unit's sandbox must allow or deny, and print the outcomes as a JSON object.

Run by systemd_scenario.py as a service with the daemon's own settings.  A value is ``ok`` or
an errno's name.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path


def outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "ok"


def open_socket(family: int, kind: int = socket.SOCK_STREAM) -> None:
    socket.socket(family, kind).close()


def map_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def unshare() -> None:
    new_user_namespace = 0x10000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_user_namespace):
        raise OSError(ctypes.get_errno(), "unshare")


attempts: dict[str, Callable[[], object]] = {
    "vsock": lambda: open_socket(socket.AF_VSOCK),
    "tcp": lambda: open_socket(socket.AF_INET6),
    "unix": lambda: open_socket(socket.AF_UNIX),
    "netlink": lambda: open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "packet": lambda: open_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "write to /etc/vsockproxy": Path("/etc/vsockproxy/probe").touch,
    "write to /run/vsockproxy": Path("/run/vsockproxy/probe").touch,
    "read the configuration": Path("/etc/vsockproxy/config.toml").read_text,
    "list /root": lambda: list(Path("/root").iterdir()),
    "list /proc/1": lambda: list(Path("/proc/1/task").iterdir()),
    "memory that is written and run": map_code,
    "a user namespace": unshare,
    "a port below 1024": lambda: socket.create_server(("127.0.0.1", 1023)).close(),
    "the scheduler": lambda: os.sched_setaffinity(0, {0}),
}

if __name__ == "__main__":
    json.dump({name: outcome(attempt) for name, attempt in attempts.items()}, sys.stdout)
